from __future__ import annotations

import io
import json
import struct
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tessera.pipeline.index import ScanOptions, build_index, open_index

Members = Iterable[tuple[str, bytes]]


def photo(width: int = 40, height: int = 24) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 5 % 256, y * 9 % 256, (x + y) % 256], -1).astype("uint8"))


def encoded(image: Image.Image | None = None, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    (image or photo()).save(buffer, kind, **options)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def write_tar(path: Path, members: Members, tar_format: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def sample(key: str, text: str | bytes | None = "a caption", image: bytes | None = None) -> Members:
    yield f"{key}.jpg", encoded() if image is None else image
    if text is not None:
        yield f"{key}.txt", text if isinstance(text, bytes) else text.encode()


def samples(*keys: str) -> Members:
    return [member for key in keys for member in sample(key)]


def rejected_rows(index_dir: Path) -> list[dict[str, str]]:
    with pa.memory_map(str(index_dir / "rejected.arrow")) as source:
        return pa.ipc.open_file(source).read_all().to_pylist()


def reason_of(tmp_path: Path, members: Members, **options: object) -> tuple[str, str]:
    """Reason and detail of the one bad sample among two good ones."""
    members = [*samples("good0"), *members, *samples("good1")]
    shard = write_tar(tmp_path / "0.tar", members)
    report = build_index([shard], tmp_path / "index", options=ScanOptions(**options))  # pyright: ignore[reportArgumentType]
    index = open_index(tmp_path / "index")
    assert index.keys(np.arange(2)) == ["good0", "good1"]
    assert report.num_rejected == index.num_rejected == 1
    (row,) = rejected_rows(tmp_path / "index")
    assert row["key"] == "bad"
    assert row["shard"] == "0.tar"
    assert report.rejections == index.rejections == {row["reason"]: 1}
    return row["reason"], row["detail"]


def test_offsets_point_at_the_image_bytes(tmp_path: Path) -> None:
    images = [encoded(photo(20 + i, 30)) for i in range(3)]
    members = [m for i in (0, 1, 2) for m in sample(f"k{i}", f" text {i}\n", images[i])]
    shard = write_tar(tmp_path / "0.tar", members)
    report = build_index([shard], tmp_path / "index")
    index = open_index(tmp_path / "index")
    raw = shard.read_bytes()
    for row, image in enumerate(images):
        start = int(index.offset[row])
        assert raw[start : start + int(index.size[row])] == image
    assert index.width.tolist() == [20, 21, 22]
    assert index.height.tolist() == [30, 30, 30]
    assert index.label.tolist() == [-1, -1, -1]
    assert index.captions().texts(np.arange(3)) == ["text 0", "text 1", "text 2"]
    assert report.num_samples == 3
    assert report.image_size_range == (20, 22, 30, 30)


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_foreign_names_of_pax_and_gnu_tars(tmp_path: Path, tar_format: int) -> None:
    keys = ["folder.with.dots/" + "n" * 180, "\u732b/k", "plain"]
    shard = write_tar(tmp_path / "0.tar", samples(*keys), tar_format)
    build_index([shard], tmp_path / "index")
    index = open_index(tmp_path / "index")
    assert index.keys(np.arange(3)) == keys
    raw = shard.read_bytes()
    assert all(raw[offset : offset + 2] == b"\xff\xd8" for offset in index.offset.tolist())


def test_folders_links_and_nameless_files_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (("d.x", tarfile.DIRTYPE), ("a.jpg", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type = kind
            tar.addfile(info)
        for name, data in [("README", b"x"), (".hidden.txt", b"x"), *samples("d/a")]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    report = build_index([path], tmp_path / "index")
    assert (report.num_samples, report.num_rejected) == (1, 0)


def test_labels_are_read(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "0.tar", [*samples("a"), ("a.cls", b"17\n"), *samples("b")])
    build_index([shard], tmp_path / "index")
    assert open_index(tmp_path / "index").label.tolist() == [17, -1]


IMAGE_FAULTS = {
    "truncated_image": encoded(photo(200, 200))[:-400],
    "not_an_image": b"<!DOCTYPE html><html>gone</html>",
    "empty_image": b"",
    "unsupported_image": encoded(kind="GIF"),
    "damaged_image": encoded(kind="PNG")[:60] + b"\xff" * 20 + encoded(kind="PNG")[80:],
}


@pytest.mark.parametrize("reason", IMAGE_FAULTS)
def test_bad_images_are_rejected(tmp_path: Path, reason: str) -> None:
    found, detail = reason_of(tmp_path, sample("bad", image=IMAGE_FAULTS[reason]))
    assert found == reason
    assert detail


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_files_cut_in_the_header_or_the_data_are_truncated(tmp_path: Path, kind: str) -> None:
    whole = encoded(photo(200, 200), kind)
    for number, length in enumerate((14, len(whole) // 2)):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert reason_of(folder, sample("bad", image=whole[:length]))[0] == "truncated_image"


def test_truncated_jpeg_is_found_without_decoding(tmp_path: Path) -> None:
    image = IMAGE_FAULTS["truncated_image"]
    assert reason_of(tmp_path, sample("bad", image=image), full_decode=False)[0] == (
        "truncated_image"
    )


def test_decompression_bomb_is_too_large(tmp_path: Path) -> None:
    data = bytearray(encoded())
    place = data.index(b"\xff\xc0") + 5
    for side in (15_000, 60_000):
        data[place : place + 4] = struct.pack(">HH", side, side)
        folder = tmp_path / str(side)
        folder.mkdir()
        assert reason_of(folder, sample("bad", image=bytes(data)))[0] == "too_large"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "missing_caption"),
        ("", "empty_caption"),
        (" \n\t ", "empty_caption"),
        ("&nbsp;", "empty_caption"),
        (b"caf\xe9", "bad_caption_encoding"),
        ("long " * 20_000, "caption_too_long"),
    ],
)
def test_bad_captions_are_rejected(tmp_path: Path, text: str | bytes | None, reason: str) -> None:
    assert reason_of(tmp_path, sample("bad", text))[0] == reason


def test_missing_image_and_bad_label_are_rejected(tmp_path: Path) -> None:
    assert reason_of(tmp_path, [("bad.txt", b"words"), ("bad.gif", b"x")])[0] == "missing_image"
    assert reason_of(tmp_path, [*sample("bad"), ("bad.cls", b"dog")])[0] == "bad_label"


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (b'{"captions": ["\\ud83d"]}', "bad_caption_encoding"),
        (b'{"other": "x"}', "missing_caption"),
        (b'{"captions": [1]}', "missing_caption"),
        (b'{"captions": []}', "empty_caption"),
        (b'["x"]', "missing_caption"),
        (b"{", "bad_json"),
        (b"[" * 100_000, "bad_json"),
        (b'{"captions": "\xe9"}', "bad_caption_encoding"),
    ],
)
def test_bad_json_captions_are_rejected(tmp_path: Path, document: bytes, reason: str) -> None:
    def with_json(key: str, content: bytes) -> Members:
        return [(f"{key}.jpg", encoded()), (f"{key}.json", content)]

    good = json.dumps({"captions": ["one", " ", "two "]}).encode()
    members = [*with_json("good", good), *with_json("bad", document)]
    shard = write_tar(tmp_path / "0.tar", members)
    report = build_index([shard], tmp_path / "index", options=ScanOptions(captions="json:captions"))
    assert report.rejections == {reason: 1}
    assert report.num_empty_texts == 1
    table = open_index(tmp_path / "index").captions()
    assert table.texts(np.arange(table.num_texts)) == ["one", "two"]


def test_lines_of_a_text_may_be_captions(tmp_path: Path) -> None:
    members = [
        *sample("a", "one\r\n\n two\u2028too \n"),
        *sample("b", "alone"),
        *sample("c", " \n "),
    ]
    shard = write_tar(tmp_path / "0.tar", members)
    report = build_index([shard], tmp_path / "index", options=ScanOptions(captions="lines"))
    captions = open_index(tmp_path / "index").captions()
    assert captions.text.to_pylist() == ["one", "two\u2028too", "alone"]
    assert captions.sample.tolist() == [0, 0, 1]
    assert report.num_rejected == 1


def test_json_caption_may_be_one_string(tmp_path: Path) -> None:
    members = [("a.jpg", encoded()), ("a.json", b'{"caption": "one"}')]
    shard = write_tar(tmp_path / "0.tar", members)
    options = ScanOptions(captions="json:caption")
    assert build_index([shard], tmp_path / "index", options=options).num_texts == 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("orientation", "size"), [(1, (40, 24)), (3, (40, 24)), (6, (24, 40))])
