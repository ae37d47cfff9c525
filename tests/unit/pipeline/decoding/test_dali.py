"""What DALI gets of a batch, and what becomes of the rest. On the CPU; the graph is the GPU's."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from nvidia.dali.pipeline import Pipeline
from PIL import Image

from tessera.pipeline.decoding import DaliGraph, Decoder, open_decoder
from tests.decoder_pictures import encode, photo, with_orientation

SIZE = 64
GOOD = encode(photo(240, 180, seed=1))
WINDOW = (10, 20, 120, 150)


def opened(kind: str, graph: DaliGraph = "window") -> Decoder:
    return open_decoder(
        kind,  # pyright: ignore[reportArgumentType]
        image_size=SIZE,
        batch_size=16,
        num_threads=2,
        graph=graph,
    )


def windows(count: int) -> Any:
    return np.array([WINDOW] * count, dtype=np.int32)


def stray_bytes(data: bytes) -> bytes:
    """Bytes that belong to no segment behind the first one, as some editors leave."""
    end = 4 + int.from_bytes(data[4:6], "big")
    return data[:end] + b"\n" * 7 + data[end:]


def broken_animation(data: bytes) -> bytes:
    """A PNG with a second frame whose data are too short for their own sequence number."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header, rest = data[:33], data[33:]
    frame = struct.pack(">IIIIIHHBB", 0, 240, 180, 0, 0, 100, 1000, 0, 0)
    return (
        header
        + chunk(b"acTL", struct.pack(">II", 2, 0))
        + rest[:-12]
        + chunk(b"fcTL", frame)
        + chunk(b"fdAT", b"\0")
        + rest[-12:]
    )


TURNED = Image.Exif()
TURNED[0x0112] = 6

ODD = {
    "PNG": encode(photo(240, 180, seed=2), "PNG"),
    "broken animation": broken_animation(encode(photo(240, 180, seed=3), "PNG")),
    "WebP": encode(photo(240, 180, seed=4), "WEBP", quality=90),
    "turned WebP": encode(photo(240, 180, seed=8), "WEBP", exif=TURNED),
    "CMYK": encode(photo(240, 180, seed=5, mode="CMYK")),
    "stray bytes": stray_bytes(encode(photo(240, 180, seed=6))),
    "empty": b"",
    "web page": b"<html>not found</html>" * 50,
    "zeros": bytes(5000),
    "cut off": GOOD[: len(GOOD) // 2],
    "too small": encode(photo(100, 80, seed=7)),
}


def test_odd_files_are_decoded_as_without_dali() -> None:
    files = [GOOD, *ODD.values(), GOOD]
    found = opened("dali").decode(files, windows(len(files)))
    expected = opened("turbo").decode(files, windows(len(files)))
    assert found.failures == expected.failures
    assert found.fallback == ""
    assert torch.equal(found.images[1:-1], expected.images[1:-1])
    assert torch.equal(found.images[0], found.images[-1])
    assert found.images[0].any()


def test_odd_files_cost_no_new_graph(builds: Callable[[], int]) -> None:
    decoder = opened("dali")
    before = builds()
    for file in ODD.values():
        decoder.decode([GOOD, file], windows(2))
        decoder.decode([file], windows(1))
    assert builds() == before


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many graphs were built so far."""
    create, count = Pipeline.__init__, [0]

    def counted(self: Pipeline, *args: Any, **options: Any) -> None:
        count[0] += 1
        create(self, *args, **options)

    monkeypatch.setattr(Pipeline, "__init__", counted)
    return lambda: count[0]


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets so many of the next runs of a graph fail."""
    run, left = Pipeline.run, [0]

    def failing(self: Pipeline, *args: Any, **options: Any) -> Any:
        outputs = run(self, *args, **options)
        if left[0] > 0:
            left[0] -= 1
            raise RuntimeError("Critical error in pipeline:\nError in operator: bad picture")
        return outputs

    def set_left(count: int) -> None:
        left[0] = count

    monkeypatch.setattr(Pipeline, "run", failing)
    return set_left


def test_a_failed_batch_is_decoded_by_the_cpu_decoder(
    fail: Callable[[int], None], builds: Callable[[], int], caplog: pytest.LogCaptureFixture
) -> None:
    decoder, on_cpu = opened("dali"), opened("turbo")
    files = [encode(photo(240, 180, seed=seed)) for seed in range(4)]
    good = decoder.decode(files, windows(4)).images.clone()
    before = builds()
    fail(1)
    failed = decoder.decode(files, windows(4))
    assert "bad picture" in failed.fallback
    assert failed.failures == {}
    assert torch.equal(failed.images, on_cpu.decode(files, windows(4)).images)
    assert "bad picture" in caplog.text
    after = decoder.decode(files, windows(4))
    assert after.fallback == ""
    assert torch.equal(after.images, good)
    assert builds() == before


def test_a_graph_that_stays_broken_is_built_anew(
    fail: Callable[[int], None], builds: Callable[[], int]
) -> None:
    decoder = opened("dali")
    before = builds()
    fail(2)
    for _ in range(2):
        assert decoder.decode([GOOD], windows(1)).fallback
    assert builds() == before + 1
    assert decoder.decode([GOOD], windows(1)).fallback == ""


@pytest.mark.parametrize("graph", get_args(DaliGraph))
def test_every_graph_decodes_as_pillow(graph: DaliGraph) -> None:
    files = [with_orientation(encode(photo(240, 180, seed=n)), n) for n in range(1, 9)]
    files += [encode(photo(240, 180, seed=9), subsampling=0), encode(photo(240, 180, mode="L"))]
    some = np.array([(3, 7, 140, 150)] * len(files), dtype=np.int32)
    found, expected = (opened(kind, graph).decode(files, some) for kind in ("dali", "pil"))
    assert found.failures == {}
    assert lowest_decibels(found.images, expected.images) > 42


def test_data_behind_a_picture_change_nothing() -> None:
    decoder = opened("dali")
    alone = decoder.decode([GOOD], windows(1)).images
    found = decoder.decode([GOOD + b"ftypmp42" * 4000, GOOD + GOOD], windows(2))
    assert found.failures == {}
    assert lowest_decibels(found.images, alone) > 42


def lowest_decibels(found: torch.Tensor, expected: torch.Tensor) -> float:
    error = (found.double() - expected).square().mean(dim=(1, 2, 3))
    return float((10 * torch.log10(255**2 / error.clamp_min(1e-9))).min())
