"""What cannot be used is named with examples, the suffixes seen, and what helps."""

import gzip
import json
import re
from pathlib import Path

import pytest

from tessera.pipeline.index import ScanOptions, build_index, open_index
from tessera.pipeline.storage import list_shards
from tests.conftest import caption_of, jpeg_bytes, write_tar

NUMBERS = range(5)


def members(image: str, text: str = "", document: object = None) -> list[tuple[str, bytes]]:
    """Five samples; `{n}` in a name is their number."""
    found = []
    for n in NUMBERS:
        found.append((image.format(n=n), jpeg_bytes(n, (16, 16))))
        if text:
            content = str(n % 2) if text.endswith("cls") else caption_of(n)
            found.append((text.format(n=n), content.encode()))
        if document is not None:
            found.append((f"{n}.json", json.dumps(document).encode()))
    return found


APART = sorted(members("{n}.jpg", "{n}.txt"), key=lambda each: each[0].rpartition(".")[2])
LISTS = {"captions": [{"caption": "a cat", "id": 1}, {"caption": "two cats", "id": 2}]}


@pytest.mark.parametrize(
    ("content", "remedy", "options"),
    [
        (APART, r"5 samples are not neighbours.*tar --sort=name", None),
        (
            members("s{n}.input.jpg", "s{n}.outputs.txt"),
            r"found: \.input\.jpg \(5\), \.outputs\.txt \(5\).*--image-suffix input\.jpg"
            r".*--caption-suffix outputs\.txt",
            {"image_suffix": ("input.jpg",), "caption_suffix": "outputs.txt"},
        ),
        (
            members("{n}.jpg", "{n}.text"),
            r"--caption-suffix text",
            {"caption_suffix": ".TEXT"},
        ),
        (members("v1.{n} a.jpg", "v1.{n} a.txt"), "--key-to-last-dot", {"key_to_last_dot": True}),
        (members("{n}.jpg", "{n}.cls"), "--captions class", {"captions": "class"}),
        (
            members("{n}.jpg", document=LISTS),
            r"--captions json:captions\.caption",
            {"captions": "json:captions.caption"},
        ),
        (
            members("{n}.jpg", document={"meta": {"caption": "a cat"}}),
            r"--captions json:meta\.caption",
            {"captions": "json:meta.caption"},
        ),
        (
            [m for n in NUMBERS for m in members(f"{n}.left.jpg", f"{n}.txt")[:2]],
            r"--image-suffix left\.jpg",
            {"image_suffix": ("left.jpg",)},
        ),
    ],
)
def test_an_index_of_nothing_names_examples_and_the_remedy_which_helps(
    content: list[tuple[str, bytes]], remedy: str, options: dict | None, tmp_path: Path
) -> None:
    shard = tmp_path / "00000.tar"
    write_tar(shard, content)
    with pytest.raises(ValueError, match="no usable sample") as caught:
        build_index([shard], tmp_path / "index")
    message = str(caught.value)
    assert message.count(f"{shard}: ") >= 1
    assert re.search(remedy, message, re.DOTALL), message
    if options is not None:
        report = build_index([shard], tmp_path / "index", options=ScanOptions(**options))
        assert report.num_samples == 5
        assert report.num_rejected == 0
        words = open_index(tmp_path / "index").scan_options.command_line
        assert all(f"--{name.replace('_', '-')}" in words for name in options)


def test_compressed_tars_are_refused_with_the_command(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", members("{n}.jpg", "{n}.txt"))
    packed = gzip.compress((tmp_path / "a.tar").read_bytes())
    folder = tmp_path / "packed"
    folder.mkdir()
    (folder / "a.tar.gz").write_bytes(packed)
    with pytest.raises(ValueError, match=r"1 \*\.tar\.gz: unpack.*gunzip --keep .*packed/\*\.tar"):
        list_shards(folder)
    (folder / "b.tar").write_bytes(packed)
    with pytest.raises(ValueError, match=r"b\.tar: it is compressed with gzip.*gzip -dc"):
        build_index([folder / "b.tar"], tmp_path / "index")


def test_what_is_not_used_of_a_good_set_is_said(tmp_path: Path) -> None:
    lists = {"captions": ["a cat", "two cats"]}
    write_tar(tmp_path / "0.tar", members("{n}.jpg", "{n}.txt", lists))
    report = build_index([tmp_path / "0.tar"], tmp_path / "index")
    assert [hint for hint in report.hints if "--captions json:captions" in hint]
    again = build_index([tmp_path / "0.tar"], tmp_path / "index")
    assert (again.num_scanned_shards, again.hints) == (0, report.hints)
    options = ScanOptions(captions="json:captions")
    assert not build_index([tmp_path / "0.tar"], tmp_path / "index", options=options).hints

    five = [(n, b"one\ntwo\nthree" if n.endswith("txt") else d)
            for n, d in members("{n}.jpg", "{n}.txt")]  # fmt: skip
    write_tar(tmp_path / "1.tar", five)
    report = build_index([tmp_path / "1.tar"], tmp_path / "lines")
    assert [hint for hint in report.hints if "--captions lines" in hint]

    write_tar(tmp_path / "2.tar", members("{n}.jpg", "{n}.cls"))
    report = build_index(
        [tmp_path / "2.tar"], tmp_path / "cls", options=ScanOptions(captions="class")
    )
    assert [hint for hint in report.hints if "not to train on" in hint]


def test_a_usual_set_calls_for_nothing(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "0.tar", members("{n}.jpg", "{n}.txt", {"url": "http://a", "caption": "x"})
    )
    assert build_index([tmp_path / "0.tar"], tmp_path / "index").hints == ()


def test_an_index_of_the_first_edition_opens_and_is_not_read_again(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", members("{n}.jpg", "{n}.txt"))
    build_index([tmp_path / "0.tar"], tmp_path / "index")
    path = tmp_path / "index" / "index.json"
    manifest = json.loads(path.read_text())
    for name in ("image_suffix", "caption_suffix", "key_to_last_dot", "keys_per_shard"):
        del manifest["options"][name]
    path.write_text(json.dumps(manifest))
    index = open_index(tmp_path / "index")
    assert index.keys([0]) == ["0"]
    report = build_index([tmp_path / "0.tar"], tmp_path / "index")
    assert report.num_scanned_shards == 0