def test_size_is_that_of_the_turned_photo(
    tmp_path: Path, kind: str, orientation: int, size: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    shard = write_tar(tmp_path / "0.tar", sample("a", image=encoded(photo(), kind, exif=exif)))
    build_index([shard], tmp_path / "index")
    index = open_index(tmp_path / "index")
    assert (int(index.width[0]), int(index.height[0])) == size


def test_cut_tar_keeps_what_is_whole(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "0.tar", samples("a", "b", "c"))
    with tarfile.open(shard) as tar:
        cut = tar.getmember("c.jpg").offset_data + 100
    shard.write_bytes(shard.read_bytes()[:cut])
    report = build_index([shard], tmp_path / "index")
    assert report.num_samples == 2
    assert report.rejections == {"tar_cut_short": 1}
    assert "c.jpg should end at byte" in report.shard_problems[str(shard)]
    assert [row["member"] for row in rejected_rows(tmp_path / "index")] == ["c.jpg"]


def test_tar_cut_between_members_is_reported(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "0.tar", samples("a", "b"))
    with tarfile.open(shard) as tar:
        before_text = tar.getmember("b.txt").offset
    shard.write_bytes(shard.read_bytes()[:before_text])
    report = build_index([shard], tmp_path / "index")
    assert report.num_samples == 1
    assert report.rejections == {"tar_cut_short": 1}
    assert "inside the archive" in report.shard_problems[str(shard)]


def test_tar_without_its_end_keeps_all_and_is_reported(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "0.tar", samples("a", "b"))
    with tarfile.open(shard) as tar:
        end = tar.getmember("b.txt").offset_data + 512
    shard.write_bytes(shard.read_bytes()[:end])
    report = build_index([shard], tmp_path / "index")
    assert (report.num_samples, report.num_rejected) == (2, 0)
    assert str(shard) in report.shard_problems


def test_damaged_header_ends_the_shard_and_is_reported(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "0.tar", samples("a", "b", "c"))
    with tarfile.open(shard) as tar:
        place = tar.getmember("b.txt").offset
    raw = bytearray(shard.read_bytes())
    raw[place + 3] ^= 0xFF
    shard.write_bytes(raw)
    report = build_index([shard], tmp_path / "index")
    assert report.num_samples == 1
    assert report.rejections == {"tar_cut_short": 1}
    assert f"header at byte {place} is damaged" in report.shard_problems[str(shard)]


def test_tars_joined_with_cat_are_reported(tmp_path: Path) -> None:
    first = write_tar(tmp_path / "0.tar", samples("a")).read_bytes()
    shard = write_tar(tmp_path / "1.tar", samples("b"))
    shard.write_bytes(first + shard.read_bytes())
    report = build_index([shard], tmp_path / "index")
    assert report.num_samples == 1
    assert "more data follows" in report.shard_problems[str(shard)]


def test_useless_shards_are_named_and_the_rest_is_indexed(tmp_path: Path) -> None:
    good = write_tar(tmp_path / "good.tar", samples("a"))
    zero, blocks, page = (tmp_path / name for name in ("zero.tar", "blocks.tar", "page.tar"))
    zero.write_bytes(b"")
    blocks.write_bytes(bytes(10240))
    page.write_bytes(b"<html>not found</html>" * 100)
    report = build_index([good, zero, blocks, page], tmp_path / "index")
    assert set(report.shard_problems) == {str(zero), str(blocks), str(page)}
    assert "not a tar file" in report.shard_problems[str(page)]
    assert [Path(record.location) for record in open_index(tmp_path / "index").shards] == [good]


def test_duplicate_keys_over_two_shards_keep_the_first(tmp_path: Path) -> None:
    second = write_tar(tmp_path / "1.tar", [*sample("b", "late"), *sample("c", "see")])
    first = write_tar(tmp_path / "0.tar", [*sample("a", "ay"), *sample("b", "early")])
    report = build_index([second, first], tmp_path / "index")
    index = open_index(tmp_path / "index")
    assert index.keys(np.arange(3)) == ["a", "b", "c"]
    assert index.shard.tolist() == [0, 0, 1]
    assert [record.num_samples for record in index.shards] == [2, 1]
    table = index.captions()
    assert table.texts(np.arange(3)) == ["ay", "early", "see"]
    assert table.sample.tolist() == [0, 1, 2]
    (row,) = rejected_rows(tmp_path / "index")
    assert (row["key"], row["reason"], row["shard"]) == ("b", "duplicate_key", "1.tar")
    assert str(first) in row["detail"]
    assert report.rejections == {"duplicate_key": 1}


def test_shard_of_nothing_but_duplicates_leaves_the_index(tmp_path: Path) -> None:
    shards = [write_tar(tmp_path / f"{n}.tar", samples(key)) for n, key in enumerate("aab")]
    build_index(shards, tmp_path / "index")
    index = open_index(tmp_path / "index")
    assert [Path(record.location).name for record in index.shards] == ["0.tar", "2.tar"]
    assert index.shard.tolist() == [0, 1]


def test_no_usable_sample_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "0.tar", sample("a", None))
    with pytest.raises(ValueError, match=r"no usable sample in 1 shards \(1 missing_caption\)"):
        build_index([shard], tmp_path / "index")
    assert [path.name for path in tmp_path.iterdir()] == ["0.tar"]


