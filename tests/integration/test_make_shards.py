from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tessera.pipeline.index import Index, open_index
from tessera.tools import index_shards, make_shards

ROOT = Path(__file__).resolve().parents[2]


def picture(number: int, suffix: str = "JPEG", size: tuple[int, int] = (64, 48)) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, suffix)
    return buffer.getvalue()


def write_pictures(folder: Path, count: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    kinds = [("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")]
    paths = []
    for number in range(count):
        suffix, kind = kinds[number % 3]
        paths.append(folder / f"photo {number}.v2.{suffix}")
        paths[-1].write_bytes(picture(number, kind))
    return paths


class Done(NamedTuple):
    """What a run of the tool gave."""

    returncode: int | str | None
    stdout: str
    stderr: str


def run_here(main: Callable[[], int], *arguments: object) -> Done:
    """A tool in this process: a new one would spend its time on importing webdataset."""
    printed, told = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(told):
        patch.setattr(sys, "argv", ["tool", *map(str, arguments)])
        try:
            status = main()
        except SystemExit as error:
            status = error.code
    return Done(status, printed.getvalue(), told.getvalue())


def run_tool(source: Path, out: Path, *options: object) -> Done:
    return run_here(make_shards.main, source, "--out", out, *options)


def made(source: Path, out: Path, *options: object, status: int = 0) -> dict:
    done = run_tool(source, out, *options)
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def members(out: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                assert member.name not in found
                found[member.name] = file.read()
    return found


def indexed(out: Path, captions: str) -> Index:
    """The index of what was made, which must take all of it."""
    options = ["--out", f"{out}-index", "--captions", captions, "--workers", 1]
    done = run_here(index_shards.main, out, *options)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["num_rejected"] == 0
    return open_index(Path(f"{out}-index"))


def indexed_texts(index: Index) -> dict[str, list[str]]:
    table = index.captions()
    keys = index.keys(np.arange(index.num_samples))
    texts: dict[str, list[str]] = {key: [] for key in keys}
    for row, sample in enumerate(table.sample.tolist()):
        texts[keys[sample]] += table.texts(np.array([row]))
    return texts


CAPTIONS = ["a dog, running", 'the "best" dog', "zwei\nZeilen", "犬 😀 &amp; café", "plain", "last"]


def write_csv(path: Path, rows: list[list[str]], encoding: str = "utf-8") -> Path:
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_csv_with_several_captions_an_image(tmp_path: Path) -> None:
    paths = write_pictures(tmp_path / "photos", 3)
    rows = [[path.name, text] for path, text in zip([*paths, *paths], CAPTIONS, strict=True)]
    table = write_csv(tmp_path / "t.csv", [["image", "caption"], *rows], "utf-8-sig")
    summary = made(table, tmp_path / "out", "--images", tmp_path / "photos")
    assert (summary["num_samples"], summary["num_captions"], summary["num_skipped"]) == (3, 6, 0)
    assert summary["captions"] == "json:captions"
    assert summary["num_changed"] == 0
    found = members(tmp_path / "out")
    for number, (path, suffix) in enumerate(zip(paths, ("jpg", "png", "webp"), strict=True)):
        key = f"{number:09d}"
        expected = [CAPTIONS[number], CAPTIONS[number + 3]]
        assert found[f"{key}.{suffix}"] == path.read_bytes()
        assert found[f"{key}.txt"].decode() == expected[0]
        assert json.loads(found[f"{key}.json"]) == {"captions": expected}
    index = indexed(tmp_path / "out", summary["captions"])
    expected = {f"{n:09d}": [CAPTIONS[n], CAPTIONS[n + 3]] for n in range(3)}
    assert indexed_texts(index) == expected


def test_tsv_without_header_keeps_quotes_and_one_caption_needs_no_json(tmp_path: Path) -> None:
    paths = write_pictures(tmp_path, 2)
    lines = [f'"said "so\t7\t{paths[0].name}\r\n', f"it's\t8\t{paths[1].name}\r\n"]
    table = tmp_path / "t.tsv"
    table.write_bytes("".join(lines).encode())
    options = ["--no-header", "--image-column", 3, "--caption-column", 1]
    summary = made(table, tmp_path / "out", *options)
    assert summary["captions"] == "txt"
    names = [name for name in members(tmp_path / "out") if not name.endswith((".jpg", ".png"))]
    assert names == ["000000000.txt", "000000001.txt"]
    index = indexed(tmp_path / "out", "txt")
    assert indexed_texts(index) == {"000000000": ['"said "so'], "000000001": ["it's"]}


def test_json_lines_with_lists(tmp_path: Path) -> None:
    paths = write_pictures(tmp_path / "a" / "b", 2)
    rows = [
        {"file_name": f"a/b/{paths[0].name}", "text": ["one", "", "two", None]},
        {"file_name": str(paths[1]), "text": "three"},
    ]
    table = tmp_path / "t.jsonl"
    table.write_text("\ufeff" + "\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    summary = made(table, tmp_path / "out")
    assert summary["num_empty_captions"] == 2
    index = indexed(tmp_path / "out", "json:captions")
    assert indexed_texts(index) == {"000000000": ["one", "two"], "000000001": ["three"]}


@pytest.mark.parametrize("large", [False, True])
def test_parquet_of_paths(tmp_path: Path, large: bool) -> None:
    paths = write_pictures(tmp_path, 3)
    text = pa.large_string() if large else pa.string()
    columns = {
        "caption": pa.array(["a", None, "c"], text),
        "image": pa.array([path.name for path in paths], text),
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    summary = made(tmp_path / "t.parquet", tmp_path / "out")
    assert summary["skipped"] == {"missing_caption": 1}
    index = indexed(tmp_path / "out", "txt")
    assert indexed_texts(index) == {"000000000": ["a"], "000000002": ["c"]}


IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def embedded_table(count: int) -> pa.Table:
    cells = [{"bytes": picture(number), "path": None} for number in range(count)]
    captions = [[f"first {number}", f"second {number}"] for number in range(count)]
    labels = pa.array([number % 2 for number in range(count)], pa.int64())
    table = pa.table({"image": pa.array(cells, IMAGE_TYPE), "captions": captions, "label": labels})
    features = {"label": {"names": ["cat", "sea lion"], "_type": "ClassLabel"}}
    info = json.dumps({"info": {"features": features}})
    return table.replace_schema_metadata({"huggingface": info})


def save_dataset(folder: Path, table: pa.Table) -> None:
    """What `datasets.Dataset.save_to_disk` writes, in two files."""
    folder.mkdir(parents=True)
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    parts = [table.slice(0, 3), table.slice(3)]
    for name, part in zip(names, parts, strict=True):
        with pa.OSFile(str(folder / name), "wb") as sink:
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(part)
    state = {"_data_files": [{"filename": name} for name in names], "_indices_files": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")


def test_saved_hugging_face_dataset(tmp_path: Path) -> None:
    save_dataset(tmp_path / "set" / "train", embedded_table(5))
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    without = run_tool(tmp_path / "set", tmp_path / "out")
    assert without.returncode == 2
    assert "has the splits train, test; choose one with --split" in without.stderr
    options = ["--split", "train", "--label-column", "label"]
    summary = made(tmp_path / "set", tmp_path / "out", *options)
    assert (summary["num_samples"], summary["num_captions"]) == (5, 10)
    found = members(tmp_path / "out")
    assert [found[f"{n:09d}.jpg"] for n in range(5)] == [picture(n) for n in range(5)]
    assert (tmp_path / "out" / "classnames.txt").read_text() == "cat\nsea lion\n"
    index = indexed(tmp_path / "out", "json:captions")
    assert index.label.tolist() == [0, 1, 0, 1, 0]
    expected = {f"{n:09d}": [f"first {n}", f"second {n}"] for n in range(5)}
    assert indexed_texts(index) == expected
    made(tmp_path / "set", tmp_path / "mixed", *options, "--shuffle-seed", 3)
    assert members(tmp_path / "mixed") == found
    assert list(members(tmp_path / "mixed")) != list(found)


def test_labels_alone_become_captions_by_the_template(tmp_path: Path) -> None:
    save_dataset(tmp_path / "set", embedded_table(5).drop_columns(["captions"]))
    made(tmp_path / "set", tmp_path / "out", "--label-column", "label", "--template", "one {c}!")
    index = indexed(tmp_path / "out", "txt")
    texts = [texts[0] for texts in indexed_texts(index).values()]
    assert texts == ["one cat!", "one sea lion!"] * 2 + ["one cat!"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("state.json", b"{}", "the JSON files of"),
        ("state.json", b"{", "Expecting property name"),
        ("state.json", b'{"_indices_files": [1]}', "call flatten_indices() first"),
        ("data-00001-of-00002.arrow", b"x" * 100, "error: "),
        ("t.parquet", b"x" * 100, "error: "),
    ],
)
def test_a_damaged_table_is_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    save_dataset(tmp_path / "set", embedded_table(5))
    (tmp_path / "set" / name).write_bytes(content)
    source = tmp_path / "set" / (name if name.endswith("parquet") else "")
    done = run_tool(source, tmp_path / "out")
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_parquet_with_image_bytes_over_several_row_groups(tmp_path: Path) -> None:
    table = embedded_table(7)
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=3)
    summary = made(tmp_path / "t.parquet", tmp_path / "out", "--threads", 3)
    assert (summary["num_samples"], summary["num_captions"]) == (7, 14)
    found = members(tmp_path / "out")
    assert [found[f"{n:09d}.jpg"] for n in range(7)] == [picture(n) for n in range(7)]
    refused = run_tool(tmp_path / "t.parquet", tmp_path / "mixed", "--shuffle-seed", 1)
    assert refused.returncode == 2
    assert "leave out --shuffle-seed" in refused.stderr


def test_cells_without_bytes_name_files_inside_the_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(picture(1))
    (tmp_path / "out.jpg").write_bytes(picture(2))
    cells = [{"path": "a.jpg"}, {"path": "../out.jpg"}, {"path": None}, None]
    table = pa.table({"image": pa.array(cells, IMAGE_TYPE), "text": ["w", "x", "y", "z"]})
    pq.write_table(table, tmp_path / "in" / "t.parquet")
    summary = made(tmp_path / "in" / "t.parquet", tmp_path / "out", status=1)
    assert summary["skipped"] == {"missing_file": 2, "outside_folder": 1}
    assert members(tmp_path / "out") == {"000000000.jpg": picture(1), "000000000.txt": b"w"}


def test_folder_with_texts_beside_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    paths = write_pictures(folder / "deep", 3)
    for path, text in zip(paths[:2], [" spaced \n", "犬"], strict=True):
        path.with_suffix(".txt").write_text(text, encoding="utf-8")
    (folder / "lone.txt").write_text("no picture")
    (folder / ".hidden.jpg").write_bytes(b"x")
    summary = made(folder, tmp_path / "out")
    assert summary["skipped"] == {"missing_caption": 1, "missing_file": 1}
    assert members(tmp_path / "out")["000000000.txt"] == b" spaced \n"
    assert indexed_texts(indexed(tmp_path / "out", "txt")) == {
        "000000000": ["spaced"],
        "000000001": ["犬"],
    }


def test_classes_by_sub_folder_are_ready_for_zero_shot(tmp_path: Path) -> None:
    from tessera.evaluation.labelled import read_prompts

    for number, name in enumerate(["7", "10", "sea lion"]):
        write_pictures(tmp_path / "set" / name, number + 1)
    (tmp_path / "set" / "stray.jpg").write_bytes(picture(0))
    summary = made(tmp_path / "set", tmp_path / "out", "--labels-from-folders")
    assert summary["skipped"] == {"missing_label": 1}
    index = indexed(tmp_path / "out", "txt")
    assert index.label.tolist() == [0, 0, 1, 2, 2, 2]
    texts = [texts[0] for texts in indexed_texts(index).values()]
    assert texts[0] == "a photo of a 10."
    assert texts[-1] == "a photo of a sea lion."
    assert read_prompts(tmp_path / "out").class_names == ["10", "7", "sea lion"]


def test_class_folders_and_their_shards_have_the_same_prompts(tmp_path: Path) -> None:
    from tessera.evaluation.labelled import open_labelled, read_prompts

    source = tmp_path / "set"
    for number, name in enumerate(["golden_retriever", "sea__lion", "tree"]):
        write_pictures(source / name, number + 1)
    made(source, tmp_path / "plain", "--labels-from-folders")
    assert read_prompts(tmp_path / "plain") == open_labelled(str(source)).prompts()
    assert read_prompts(tmp_path / "plain").class_names == ["golden retriever", "sea lion", "tree"]
    texts = indexed_texts(indexed(tmp_path / "plain", "txt")).values()
    assert next(iter(texts)) == ["a photo of a golden retriever."]
    made(source, tmp_path / "asked", "--labels-from-folders", "--template", "one {}!")
    assert read_prompts(tmp_path / "asked").templates == ["one {c}!"]
    (source / "classnames.txt").write_text("dog\nseal\noak\n", "utf-8")
    (source / "zeroshot_classification_templates.txt").write_text("a {}\n", "utf-8")
    made(source, tmp_path / "named", "--labels-from-folders")
    assert read_prompts(tmp_path / "named") == open_labelled(str(source)).prompts()
    assert read_prompts(tmp_path / "named").of_class(2) == ["a oak"]


def test_numbered_class_folders_keep_their_numbers(tmp_path: Path) -> None:
    for name in ("10", "9"):
        write_pictures(tmp_path / "set" / name, 1)
    made(tmp_path / "set", tmp_path / "out", "--labels-from-folders")
    assert (tmp_path / "out" / "classnames.txt").read_text("utf-8") == "9\n10\n"


@pytest.mark.parametrize(
    ("labels", "numbers", "names"),
    [
        (["b c", "a", " b c "], [1, 0, 1], ["a", "b c"]),
        (["10", "9", "10"], [10, 9, 10], None),
    ],
)
def test_labels_of_a_table(
    tmp_path: Path, labels: list[str], numbers: list[int], names: list[str] | None
) -> None:
    paths = write_pictures(tmp_path, 4)
    rows = [[path.name, label] for path, label in zip(paths, [*labels, ""], strict=True)]
    table = write_csv(tmp_path / "t.csv", [["path", "kind"], *rows])
    summary = made(table, tmp_path / "out", "--label-column", "kind")
    assert summary["skipped"] == {"missing_label": 1}
    assert indexed(tmp_path / "out", "txt").label.tolist() == numbers
    written = tmp_path / "out" / "classnames.txt"
    assert (written.read_text().splitlines() if written.exists() else None) == names


def test_hostile_rows_are_counted_and_the_good_ones_kept(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    write_pictures(folder, 2)
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.jpg").write_bytes(b"<html>no picture</html>")
    (folder / "cut.jpg").write_bytes(picture(1)[:-200])
    (folder / "moving.gif").write_bytes(picture(1, "GIF"))
    (folder / "sub").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    (tmp_path / "secret.jpg").write_bytes(picture(9))
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    lines = [
        b"image,caption",
        b"photo 0.v2.jpg,good",
        b"../secret.jpg,x",
        f"{tmp_path}/secret.jpg,x".encode(),
        b"link.jpg,x",
        b"https://example.com/a.jpg,x",
        b"nowhere.jpg,x",
        b",x",
        b"a" * 5000 + b".jpg,x",
        b"sub,x",
        b"pipe.jpg,x",
        b"empty.jpg,x",
        b"page.jpg,x",
        b"cut.jpg,x",
        b"moving.gif,x",
        "photo 0.v2.jpg,é, ä".encode(),
        b"photo 0.v2.jpg",
        b"photo 0.v2.jpg,  ",
        b"photo 0.v2.jpg,caf\xe9",
        b"photo 0.v2.jpg," + b"long " * 20_000,
        b"nul\0.jpg,x",
        b"",
        b"photo 1.v2.png,also good",
        b'photo 1.v2.png,"never closed',
        b"photo 1.v2.png,swallowed",
    ]
    (folder / "t.csv").write_bytes(b"\r\n".join(lines))
    done = run_tool(folder / "t.csv", tmp_path / "out")
    assert done.returncode == 1, done.stderr
    assert "20 entries of the source were skipped and only 2 taken" in done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["skipped"] == {
        "outside_folder": 4,
        "unreadable_row": 4,
        "unreadable_file": 3,
        "missing_file": 2,
        "missing_caption": 1,
        "bad_caption_encoding": 1,
        "caption_too_long": 1,
        "empty_image": 1,
        "not_an_image": 1,
        "truncated_image": 1,
        "unsupported_image": 1,
    }
    assert "line 3: ../secret.jpg leads to" in done.stdout
    assert "and 1 more in skipped.jsonl" in done.stdout
    listed = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    assert len(listed) == summary["num_skipped"] == 20
    assert any("lines 24 to 25 are left out" in line for line in listed)
    assert indexed_texts(indexed(tmp_path / "out", "txt")) == {
        "000000000": ["good"],
        "000000020": ["also good"],
    }


def test_images_are_converted_and_made_smaller_when_asked(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    names = ["a.gif", "b.bmp", "c.tiff", "d.avif", "e.jpg", "f.png", "g.jpg", "h.tiff"]
    for name in names[:6]:
        (folder / name).write_bytes(picture(1, Image.registered_extensions()[Path(name).suffix]))
    turned = Image.fromarray(np.zeros((40, 200, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(folder / "g.jpg", exif=exif)
    deep = np.full((40, 60), 0x8000, np.uint16)
    Image.fromarray(deep).save(folder / "h.tiff")
    for name in names:
        (folder / name).with_suffix(".txt").write_text(name)
    plain = made(folder, tmp_path / "plain", status=1)
    assert plain["skipped"] == {"unsupported_image": 5}
    summary = made(folder, tmp_path / "out", "--convert", "--max-side", 100)
    assert (summary["num_samples"], summary["num_changed"]) == (8, 6)
    found = members(tmp_path / "out")
    assert found["000000004.jpg"] == (folder / "e.jpg").read_bytes()
    assert found["000000005.png"] == (folder / "f.png").read_bytes()
    upright = Image.open(io.BytesIO(found["000000006.jpg"]))
    assert (upright.size, upright.getexif().get(0x0112)) == ((20, 100), None)
    assert abs(int(np.asarray(Image.open(io.BytesIO(found["000000007.jpg"]))).mean()) - 128) < 3
    assert indexed(tmp_path / "out", "txt").num_samples == 8
    made(folder, tmp_path / "short", "--short-side", 24, status=1)
    found = members(tmp_path / "short")
    sizes = {Image.open(io.BytesIO(found[n])).size for n in found if not n.endswith("txt")}
    assert sizes == {(32, 24), (24, 120)}


def test_shards_are_cut_by_count_and_bytes_and_always_the_same(tmp_path: Path) -> None:
    for number, path in enumerate(write_pictures(tmp_path / "photos", 10)):
        path.with_suffix(".txt").write_text(f"text {number}")
    first = made(tmp_path / "photos", tmp_path / "a", "--samples-per-shard", 4, "--threads", 1)
    assert first["num_shards"] == 3
    made(tmp_path / "photos", tmp_path / "b", "--samples-per-shard", 4, "--threads", 4)
    for name in ("00000.tar", "00001.tar", "00002.tar"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    one_each = made(tmp_path / "photos", tmp_path / "c", "--bytes-per-shard", 1)
    assert one_each["num_shards"] == 10
    orders = []
    for out, seed in (("d", 1), ("e", 1), ("f", 2)):
        made(tmp_path / "photos", tmp_path / out, "--shuffle-seed", seed)
        orders.append(list(members(tmp_path / out)))
        assert members(tmp_path / out) == members(tmp_path / "a")
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("nowhere.csv", [], "there is no"),
        ("t.xlsx", [], "is not a .csv, .tsv, .txt, .jsonl, .json or .parquet file"),
        ("t.csv", ["--caption-column", "nope"], "has no column 'nope'; it has: 'image', 'other'"),
        ("t.csv", [], "name one with --caption-column, or say --no-header"),
        ("t.csv", ["--images", "/nowhere"], "there is no folder /nowhere"),
        ("t.csv", ["--caption-column", "other"], "no usable sample (1 missing_file); line 2"),
        ("empty", [], "holds no pictures"),
        ("bare", [], "--labels-from-folders"),
        ("t.csv", ["--labels-from-folders"], "needs a folder of pictures"),
        ("bare", ["--max-side", "5", "--short-side", "5"], "not both"),
        ("bare", ["--samples-per-shard", "0"], "--samples-per-shard must be at least 1"),
        ("bare", ["--template", "a photo"], "--template must hold {c}"),
    ],
)
def test_wrong_use_gives_status_2_and_leaves_nothing(
    tmp_path: Path, source: str, options: list[str], message: str
) -> None:
    write_csv(tmp_path / "t.csv", [["image", "other"], ["gone.jpg", "text"]])
    (tmp_path / "t.xlsx").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    write_pictures(tmp_path / "bare", 1)
    before = sorted(tmp_path.iterdir())
    done = run_tool(tmp_path / source, tmp_path / "out", *options)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert done.stdout == ""
    assert sorted(tmp_path.iterdir()) == before


def test_nothing_is_written_over(tmp_path: Path) -> None:
    path = write_pictures(tmp_path / "photos", 1)[0]
    path.with_suffix(".txt").write_text("text")
    (tmp_path / "out").mkdir()
    made(tmp_path / "photos", tmp_path / "out")
    before = (tmp_path / "out" / "00000.tar").read_bytes()
    again = run_tool(tmp_path / "photos", tmp_path / "out")
    assert again.returncode == 2
    assert "is not empty; name another folder" in again.stderr
    assert (tmp_path / "out" / "00000.tar").read_bytes() == before


def test_a_shard_that_cannot_be_written_gives_status_1_and_leaves_nothing(tmp_path: Path) -> None:
    for path in write_pictures(tmp_path / "photos", 12):
        path.with_suffix(".txt").write_text("text")
    tool = [sys.executable, "tools/make_shards.py", tmp_path / "photos", "--out", tmp_path / "out"]
    limited = ["bash", "-c", 'ulimit -f 8; exec "$@"', "bash", *map(str, tool)]
    done = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "no shards were written" in done.stderr.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_interrupt_gives_status_130_and_leaves_nothing(tmp_path: Path) -> None:
    big = picture(1, size=(1600, 1200))
    (tmp_path / "photos").mkdir()
    for number in range(60):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(big)
        (tmp_path / "photos" / f"{number}.txt").write_text("text")
    command = [
        sys.executable,
        "tools/make_shards.py",
        str(tmp_path / "photos"),
        "--max-side",
        "800",
    ]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "out")],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.partial/content/*.tar")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    printed, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert printed == ""
    assert told.splitlines()[-1] == "stopped; no shards were written"
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
