"""Ready-made shards: all there, whole, counted and linked."""

from __future__ import annotations

import io
import json
import shutil
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from tools.download.__main__ import main
from tools.download.mirror import EXPECTED_SHARDS, MirrorResult, fetch_mirror, take_mirror

NAMES = [f"cc12m-train-{number:04d}.tar" for number in range(4)]


def write_shard(path: Path, first: int, samples: int) -> None:
    with tarfile.open(path, "w") as tar:
        for number in range(first, first + samples):
            for suffix, data in (("jpg", b"picture" * 200), ("json", b"{}"), ("txt", b"a dog")):
                info = tarfile.TarInfo(f"{number:09d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def write_info(folder: Path, names: Sequence[str], lengths: Sequence[int] | None) -> None:
    split: dict[str, object] = {"name": "train", "filenames": list(names)}
    if lengths is not None:
        split |= {"shard_lengths": list(lengths), "num_samples": sum(lengths)}
    (folder / "_info.json").write_text(json.dumps({"splits": {"train": split}}))


@pytest.fixture
def local(tmp_path: Path) -> Path:
    folder = tmp_path / "local"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        write_shard(folder / name, number * 10, 5 + number)
    write_info(folder, NAMES, [5, 6, 7, 8])
    return folder


def take(source: Path, shards: Path, **options: object) -> MirrorResult:
    options = {"expected_shards": NAMES, "expected_samples": 26} | options
    return take_mirror(source, shards, tell=lambda _line: None, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("link", ["symlink", "hardlink"])
def test_shards_are_linked_and_counted(local: Path, tmp_path: Path, link: str) -> None:
    shards = tmp_path / "out/shards"
    for _ in range(2):  # the second time there is nothing to do
        result = take(local, shards, link=link, count=True)
        assert sorted(path.name for path in shards.iterdir()) == NAMES
        assert all((shards / name).samefile(local / name) for name in NAMES)
        assert (result.num_shards, result.num_expected_shards) == (4, 4)
        assert result.num_counted_samples == result.num_listed_samples == 26
        assert result.num_expected_samples == 26
        assert result.num_bytes == sum((local / name).stat().st_size for name in NAMES)
        assert not result.warnings
        assert "26 counted" in "\n".join(result.describe())
    assert (shards / NAMES[0]).is_symlink() == (link == "symlink")


def test_shards_may_stay_where_they_are(local: Path, tmp_path: Path) -> None:
    result = take(local, tmp_path / "out/shards", link="leave")
    assert result.shards == str(local)
    assert not (tmp_path / "out").exists()
    assert result.num_counted_samples is None
    assert "26 by its list, not counted" in "\n".join(result.describe())


def test_expected_count_is_that_of_the_papers(local: Path, tmp_path: Path) -> None:
    assert len(EXPECTED_SHARDS) == 2176
    assert EXPECTED_SHARDS[-1] == "cc12m-train-2175.tar"
    result = take_mirror(local, tmp_path / "s", tell=lambda _line: None)
    assert result.num_expected_samples == 10_968_539
    assert "4 tars, 2176 were expected" in result.warnings[0]
    assert "26 samples, 10968539 were expected" in result.warnings[1]


def test_missing_tars_are_named(local: Path, tmp_path: Path) -> None:
    (local / NAMES[2]).unlink()
    with pytest.raises(ValueError, match=rf"1 of 4 tars are missing .*{NAMES[2]}"):
        take(local, tmp_path / "shards")
    assert not (tmp_path / "shards").exists()
    result = take(local, tmp_path / "shards", allow_missing=True)
    assert result.missing == (NAMES[2],)
    assert result.num_listed_samples == 19
    assert "missing" in result.warnings[0]
    (local / "_info.json").unlink()
    with pytest.raises(ValueError, match="1 of 4 tars are missing"):
        take(local, tmp_path / "shards")


def test_list_without_counts_and_no_list(local: Path, tmp_path: Path) -> None:
    write_info(local, NAMES, None)
    assert take(local, tmp_path / "shards").num_listed_samples is None
    (local / "_info.json").unlink()
    result = take(local, tmp_path / "shards", count=True)
    assert (result.num_listed_samples, result.num_counted_samples) == (None, 26)


@pytest.mark.parametrize(
    ("damage", "count", "words"),
    [
        (lambda data: data[:-1024], False, "no end mark|cut short"),
        (lambda data: data[:5000], False, "cut short"),
        (lambda data: b"", False, "cut short"),
        (lambda data: b"\0" * len(data), False, "is no tar"),
        (lambda data: b"<html>" + data[6:257] + b"x" * 10 + data[267:], False, "is no tar"),
        (lambda data: data[:512] + data[1024:], True, "cannot be read"),
    ],
)
def test_damaged_tars_are_named(
    local: Path, tmp_path: Path, damage: object, count: bool, words: str
) -> None:
    path = local / NAMES[1]
    # tarfile pads to 10,240 bytes: take the padding off, so that every byte counts
    data = path.read_bytes().rstrip(b"\0")
    data += bytes(-len(data) % 512 + 1024)
    path.write_bytes(damage(data))  # type: ignore[operator]
    with pytest.raises(ValueError, match=f"1 tars are damaged: {NAMES[1]} .*({words})"):
        take(local, tmp_path / "shards", count=count)
    assert not (tmp_path / "shards").exists()


def test_count_that_differs_from_the_list(local: Path, tmp_path: Path) -> None:
    write_info(local, NAMES, [5, 6, 7, 9])
    with pytest.raises(ValueError, match="holds 8 samples where the list says 9"):
        take(local, tmp_path / "shards", count=True)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"splits": {"train": {}}}', '{"splits": {"t": {"filenames": ["../x.tar"]}}}'],
)
def test_bad_list_is_refused(local: Path, tmp_path: Path, text: str) -> None:
    (local / "_info.json").write_text(text)
    with pytest.raises(ValueError, match="no list of shards"):
        take(local, tmp_path / "shards")


