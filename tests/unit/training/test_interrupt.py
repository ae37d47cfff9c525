"""Signals end a run at a good moment, or at once when asked twice."""

import os
import signal

import pytest

from tessera.training.interrupt import Interrupted, StopRequests


def test_a_signal_outside_the_loop_ends_at_once() -> None:
    stops = StopRequests()
    with stops.installed(), pytest.raises(Interrupted) as raised:
        os.kill(os.getpid(), signal.SIGTERM)
    assert raised.value.exit_status == 143


def test_a_signal_in_the_loop_waits_for_its_moment() -> None:
    stops = StopRequests()
    with stops.installed(), stops.deferred():
        os.kill(os.getpid(), signal.SIGINT)
        assert stops.requested
        with pytest.raises(Interrupted, match="SIGINT"):
            stops.end_run()


def test_a_rank_without_a_signal_ends_with_the_others() -> None:
    with pytest.raises(Interrupted) as raised:
        StopRequests().end_run()
    assert raised.value.exit_status == 143


def test_a_second_signal_does_not_wait() -> None:
    stops = StopRequests()
    with stops.installed(), stops.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)


def test_former_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopRequests().installed():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


def test_a_signal_in_a_long_wait_ends_it() -> None:
    stops = StopRequests()
    with stops.installed(), stops.deferred():
        with pytest.raises(Interrupted, match="SIGINT"), stops.at_once():
            os.kill(os.getpid(), signal.SIGINT)
        assert stops.requested


def test_a_signal_before_a_long_wait_keeps_it_from_beginning() -> None:
    stops = StopRequests()
    with stops.installed(), stops.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM"), stops.at_once():
            pytest.fail("it waits")
