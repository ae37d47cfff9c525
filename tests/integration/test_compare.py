"""tools/compare.py over real runs of train.py, tiny ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tessera.tools import compare


def test_runs_are_made_compared_and_taken_over(
    coloured_index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, index = tmp_path / "compared", str(coloured_index)
    tool = ["--base", "demo", "--variants", "clip", "flip-50", "--out", str(out)]
    tool += ["--seeds", "0", "--forms", "samples", "--jobs", "2"]
    runs = ["--data.train", index, "--evaluation.zero-shot", index, "--evaluation.retrieval", index]
    runs += ["--total-samples", "64", "--batch-size", "32", "--optim.warmup-samples", "32"]
    runs += ["--num-threads", "1", "--data.num-threads", "1"]

    def said() -> dict[str, object]:
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    assert compare.main([*tool, "--report-only", "--", *runs]) == 1
    assert set(said()["failed"]) == {"clip-64-seed0", "flip-50-64-seed0"}  # pyright: ignore[reportArgumentType]
    assert compare.main([*tool, "--", *runs]) == 0
    assert said() == {"report": str(out / "comparison.html"), "finished": 2, "failed": {}}
    record = json.loads((out / "comparison.json").read_text("utf-8"))
    flip = record["tables"][0]["variants"]["flip-50"]
    assert 0.5 < flip["relative_flops"] < 0.7
    assert flip["scores"]["top-1"]["difference"]["interval_95"] is None
    assert "fewer than two seeds to compare for flip-50" in record["reading"][0]
    assert (out / "flip-50-64-seed0" / "report.html").is_file()
    assert compare.main([*tool, "--", *runs]) == 0
    assert said()["finished"] == 2
    assert compare.main([*tool, "--", *runs, "--batch-size", "16"]) == 2
    assert "holds a run with another configuration" in capsys.readouterr().err


def test_wrong_use_is_told_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main(["--variants", "clap", "--out", str(tmp_path / "a")]) == 2
    assert "there is no recipe 'clap'" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
