"""How a batch is handed to the model's device, as far as it shows without a GPU."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from tessera.pipeline.batch import PackedBatch
from tessera.pipeline.device_copy import DeviceCopier


def batch() -> PackedBatch:
    return PackedBatch(
        patches=torch.arange(24, dtype=torch.uint8).view(2, 12),
        positions=torch.tensor([3, 1], dtype=torch.int32),
        image_offsets=torch.tensor([0, 2], dtype=torch.int32),
        tokens=torch.tensor([7], dtype=torch.int32),
        text_offsets=torch.tensor([0, 1], dtype=torch.int32),
        sample_ids=torch.tensor([5]),
    )


def test_on_a_cpu_nothing_is_copied() -> None:
    copier, made = DeviceCopier("cpu"), batch()
    with copier.queue():
        sent = copier.send(made)
    assert sent.ready is None
    received = copier.receive(sent)
    assert isinstance(received, PackedBatch)
    assert received.patches.data_ptr() == made.patches.data_ptr()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="torch sees no GPU here; take cpu"):
        DeviceCopier("cuda")


class RecordingStream:
    """Stands in for a CUDA stream and writes down what is asked of it."""

    device = torch.device("cuda:0")

    def __init__(self, name: str, calls: list[str]) -> None:
        self.name, self.calls = name, calls

    def wait_event(self, event: RecordingEvent) -> None:
        self.calls.append(f"{self.name} waits for the event of {event.stream.name}")


class RecordingEvent:
    """Stands in for a CUDA event."""

    stream: RecordingStream

    def record(self, stream: RecordingStream) -> None:
        self.stream = stream
        stream.calls.append(f"{stream.name} records")


def test_the_order_of_copies_events_and_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The protocol itself; tests/gpu/test_device_copy.py shows that it does what it should."""
    calls: list[str] = []
    own, consumer = RecordingStream("own", calls), RecordingStream("consumer", calls)

    @contextmanager
    def queued_on(stream: RecordingStream):
        calls.append(f"on {stream.name}")
        yield
        calls.append(f"off {stream.name}")

    def noting(text: str):
        def note(self: PackedBatch, *args: object) -> PackedBatch:
            calls.append(text + "".join(getattr(a, "name", "") for a in args))
            return self

        return note

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: own)
    monkeypatch.setattr(torch.cuda, "Event", RecordingEvent)
    monkeypatch.setattr(torch.cuda, "stream", queued_on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: consumer)
    for name, text in (("pin_memory", "pin"), ("to", "copy"), ("record_stream", "keep for ")):
        monkeypatch.setattr(PackedBatch, name, noting(text))
    copier = DeviceCopier("cuda")
    with copier.queue():
        sent = copier.send(batch())
    copier.receive(sent)
    assert calls == [
        "on own",
        "pin",
        "copy",
        "own records",
        "off own",
        "consumer waits for the event of own",
        "keep for consumer",
    ]
