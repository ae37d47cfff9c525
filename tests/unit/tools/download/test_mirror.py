"""Ready-made shards: from the hub or a copy, whole or named."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from tessera.tools.download.__main__ import main
from tessera.tools.download.mirror import EXPECTED_SAMPLES, EXPECTED_SHARDS, take_mirror

NAMES = [f"cc12m-train-{number:04d}.tar" for number in range(3)]


def fill(folder: Path, names: list[str] = NAMES, listed: object = NAMES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        with tarfile.open(folder / name, "w") as tar:
            info = tarfile.TarInfo("000000001.jpg")
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
    if listed is not None:
        info = {"splits": {"train": {"filenames": listed}}}
        (folder / "_info.json").write_text(json.dumps(info))
    return folder


def test_a_copy_is_linked_and_may_move(tmp_path: Path) -> None:
    for place in ("copy", "moved"):
        local = fill(tmp_path / place)
        result = take_mirror(local, tmp_path / "out/shards")
        assert (result["num_shards"], result["missing"]) == (3, [])
        assert result["num_expected_samples"] == EXPECTED_SAMPLES == 10_968_539
        links = sorted((tmp_path / "out/shards").glob("*.tar"))
        assert [link.resolve() for link in links] == [local / name for name in NAMES]


def test_missing_tars_are_named_and_a_part_can_be_allowed(tmp_path: Path) -> None:
    local = fill(tmp_path / "copy", NAMES[:1])
    with pytest.raises(ValueError, match=r"2 of 3 tars are missing.*0001.tar, cc12m-train-0002"):
        take_mirror(local, tmp_path / "shards")
    assert take_mirror(local, tmp_path / "shards", allow_missing=True)["missing"] == NAMES[1:]
    without_list = fill(tmp_path / "bare", NAMES, None)
    missing = take_mirror(without_list, tmp_path / "other", allow_missing=True)["missing"]
    assert len(missing) == len(EXPECTED_SHARDS) - 3 == 2173


@pytest.mark.parametrize("damage", [b"", b"x" * 512, b"x" * 5120])
def test_cut_tars_are_named(tmp_path: Path, damage: bytes) -> None:
    local = fill(tmp_path / "copy")
    (local / NAMES[1]).write_bytes(damage)
    with pytest.raises(ValueError, match=NAMES[1]):
        take_mirror(local, tmp_path / "shards")


@pytest.mark.parametrize("listed", [["../x.tar"], ["a.zip"], 7])
def test_a_bad_list_is_refused(tmp_path: Path, listed: object) -> None:
    with pytest.raises(ValueError, match=r"_info\.json"):
        take_mirror(fill(tmp_path / "copy", listed=listed), tmp_path / "shards")


def test_other_tars_and_missing_folders_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "shards", ["00000.tar"], None)
    with pytest.raises(ValueError, match=r"other tars \(00000\.tar\)"):
        take_mirror(fill(tmp_path / "copy"), tmp_path / "shards")
    with pytest.raises(FileNotFoundError):
        take_mirror(tmp_path / "none", tmp_path / "shards2")


def test_the_hub_is_asked_for_the_shards_and_their_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[dict] = []

    def snapshot_download(repository: str, **options: object) -> None:
        asked.append({"repository": repository, **options})
        fill(Path(str(options["local_dir"])))

    hub = SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    out = tmp_path / "out"
    assert main([str(out), "--source", "mirror", "--dry-run"]) == 0
    assert not asked
    assert main([str(out), "--source", "mirror"]) == 0
    assert asked[0]["repository"] == "pixparse/cc12m-wds"
    assert asked[0]["allow_patterns"] == ["*.tar", "*info.json"]
    assert json.loads((out / "report/report.json").read_text())["num_shards"] == 3
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["missing"] == 0