def test_wrong_use_is_told(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "0.tar", samples("a"))
    with pytest.raises(ValueError, match="'txt', 'lines', 'class' or 'json:FIELD'"):
        ScanOptions(captions="json:")
    with pytest.raises(ValueError, match="no shards"):
        build_index([], tmp_path / "index")
    with pytest.raises(FileNotFoundError, match=r"gone\.tar"):
        build_index([tmp_path / "gone.tar"], tmp_path / "index")
    with pytest.raises(ValueError, match="not an index"):
        build_index([shard], tmp_path)


def test_failed_run_leaves_the_index_that_is_there(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "0.tar", samples("a"))
    report = build_index([shard], tmp_path / "index")
    write_tar(shard, sample("b", None))
    with pytest.raises(ValueError, match="no usable sample"):
        build_index([shard], tmp_path / "index")
    assert open_index(tmp_path / "index").fingerprint == report.fingerprint
    write_tar(shard, samples("c"))
    build_index([shard], tmp_path / "index")
    assert open_index(tmp_path / "index").keys(np.arange(1)) == ["c"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.tar", "index"]


def test_interrupt_leaves_nothing_behind(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "0.tar", samples("a"))

    def interrupt(_done_bytes: int, _total_bytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index([shard], tmp_path / "index", progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["0.tar"]


def test_added_caption_sources_are_not_thrown_away(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "0.tar", samples("a"))
    build_index([shard], tmp_path / "index")
    (tmp_path / "index/captions/llava.arrow").write_bytes(b"costly")
    with pytest.raises(ValueError, match="llava"):
        build_index([shard], tmp_path / "index")


def test_fingerprint_is_of_the_data_and_not_of_the_place(tmp_path: Path) -> None:
    prints = []
    for folder, text in (("x", "same"), ("y", "same"), ("z", "other")):
        (tmp_path / folder).mkdir()
        shard = write_tar(tmp_path / folder / "0.tar", sample("a", text))
        prints.append(build_index([shard], tmp_path / folder / "index").fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_workers_give_the_same_index(tmp_path: Path) -> None:
    shards = [write_tar(tmp_path / f"{n}.tar", samples(f"a{n}", f"b{n}")) for n in range(3)]
    seen: list[tuple[int, int]] = []
    one = build_index(shards, tmp_path / "one")
    two = build_index(
        shards, tmp_path / "two", num_workers=2, progress=lambda *counts: seen.append(counts)
    )
    total_bytes = sum(shard.stat().st_size for shard in shards)
    assert one.fingerprint == two.fingerprint
    assert seen[-1] == (total_bytes, total_bytes)
