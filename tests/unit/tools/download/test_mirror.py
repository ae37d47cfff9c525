"""Ready-made shards: from the hub or a copy, whole or named."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tessera.tools.download import mirror
from tessera.tools.download.__main__ import main
from tessera.tools.download.mirror import EXPECTED_SAMPLES, EXPECTED_SHARDS, take_mirror

NAMES = EXPECTED_SHARDS[:3]


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "EXPECTED_SHARDS", NAMES)


def fill(folder: Path, names: tuple[str, ...] = NAMES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"tar")
    return folder


def test_a_copy_is_linked_and_may_move(tmp_path: Path, three: None) -> None:
    for place in ("copy", "moved"):
        local = fill(tmp_path / place)
        result = take_mirror(local, tmp_path / "out/shards")
        assert (result["num_shards"], result["missing"]) == (3, [])
        assert result["num_expected_samples"] == EXPECTED_SAMPLES == 10_968_539
        links = sorted((tmp_path / "out/shards").glob("*.tar"))
        assert [link.resolve() for link in links] == [local / name for name in NAMES]


def test_missing_tars_are_named_and_a_part_can_be_allowed(tmp_path: Path) -> None:
    local = fill(tmp_path / "copy", NAMES[:1])
    with pytest.raises(ValueError, match=r"2175 of 2176 tars are missing.*train-0001.tar"):
        take_mirror(local, tmp_path / "shards")
    assert len(take_mirror(local, tmp_path / "shards", allow_missing=True)["missing"]) == 2175
    fill(tmp_path / "other", ("00000.tar",))
    with pytest.raises(ValueError, match=r"other tars \(00000\.tar"):
        take_mirror(local, tmp_path / "other", allow_missing=True)
    with pytest.raises(FileNotFoundError):
        take_mirror(tmp_path / "none", tmp_path / "shards")


def test_the_hub_is_asked_for_the_shards_and_their_list(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    three: None,
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
