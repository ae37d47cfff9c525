"""The demo data set on disk: layout, sameness, safety against interruption."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from PIL import Image

from tessera.pipeline.index import open_index
from tessera.recipes import demo, demo_scenes
from tessera.recipes.demo import draw_data
from tessera.recipes.demo_scenes import HELDOUT, Split, class_name

ROOT = Path(__file__).resolve().parents[2]
SIZES: dict[Split, int] = {"train": 70, "heldout": 40}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    draw_data(root, SIZES)
    return root


def members(tar_path: Path) -> dict[str, bytes]:
    with tarfile.open(tar_path) as tar:
        assert all((m.mtime, m.uid, m.gid, m.uname) == (0, 0, 0, "") for m in tar)
        return {m.name: handle.read() for m in tar if (handle := tar.extractfile(m)) is not None}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_same_bytes_for_any_number_of_workers_and_others_for_another_seed(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "num_cores", lambda: 1)
    draw_data(tmp_path / "one", SIZES)
    assert contents(tmp_path / "one" / "shards") == contents(drawn / "shards")
    draw_data(tmp_path / "one", SIZES, seed=1)
    assert contents(tmp_path / "one" / "shards") != contents(drawn / "shards")
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["index", "shards"]


def test_samples_hold_picture_captions_truth_and_label(drawn: Path) -> None:
    names = (drawn / "shards" / "heldout" / "classnames.txt").read_text().splitlines()
    assert names == [class_name(*pair) for pair in HELDOUT]
    keys: list[str] = []
    for split, size in SIZES.items():
        files = members(drawn / "shards" / split / "00000.tar")
        found = [name[:-4] for name in files if name.endswith(".jpg")]
        keys += found
        assert len(found) == size == open_index(drawn / "index" / split).num_samples
        for key in found:
            facts = json.loads(files[f"{key}.json"])
            assert files[f"{key}.txt"].decode() == facts["captions"][0]
            assert len(set(facts["captions"])) == 3
            with Image.open(io.BytesIO(files[f"{key}.jpg"])) as image:
                assert (image.format, image.mode) == ("JPEG", "RGB")
            pair = (facts["scene"]["things"][0]["colour"], facts["scene"]["background"])
            label = files.get(f"{key}.cls")
            assert (label is not None) == (split == "heldout") == (pair in HELDOUT)
            assert label is None or HELDOUT[int(label)] == pair
    assert len(set(keys)) == len(keys)


def test_pictures_are_drawn_anew_only_when_size_seed_or_drawer_changed(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def times_made() -> list[int]:
        draw_data(tmp_path, {"train": 3, "heldout": 2})
        made = ("shards/demo.json", "index/train/index.json", "index/heldout/index.json")
        return [(tmp_path / name).stat().st_mtime_ns for name in made]

    first = times_made()
    assert times_made() == first
    changed = tmp_path / "drawer.py"
    changed.write_text("other")
    monkeypatch.setattr(demo_scenes, "__file__", str(changed))
    # The new shards are as large as the old ones: an index that was kept would pass for theirs.
    assert all(new > old for new, old in zip(times_made(), first, strict=True))


def test_foreign_files_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"not the demo's \(no demo\.json\)"):
        draw_data(tmp_path, SIZES)
    assert (tmp_path / "shards" / "thesis.txt").exists()


@pytest.mark.parametrize("whole_group", [True, False])
def test_ctrl_c_ends_the_workers_at_once_and_leaves_nothing(
    tmp_path: Path, whole_group: bool
) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom tessera.recipes import demo\n"
        "demo.num_cores = lambda: 2\n"
        "try:\n    demo.draw_data(Path(sys.argv[1]), {'train': 100_000, 'heldout': 10})\n"
        "except KeyboardInterrupt:\n    sys.exit(130)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    first = tmp_path / ".shards.partial" / "content" / "new" / "train" / "00000.tar"
    deadline = time.monotonic() + 60
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    start = time.monotonic()
    (os.killpg if whole_group else os.kill)(child.pid, signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert time.monotonic() - start < 20
    assert child.returncode == 130
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []
