"""An index made in parts is, byte for byte, that of one run."""

import hashlib
import shutil
from pathlib import Path

import pytest

from tessera.pipeline.index import Part, ScanOptions, build_index, open_index, scan_part
from tests.conftest import sample_members, write_tar

OPTIONS = ScanOptions(sha256=True)
COUNT = 3


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """Five shards; the last one repeats keys of the first, and one sample has no caption."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(5):
        first = 3 * (number % 4)
        members = [m for n in range(first, first + 3) for m in sample_members(n)]
        if number == 2:
            members = [m for m in members if m[0] != f"{first:09d}.txt"]
        write_tar(folder / f"{number}.tar", members)
    return sorted(folder.glob("*.tar"))


def tables(index_dir: Path) -> dict[str, str]:
    return {
        path.relative_to(index_dir).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(index_dir.rglob("*.arrow"))
        if path.parent.name != "scans"
    }


def scan(shards: list[Path], out: Path, number: int) -> int:
    part = Part(number=number, count=COUNT)
    return scan_part(shards, out, part, options=OPTIONS).num_scanned_shards


def join(shards: list[Path], out: Path) -> str:
    report = build_index(shards, out, options=OPTIONS, join=True)
    assert report.num_scanned_shards == 0
    return report.fingerprint


def test_parts_in_any_order_and_one_of_them_twice_give_the_index_of_one_run(
    shards: list[Path], tmp_path: Path
) -> None:
    whole = build_index(shards, tmp_path / "whole", options=OPTIONS)
    out = tmp_path / "index"
    assert [scan(shards, out, number) for number in (3, 1, 2, 1)] == [1, 2, 2, 0]
    assert not out.exists()
    assert join(shards, out) == whole.fingerprint
    assert tables(out) == tables(tmp_path / "whole")
    assert open_index(out).rejections == {"duplicate_key": 3, "missing_caption": 1}
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["index", "shards", "whole"]


def test_a_missing_part_is_named_with_the_command_that_makes_it(
    shards: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "index"
    with pytest.raises(FileNotFoundError, match=r"no part .* was made yet.*--part 1/16"):
        join(shards, out)
    scan(shards, out, 1)
    scan(shards, out, 3)
    with pytest.raises(FileNotFoundError) as caught:
        join(shards, out)
    message = str(caught.value)
    assert "part 2 of 3 is missing (2 of its 2 shards are not scanned)" in message
    assert f"--out {out} --sha256 --part 2/3`" in message
    assert "part 1" not in message
    assert not out.exists()
    scan(shards, out, 2)
    shutil.copy(shards[3], shards[0])
    with pytest.raises(FileNotFoundError, match="part 1 of 3 is incomplete"):
        join(shards, out)
    assert scan(shards, out, 1) == 1
    join(shards, out)


def test_an_index_grows_by_parts_that_read_only_what_is_new(
    shards: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "index"
    build_index(shards[:3], out, options=OPTIONS)
    assert sum(scan(shards, out, number) for number in (1, 2, 3)) == 2
    join(shards, out)
    build_index(shards, tmp_path / "whole", options=OPTIONS)
    assert tables(out) == tables(tmp_path / "whole")


def test_a_plain_run_takes_what_parts_have_scanned(shards: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "index"
    scan(shards, out, 1)
    assert build_index(shards, out, options=OPTIONS).num_scanned_shards == 3


@pytest.mark.parametrize("text", ["", "3", "0/4", "5/4", "a/b", "1/0"])
def test_what_is_no_part_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="NUMBER/COUNT"):
        Part.parse(text)
