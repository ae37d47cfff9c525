"""A file system without locks (Lustre, NFS) is not taken for another process that is at work."""

import errno
import fcntl
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tessera.pipeline.durable import remove_partials, work_folder, write_text
from tessera.pipeline.file_lock import FileLock, HeldError
from tessera.tools.captioning.output import CaptionFile
from tessera.training.run_folder import RunFolder
from tests.unit.training.test_config import small

ROOT = Path(__file__).resolve().parents[3]
HOLDER = """
import sys, time
from pathlib import Path
from tessera.pipeline.file_lock import FileLock
import fcntl
def none(*_): raise OSError(38, "Function not implemented")
fcntl.flock = none
lock = FileLock(Path(sys.argv[1]).open("w"))
print("locked", flush=True)
time.sleep(60)
"""


@pytest.fixture(params=[errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_file: object, _how: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", fail)
    monkeypatch.setattr("tessera.pipeline.file_lock._warned", set())


@pytest.mark.usefixtures("no_locks")
def test_a_run_folder_is_claimed_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = small()
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    with caplog.at_level(logging.WARNING):
        first.claim(config)
    assert "no file locks" in caplog.text
    with pytest.raises(ValueError, match=rf"another process.*has no file locks.*{os.getpid()}"):
        second.claim(config)
    first.close()
    second.claim(config)
    second.close()
    assert not list(tmp_path.glob("run/*.held"))


@pytest.mark.usefixtures("no_locks")
def test_work_folders_files_and_partials_do_without(tmp_path: Path) -> None:
    with work_folder(tmp_path / "out") as work:
        with pytest.raises(RuntimeError, match="another process is making"):
            work_folder(tmp_path / "out").__enter__()
        (work / "a").write_text("made")
        work.rename(tmp_path / "out")
    write_text(tmp_path / "file.json", "new")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file.json", "out"]
    young, old = tmp_path / ".x.partial-1", tmp_path / ".y.partial-2"
    for path in (young, old):
        path.write_text("half")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    remove_partials(tmp_path)
    assert young.exists(), "another process may be writing it"
    assert not old.exists()


@pytest.mark.usefixtures("no_locks")
def test_a_caption_file_opens(coloured_index: Path, tmp_path: Path) -> None:
    from tessera.pipeline.index.dataset import open_dataset

    dataset = open_dataset(str(coloured_index))
    for _ in range(2):
        with CaptionFile(tmp_path / "new.jsonl", dataset, {"a": 1}, {}, 4) as file:
            assert file.num_done == 0


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.usefixtures("no_locks")
def test_a_killed_holder_of_this_machine_is_seen(tmp_path: Path, *, ended: bool) -> None:
    path = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        if not ended:
            with pytest.raises(HeldError) as caught:
                FileLock(path.open("w"))
            assert f"process {holder.pid} of" in caught.value.remedy
            assert str(path) + ".held" in caught.value.remedy
    finally:
        holder.kill()
        holder.communicate()
    with FileLock(path.open("w")):
        assert json.loads(Path(f"{path}.held").read_text())["pid"] == os.getpid()
    assert [each.name for each in tmp_path.iterdir()] == ["lock"]


@pytest.mark.usefixtures("no_locks")
def test_the_holder_on_another_machine_is_named_and_kept(tmp_path: Path) -> None:
    held = tmp_path / "lock.held"
    held.write_text(json.dumps({"pid": 1, "machine": ["node7", "boot"], "started": "5"}))
    with pytest.raises(HeldError) as caught:
        FileLock((tmp_path / "lock").open("w"))
    assert "process 1 of node7" in caught.value.remedy
    assert "remove that file" in caught.value.remedy
    assert held.exists()


@pytest.mark.usefixtures("no_locks")
def test_where_there_are_no_hard_links_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with FileLock((tmp_path / "lock").open("w")):
        with pytest.raises(HeldError):
            FileLock((tmp_path / "lock").open("w"))
    assert [each.name for each in tmp_path.iterdir()] == ["lock"]


def test_another_error_is_named_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_file: object, _how: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match=r"cannot be locked \(Input/output error\).*file\.lock"):
        FileLock((tmp_path / "file.lock").open("w"))
    with pytest.raises(ValueError, match="cannot be locked"):
        RunFolder(tmp_path / "run").claim(small())
