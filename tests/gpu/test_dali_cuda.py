"""DALI's graph on CUDA: the same pixels as on the CPU, on the caller's stream, without the host."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model import build_clip
from pipeline.decoding import Decoder, open_decoder
from pipeline.patches import patchify
from tests.decoder_pictures import encode, photo, with_orientation

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SIZE = 224
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
def decoder() -> Decoder:
    return open_decoder("auto", image_size=SIZE, batch_size=16, num_threads=2, device="cuda")


def test_auto_is_dali_on_a_gpu(decoder: Decoder) -> None:
    assert decoder.name == "dali-cuda:0"


def test_pixels_as_on_the_cpu(decoder: Decoder) -> None:
    on_cpu = open_decoder("pil", image_size=SIZE, batch_size=16, num_threads=2)
    found = decoder.decode(FILES, WINDOWS)
    assert found.failures == {}
    assert found.images.device.type == "cuda"
    distance = found.images.cpu().double() - on_cpu.decode(FILES, WINDOWS).images
    decibels = 10 * torch.log10(255**2 / distance.square().mean(dim=(1, 2, 3)).clamp_min(1e-9))
    assert decibels.min() > 40


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
    expected = decoder.decode(FILES[:2], WINDOWS[:2]).images
    assert (decoded.images[[0, 3]].int() - expected.int()).abs().max() <= 2