def test_other_tars_in_the_output_are_not_mixed_in(local: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    write_shard(shards / "00000.tar", 0, 1)
    with pytest.raises(ValueError, match=r"not of this set \(00000.tar\)"):
        take(local, shards)
    (shards / "00000.tar").unlink()
    write_shard(shards / NAMES[0], 0, 1)
    with pytest.raises(ValueError, match="another file"):
        take(local, shards)


def test_moved_mirror_is_linked_anew(local: Path, tmp_path: Path) -> None:
    take(local, tmp_path / "shards")
    moved = local.rename(tmp_path / "moved")
    take(moved, tmp_path / "shards")
    assert all((tmp_path / "shards" / name).samefile(moved / name) for name in NAMES)


def test_folder_without_the_set(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        take(tmp_path / "none", tmp_path / "shards")
    with pytest.raises(FileNotFoundError, match="no tar of the set"):
        take(tmp_path, tmp_path / "shards")


def test_hub_is_asked_for_the_shards_and_their_list(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def snapshot_download(*, local_dir: str, **options: object) -> str:
        asked.update(options)
        shutil.copytree(local, local_dir, dirs_exist_ok=True)
        return local_dir

    hub = SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)  # type: ignore[arg-type]
    folder = fetch_mirror(tmp_path / "mirror", revision="main")
    assert take(folder, tmp_path / "shards", count=True).num_counted_samples == 26
    assert (asked["repo_id"], asked["repo_type"]) == ("pixparse/cc12m-wds", "dataset")
    assert asked["allow_patterns"] == ["*.tar", "*info.json"]


def test_hub_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match="pip install huggingface_hub"):
        fetch_mirror(tmp_path)


def test_a_dry_run_links_nothing(
    local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(tmp_path / "out"), "--source", "mirror", "--mirror", str(local), "--allow-missing"]
    assert main([*words, "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["num_shards"] == 4
    assert not list((tmp_path / "out").rglob("*.tar"))
    assert main(words) == 0
    assert len(list((tmp_path / "out" / "shards").glob("*.tar"))) == 4
