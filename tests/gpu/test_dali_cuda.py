"""DALI's graph on CUDA: the same pixels as on the CPU, on the caller's stream, without the host."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tessera.model import build_clip
from tessera.pipeline.decoding import DaliGraph, Decoder, open_decoder
from tessera.pipeline.decoding.gpu_trial import TrialPictures, TrialSettings, find_graph
from tessera.pipeline.patches import patchify
from tests.decoder_pictures import encode, photo, with_orientation

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SIZE = 224
STRESS_BATCHES = 2000
FILES = [
    encode(photo(640, 480, seed=1), subsampling=0),
    encode(photo(640, 427, seed=2), subsampling=2),
    encode(photo(500, 375, seed=3), progressive=True),
    encode(photo(480, 640, seed=4, mode="L")),
    with_orientation(encode(photo(640, 480, seed=5)), 6),
    encode(photo(600, 400, seed=6), "PNG"),
]
WINDOWS = np.array(
    [
        (10, 21, 400, 500),
        (0, 0, 427, 640),
        (75, 100, 300, 400),
        (33, 5, 500, 470),
        (101, 60, 480, 400),
        (0, 13, 390, 400),
    ],
    dtype=np.int32,
)


@pytest.fixture(scope="module")
def graph() -> DaliGraph:
    """What works on this machine, found out where a crash ends no test."""
    trial = find_graph(
        TrialPictures(encoded=FILES, windows=WINDOWS, num_typical=len(FILES)),
        TrialSettings(
            device="cuda", cpu_decoder="auto", image_size=SIZE, batch_size=16, num_threads=2
        ),
    )
    assert trial.fault == ""
    return trial.graph


@pytest.fixture(scope="module")
def decoder(graph: DaliGraph) -> Decoder:
    return open_decoder(
        "auto", image_size=SIZE, batch_size=16, num_threads=2, device="cuda", graph=graph
    )


def test_auto_is_dali_on_a_gpu(decoder: Decoder) -> None:
    assert decoder.name == "dali-cuda:0"


def test_pixels_as_on_the_cpu(decoder: Decoder) -> None:
    on_cpu = open_decoder("pil", image_size=SIZE, batch_size=16, num_threads=2)
    found = decoder.decode(FILES, WINDOWS)
    assert found.failures == {}
    assert found.images.device.type == "cuda"
    assert lowest_decibels(found.images.cpu(), on_cpu.decode(FILES, WINDOWS).images) > 40


def test_features_are_those_of_pixels_from_the_cpu(decoder: Decoder) -> None:
    """What little the two decoders differ by does not reach what a model makes of a picture."""
    torch.manual_seed(0)
    clip = build_clip("ViT-S-16-alt").cuda()
    patches = clip.config.vision.num_patches
    positions = torch.arange(patches).repeat(len(FILES)).int().cuda()
    offsets = (torch.arange(len(FILES) + 1) * patches).int().cuda()
    on_cpu = open_decoder("pil", image_size=SIZE, batch_size=16, num_threads=2)
    features = []
    for pictures in (decoder.decode(FILES, WINDOWS), on_cpu.decode(FILES, WINDOWS)):
        cut = patchify(pictures.images.cuda(), 16).flatten(0, 1)
        features.append(clip.encode_image(cut, positions, offsets))
    assert torch.nn.functional.cosine_similarity(*features).min() > 0.999


def test_ready_on_the_callers_stream(decoder: Decoder) -> None:
    expected = decoder.decode(FILES, WINDOWS).images.clone()
    stream = torch.cuda.Stream()
    for _ in range(20):
        with torch.cuda.stream(stream):
            found = decoder.decode(FILES, WINDOWS).images
            total = (found.int() - expected.int()).abs().sum()
        assert total.item() == 0


def test_an_earlier_batch_stays_as_it_was(decoder: Decoder) -> None:
    first = decoder.decode(FILES, WINDOWS).images
    before = first.clone()
    for _ in range(5):
        decoder.decode(FILES[::-1], WINDOWS[::-1].copy())
    assert torch.equal(first, before)


def test_a_bad_picture_spoils_no_other(decoder: Decoder) -> None:
    files = [FILES[0], FILES[0][:9000], b"", FILES[1]]
    windows = WINDOWS[[0, 0, 0, 1]]
    decoded = decoder.decode(files, windows)
    assert sorted(decoded.failures) == [1, 2]
    assert decoded.fallback == ""
    expected = decoder.decode(FILES[:2], WINDOWS[:2]).images
    assert (decoded.images[[0, 3]].int() - expected.int()).abs().max() <= 2


def test_odd_files_lie_among_the_others_in_their_order(decoder: Decoder) -> None:
    """PNG and turned pictures at either end of the batch and in its middle."""
    order = [5, 0, 4, 5, 1, 2, 4, 5]
    found = decoder.decode([FILES[n] for n in order], WINDOWS[order])
    on_cpu = open_decoder("pil", image_size=SIZE, batch_size=16, num_threads=2)
    expected = on_cpu.decode([FILES[n] for n in order], WINDOWS[order])
    assert found.images.device.type == "cuda"
    assert lowest_decibels(found.images.cpu(), expected.images) > 40


def test_a_batch_of_odd_files_is_put_together_without_a_wait(decoder: Decoder) -> None:
    """Beside the decoder's own wait for the batch before, torch may not wait for the device."""
    decoder.decode(FILES, WINDOWS)
    torch.cuda.set_sync_debug_mode("error")
    try:
        decoder.decode(FILES, WINDOWS)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_thousands_of_batches_in_a_row_are_as_pillow_decodes_them(graph: DaliGraph) -> None:
    """No batch writes over the one before, while the GPU is busy with other work as well.

    nvJPEG's batched decode on Hopper's JPEG engine does not wait for earlier work of its stream;
    the decoder waits in its place (`DaliDecoder`).
    """
    files = [encode(photo(320 + 8 * n, 240 + 8 * n, seed=n)) for n in range(64)]
    windows = np.array([(n % 7, n % 5, 200, 210 + n) for n in range(64)], dtype=np.int32)
    on_cpu = open_decoder("pil", image_size=SIZE, batch_size=64, num_threads=8)
    expected = on_cpu.decode(files, windows).images.cuda().float()
    decoder = open_decoder(
        "dali", image_size=SIZE, batch_size=32, num_threads=8, device="cuda", graph=graph
    )
    busy, load = torch.cuda.Stream(), torch.randn(4096, 4096, device="cuda")
    worst = torch.zeros((), device="cuda")
    generator = np.random.default_rng(0)
    for _ in range(STRESS_BATCHES):
        chosen = generator.integers(0, len(files), generator.integers(8, 33))
        with torch.cuda.stream(busy):
            load = torch.mm(load, load).clamp_(-1, 1)
        images = decoder.decode([files[n] for n in chosen], windows[chosen]).images
        error = (images.float() - expected[torch.from_numpy(chosen).cuda()]).square()
        worst = torch.maximum(worst, error.mean(dim=(1, 2, 3)).max())
    decibels = 10 * torch.log10(255**2 / worst.clamp_min(1e-9))
    assert decibels.item() > 40


def lowest_decibels(found: torch.Tensor, expected: torch.Tensor) -> float:
    error = (found.double() - expected).square().mean(dim=(1, 2, 3))
    return float((10 * torch.log10(255**2 / error.clamp_min(1e-9))).min())
