"""Draws depend on what they are for and on nothing else, and are uniform."""

import numpy as np

from tessera.pipeline.counter_random import Purpose, uniforms


def test_a_draw_does_not_depend_on_its_batch() -> None:
    together = uniforms(1, [0, 0, 3], [5, 6, 5], Purpose.CROP, 4)
    assert (together[0] == uniforms(1, 0, 5, Purpose.CROP, 4)[0]).all()
    assert (together[2] == uniforms(1, 3, 5, Purpose.CROP, 4)[0]).all()


def test_more_draws_leave_the_first_ones_as_they_were() -> None:
    assert (
        uniforms(1, 0, 5, Purpose.MASK, 100)[0, :7] == uniforms(1, 0, 5, Purpose.MASK, 7)[0]
    ).all()


def test_every_part_of_the_key_matters() -> None:
    base = uniforms(1, 0, 5, Purpose.CROP, 8)
    for other in (
        uniforms(2, 0, 5, Purpose.CROP, 8),
        uniforms(1, 1, 5, Purpose.CROP, 8),
        uniforms(1, 0, 6, Purpose.CROP, 8),
        uniforms(1, 0, 5, Purpose.CAPTION, 8),
    ):
        assert (base != other).all()


def test_draws_are_uniform_and_uncorrelated() -> None:
    draws = uniforms(0, 0, np.arange(20_000), Purpose.MASK, 8)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert np.abs(draws.mean(axis=0) - 0.5).max() < 0.01
    histogram = np.histogram(draws, bins=64, range=(0, 1))[0]
    expected = draws.size / 64
    assert ((histogram - expected) ** 2 / expected).sum() < 120  # chi-square, 63 degrees
    correlation = np.corrcoef(draws.T) - np.eye(8)
    assert np.abs(correlation).max() < 0.035
