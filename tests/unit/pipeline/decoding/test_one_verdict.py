"""Index, decoders and make_shards say the same of every picture, and show the same pixels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tessera.pipeline.decoding import Decoder, open_decoder
from tessera.pipeline.decoding.jpeg_walk import plain_jpeg
from tessera.pipeline.decoding.picture import Fault, Picture
from tessera.pipeline.index.image_check import check_image
from tessera.pipeline.index.rejection import RejectedSampleError
from tessera.tools.sharding import ImageOptions, SkippedError, prepare_image
from tests.decoder_pictures import encode
from tests.every_picture import (
    HEIGHT,
    PHOTO,
    REFUSED,
    SOUND,
    TRANSPARENT,
    WIDTH,
    drawing,
    png,
    png_chunk,
    tiff,
    webp,
)

SIZE = 64
WHOLE = np.array([[0, 0, HEIGHT, WIDTH]], dtype=np.int32)
CONVERTED = ("GIF", "BMP", "TIFF", "BigTIFF", "AVIF", "JPEG 2000", "JPEG 2000 stream", "icon",
    "PNG of 16 bits", "JPEG arithmetic")  # fmt: skip


@pytest.fixture(scope="module", params=("turbo", "pil", "dali"))
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return open_decoder(request.param, image_size=SIZE, batch_size=1, num_threads=1)


def expected(name: str) -> np.ndarray:
    """[SIZE, SIZE, 3]: the drawing on white, or the photo, as grey as the file is."""
    picture = PHOTO
    if name in TRANSPARENT:
        picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
        picture.paste(drawing().convert("RGB"), mask=drawing().getchannel("A"))
    if "grey" in name:
        picture = picture.convert("L").convert("RGB")
    if "1 bit" in name:
        picture = picture.convert("1").convert("RGB")
    return np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=np.int16)


def difference(found: np.ndarray, name: str) -> float:
    return float(np.abs(found.astype(np.int16) - expected(name)).mean())


@pytest.mark.parametrize("full_decode", [True, False])
@pytest.mark.parametrize("name", SOUND)
def test_the_index_takes_sound_pictures(name: str, *, full_decode: bool) -> None:
    facts = check_image(SOUND[name], full_decode=full_decode)
    assert (facts.width, facts.height) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("name", SOUND)
def test_decoders_show_the_same_pixels(decoder: Decoder, name: str) -> None:
    decoded = decoder.decode([SOUND[name]], WHOLE)
    assert decoded.failures == {}
    assert difference(decoded.images[0].numpy(), name) < (9 if "palette" in name else 6)


@pytest.mark.parametrize("name", SOUND)
def test_make_shards_keeps_sound_pictures_and_shrinks_them_alike(name: str) -> None:
    assert prepare_image(SOUND[name], ImageOptions())[0] == SOUND[name]
    smaller = prepare_image(SOUND[name], ImageOptions(max_side=64))[0]
    with Image.open(io.BytesIO(smaller)) as image:
        assert image.size == (64, round(HEIGHT * 64 / WIDTH))
        found = np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    assert difference(found, name) < (40 if "1 bit" in name else 12)


@pytest.mark.parametrize("name", REFUSED)
def test_the_index_refuses_bad_pictures_and_says_why(name: str) -> None:
    bad = REFUSED[name]
    with pytest.raises(RejectedSampleError) as caught:
        check_image(bad.data, full_decode=True)
    assert caught.value.reason in {fault.value for fault in bad.faults}
    assert bad.says in caught.value.detail
    assert " at 0x" not in caught.value.detail
    if bad.in_header:
        with pytest.raises(RejectedSampleError) as again:
            check_image(bad.data, full_decode=False)
        assert again.value.detail == caught.value.detail


@pytest.mark.parametrize("name", REFUSED)
def test_decoders_refuse_bad_pictures(decoder: Decoder, name: str) -> None:
    bad = REFUSED[name]
    if decoder.name.startswith("dali") and not bad.in_header:
        pytest.skip("DALI fills in what is missing; the index keeps such pictures from it")
    if decoder.name != "pil" and not bad.in_window:
        pytest.skip("it lies behind the window, which is all that is decoded")
    decoded = decoder.decode([bad.data], WHOLE)
    assert decoded.failures[0]
    assert not decoded.images.any()


@pytest.mark.parametrize("name", REFUSED)
def test_make_shards_launders_no_bad_picture(name: str) -> None:
    bad = REFUSED[name]
    with pytest.raises(RejectedSampleError) as caught:
        prepare_image(bad.data, ImageOptions(max_side=48))
    assert caught.value.reason in {fault.value for fault in bad.faults}


@pytest.mark.parametrize(
    "name", [n for n, bad in REFUSED.items() if Fault.UNSUPPORTED in bad.faults]
)
def test_convert_converts_what_pillow_reads_and_says_what_the_rest_is(name: str) -> None:
    bad = REFUSED[name]
    if name not in CONVERTED:
        with pytest.raises((RejectedSampleError, SkippedError)) as caught:
            prepare_image(bad.data, ImageOptions(convert=True))
        assert bad.says in str(caught.value)
        return
    data, suffix = prepare_image(bad.data, ImageOptions(convert=True))
    assert suffix == "jpg"
    facts = check_image(data, full_decode=True)
    sizes = {"JPEG arithmetic": (16, 16), "icon": (64, 46)}
    assert (facts.width, facts.height) == sizes.get(name, (WIDTH, HEIGHT))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_read_alike(orientation: int) -> None:
    stored = photo_stored_for(orientation)
    for data in (
        png(stored, behind=png_chunk(b"eXIf", tiff(orientation))),
        webp(stored, orientation, odd=True, prefix=b"Exif\0\0"),
    ):
        assert check_image(data, full_decode=False)[:2] == (WIDTH, HEIGHT)
        assert Picture(data).pixels().tobytes() == PHOTO.tobytes()


def photo_stored_for(orientation: int) -> Image.Image:
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    return PHOTO.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else PHOTO


def test_a_damaged_picture_is_refused_whatever_part_of_it_is_gone() -> None:
    whole = SOUND["JPEG 4:4:4"]
    start = whole.index(b"\xff\xda") + 200
    for cut in range(start, len(whole) - 60, 97):
        for data in (whole[:cut] + b"\xff\xd9", whole[:cut] + whole[cut + 60 :]):
            with pytest.raises(RejectedSampleError):
                check_image(data, full_decode=True)


def test_few_scans_of_many_pixels_are_refused_before_they_are_decoded(decoder: Decoder) -> None:
    data = encode(Image.new("L", (8000, 8000), 90), progressive=True)
    assert check_image(data, full_decode=False)[:2] == (8000, 8000)
    last = data.rindex(b"\xff\xda")
    bomb = data[:-2] + data[last:-2] * 60 + data[-2:]
    with pytest.raises(RejectedSampleError, match="scans of 8000x8000"):
        check_image(bomb, full_decode=True)
    assert decoder.decode([bomb], WHOLE).failures


def test_shared_cases(tmp_path: Path) -> None:
    """A header with stray bytes, from a corpus, where the shared cases are at hand."""
    path = Path("../shared/cases/dali_segfault/stray_bytes_between_segments.jpg")
    if not path.exists():
        pytest.skip("no ../shared/cases")
    data = path.read_bytes()
    assert check_image(data, full_decode=True)
    assert not plain_jpeg(data)
