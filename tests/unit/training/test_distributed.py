"""Ranks agree, share tensors, and say who is missing."""

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tessera.training.distributed import RankError, Ranks, join_ranks


def run_rank(rank: int, port: int, work: Callable[[Ranks], None], out: Path) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
    try:
        with join_ranks(2.0) as ranks:
            work(ranks)
        (out / str(rank)).write_text("done")
    except Exception as error:
        (out / str(rank)).write_text(f"{type(error).__name__}: {error}")


def on_two_ranks(work: Callable[[Ranks], None], out: Path, port: int) -> list[str]:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=run_rank, args=(r, port, work, out)) for r in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert not process.is_alive()
    return [(out / str(rank)).read_text() for rank in range(2)]


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def share(ranks: Ranks) -> None:
    half = torch.arange(3, dtype=torch.bfloat16) if ranks.is_main else None
    tensors = {"a": half, "b": torch.tensor(7)} if half is not None else {}
    found = ranks.broadcast(tensors)
    assert torch.equal(found["a"], torch.arange(3, dtype=torch.bfloat16))
    assert found["b"].item() == 7
    assert ranks.on_main(lambda: ranks.rank + 5) == 5
    assert ranks.mean(torch.tensor(float(ranks.rank))).item() == 0.5
    assert ranks.gather(ranks.rank) == ([0, 1] if ranks.is_main else [])
    # One rank's wish at step 2 is everybody's answer at step 3.
    answers = [ranks.vote(ranks.rank == 1 and step == 2, step) for step in (1, 2, 3, 4)]
    assert answers == [False, False, True, False]
    assert not ranks.end_votes()
    ranks.vote(ranks.rank == 1, 5)
    assert ranks.end_votes()
    assert not ranks.end_votes()


def fail_on_main(ranks: Ranks) -> None:
    def refuse() -> None:
        raise ValueError("no data")

    ranks.on_main(refuse)


def hang_at_step_3(ranks: Ranks) -> None:
    step = 0
    with ranks.explained(lambda: step):
        for step in range(1, 9):
            if ranks.rank == 1 and step == 3:
                time.sleep(6)
                raise ValueError("was stuck")
            ranks.vote(False, step)
            time.sleep(1.1)


def test_ranks_share_and_agree(tmp_path: Path) -> None:
    assert on_two_ranks(share, tmp_path, free_port()) == ["done", "done"]


def test_a_failure_of_rank_0_ends_the_others_with_its_reason(tmp_path: Path) -> None:
    first, second = on_two_ranks(fail_on_main, tmp_path, free_port())
    assert first == "ValueError: no data"
    assert second.startswith("RankError: rank 1 ends because rank 0 failed: no data")


def test_a_rank_that_hangs_is_named_with_its_step(tmp_path: Path) -> None:
    waiting, _ = on_two_ranks(hang_at_step_3, tmp_path, free_port())
    assert "RankError: rank 0 of 2 cannot go on" in waiting
    assert "No sign of life from rank 1 (last heard of at step 2)" in waiting


def test_alone_everything_is_local() -> None:
    ranks = Ranks()
    assert ranks.on_main(lambda: 3) == 3
    assert ranks.vote(True, 1)
    assert ranks.end_votes(True)
    assert not ranks.end_votes()
    assert ranks.gather("x") == ["x"]
    with pytest.raises(RuntimeError, match="own"), ranks.explained(lambda: 1):
        raise RuntimeError("own")
    assert not issubclass(RankError, RuntimeError)


def test_ranks_that_find_the_port_taken_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": 0, "WORLD_SIZE": 2}
        for name, value in place.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
        with pytest.raises(RuntimeError, match=f"127.0.0.1:{port} .*another --master-port") as said:
            with join_ranks(5.0):
                pass
    assert "\n" not in str(said.value)
