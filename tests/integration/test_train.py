"""`python train.py` as a person runs it: exit statuses, messages, kill and resume."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
STEPS = 10


def arguments(index: Path, run_dir: Path, *more: str) -> list[str]:
    fixed = {
        "--data.train": index,
        "--evaluation.retrieval": index,
        "--evaluation.zero-shot": index,
        "--run-dir": run_dir,
        "--model": "tessera-demo",
        "--total-samples": 32 * STEPS,
        "--batch-size": 32,
        "--optim.warmup-samples": 64,
        "--save-every": 3,
        "--log-every": 2,
    }
    flat = [str(word) for pair in fixed.items() for word in pair]
    return [sys.executable, "train.py", "flickr8k", *flat, *more]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )


def losses(run_dir: Path) -> list[tuple[int, float]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [(record["step"], record["loss"]) for record in map(json.loads, lines)]


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 180
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def unbroken(coloured_index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    run_dir = tmp_path_factory.mktemp("unbroken") / "run"
    finished = run(arguments(coloured_index, run_dir))
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "report.html" in finished.stdout
    assert "open the report" in finished.stdout
    return run_dir


def test_a_finished_run_leaves_everything(unbroken: Path) -> None:
    names = {path.name for path in unbroken.iterdir()}
    assert {"config.json", "metrics.jsonl", "evaluation.json", "report.html", "train.log"} <= names
    assert [step for step, _ in losses(unbroken)] == list(range(1, STEPS + 1))
    scores = json.loads((unbroken / "evaluation.json").read_text())
    rows = {row["metric"]: row for row in scores["scores"]}
    assert (rows["acc1"]["task"], rows["acc1"]["chance"]) == ("zeroshot_classification", 1 / 6)
    assert rows["image_retrieval_recall@1"]["n"] == 192
    page = (unbroken / "report.html").read_text()
    assert "data:image/" in page
    assert "Retrieval" in page


def test_open_clip_opens_the_checkpoint(unbroken: Path) -> None:
    import open_clip

    folder = max((unbroken / "checkpoints").iterdir())
    model = open_clip.create_model(f"local-dir:{folder}")
    theirs, ours = model.state_dict(), load_file(folder / "open_clip_model.safetensors")
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)
    with torch.inference_mode():
        image = model.encode_image(torch.zeros(1, 3, 64, 64))  # pyright: ignore[reportCallIssue]
    assert image.shape == (1, 128)


def test_a_mask_that_follows_the_model_goes_on_bit_for_bit(
    coloured_index: Path, tmp_path: Path
) -> None:
    """Weights of step 4 mask the batches 4 to 7, also where a run is resumed at step 6."""
    options = ("--mask.embedding-last", "1", "--mask.embedding-every", "4")
    whole = run(arguments(coloured_index, tmp_path / "whole", *options))
    assert whole.returncode == 0, whole.stderr
    command = arguments(coloured_index, tmp_path / "run", *options)
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_for(tmp_path / "run" / "checkpoints" / "step_000000006", process)
    process.kill()
    process.communicate()
    resumed = run(command)
    assert resumed.returncode == 0, resumed.stderr
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    pixels = run(arguments(coloured_index, tmp_path / "pixels"))
    assert pixels.returncode == 0
    same = [
        a == b for a, b in zip(losses(tmp_path / "whole"), losses(tmp_path / "pixels"), strict=True)
    ]
    assert same[:4] == [True] * 4
    assert not all(same)


def test_evaluating_on_the_way_changes_nothing_of_the_training(
    unbroken: Path, coloured_index: Path, tmp_path: Path
) -> None:
    """Also where the run is killed on the way: each evaluation is kept once."""
    more = ("--evaluate-every", "4", "--evaluation.linear-probe", *(str(coloured_index),) * 2)
    command = arguments(coloured_index, tmp_path / "run", *more)
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_for(tmp_path / "run" / "checkpoints" / "step_000000006", process)
    process.kill()
    process.communicate()
    resumed = run(command)
    assert resumed.returncode == 0, resumed.stderr
    assert losses(tmp_path / "run") == losses(unbroken)
    lines = (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert [each["step"] for each in found] == [4, 8, STEPS]
    rows = [{row["metric"]: row for row in each["scores"]} for each in found]
    assert all(each["lp_acc1"]["n"] == 96 for each in rows)
    last = json.loads((unbroken / "evaluation.json").read_text())
    of_pairs = [
        [row for row in each["scores"] if row["task"] == "zeroshot_retrieval"]
        for each in (found[0], found[-1], last)
    ]
    assert of_pairs[1] == of_pairs[2]
    assert of_pairs[0] != of_pairs[2]


def test_the_same_command_again_says_that_it_is_finished(
    unbroken: Path, coloured_index: Path
) -> None:
    again = run(arguments(coloured_index, unbroken))
    assert again.returncode == 0
    assert "finished" in again.stdout


def test_killed_at_any_moment_it_goes_on_bit_for_bit(
    unbroken: Path, coloured_index: Path, tmp_path: Path
) -> None:
    command = arguments(coloured_index, tmp_path / "run")
    for checkpoint in (3, 6):
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        wait_for(tmp_path / "run" / "checkpoints" / f"step_{checkpoint:09d}", process)
        process.kill()
        process.communicate()
        assert not (tmp_path / "run" / "evaluation.json").exists()
    assert run(command).returncode == 0
    assert losses(tmp_path / "run") == losses(unbroken)
    for name in ("open_clip_model.safetensors", "optimizer.safetensors"):
        one, other = (
            (path / "checkpoints" / f"step_{STEPS:09d}" / name).read_bytes()
            for path in (unbroken, tmp_path / "run")
        )
        assert one == other, name


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
def test_asked_to_end_it_saves_and_says_so(
    coloured_index: Path, tmp_path: Path, signum: int, status: int
) -> None:
    command = arguments(coloured_index, tmp_path / "run", "--save-every", "4")
    command[command.index("--total-samples") + 1] = "320000"
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(tmp_path / "run" / "checkpoints" / "step_000000004", process)
    os.kill(process.pid, signum)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == status, messages
    assert "same command goes on" in messages
    assert "Traceback" not in messages
    last = max((tmp_path / "run" / "checkpoints").iterdir())
    assert losses(tmp_path / "run")[-1][0] == int(last.name.removeprefix("step_"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["flicker8k"], "did you mean 'flickr8k'"),
        (["demo", "--mask.knid", "none"], "--mask.kind"),
        (["demo", "--mask.kind", "clusters"], "cluster"),
        (["demo", "--mask.mask-ratio", "1.5"], "mask_ratio"),
        (["demo", "--model", "ViT-B-61"], "ViT-B-16"),
        (["flickr8k", "--data.train", "nowhere/at/all"], "python tools/index_shards.py"),
    ],
)
def test_wrong_use_ends_at_once_with_the_way_out(
    words: list[str], message: str, tmp_path: Path
) -> None:
    failed = run([sys.executable, "train.py", *words, "--run-dir", str(tmp_path / "run")])
    assert failed.returncode == 2
    assert message in failed.stdout + failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize("what", ["index", "tokenizer", "model"])
def test_another_index_tokenizer_or_model_is_refused_on_resume(
    what: str, unbroken: Path, coloured_index: Path, tmp_path: Path
) -> None:
    """The checkpoint knows what it was trained with, whatever the configuration says."""
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(unbroken, copy)
    (copy / "evaluation.json").unlink()
    state = max((copy / "checkpoints").iterdir()) / "state.json"
    content = json.loads(state.read_text())
    now = content[f"{what}_fingerprint"][:16]
    content[f"{what}_fingerprint"] = "0" * 64
    state.write_text(json.dumps(content))
    failed = run(arguments(coloured_index, copy))
    assert failed.returncode == 1
    assert f"{what} 0000000000000000" in failed.stderr
    assert now in failed.stderr
    assert "Traceback" not in failed.stderr


def test_dry_run_says_what_would_run(coloured_index: Path, tmp_path: Path) -> None:
    shown = run(arguments(coloured_index, tmp_path / "run", "--dry-run"))
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert lines[0].split()[0] == "changed"
    assert "--total-samples 320  (the recipe: 64000)" in shown.stdout
    assert "--mask.mask-ratio" not in shown.stdout
    for words in ("M parameters (image tower", "visible patches", "epochs", "memory", "time  "):
        assert words in shown.stdout
    assert not (tmp_path / "run").exists()
    everything = run(arguments(coloured_index, tmp_path / "run", "--dry-run", "--verbose"))
    assert "--mask.mask-ratio 0.5" in everything.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--init-from", "nowhere.pt"), "'nowhere.pt' is neither a file nor a folder"),
        (("--init-from", "WEIGHTS"), "does not fit 'tessera-demo'"),
        (("--data.captions", "rewritten"), "rewritten"),
        (("--optim.warmup-samples", "999"), "longer than the run of 320 pairs"),
        (("--evaluation.zero-shot", "nowhere/else"), "nowhere/else"),
        (("--accumulation", "5"), "does not divide the 32 pairs"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_dry_run_refuses_what_a_start_refuses(
    words: tuple[str, ...],
    message: str,
    coloured_index: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process, for speed; the run must not take the root logger from pytest."""
    from safetensors.torch import save_file

    import train

    monkeypatch.setattr(train, "set_up_logging", lambda *_args, **_options: None)

    save_file({"logit_scale": torch.tensor(1.0)}, tmp_path / "w.safetensors")
    words = tuple(str(tmp_path / "w.safetensors") if w == "WEIGHTS" else w for w in words)
    for dry in (("--dry-run",), ()):
        argv = arguments(coloured_index, tmp_path / "run", *dry, *words)[2:]
        assert train.main(argv) == 2
        assert message in capsys.readouterr().err


def test_a_failed_start_does_not_block_and_a_constant_run_is_extended(
    coloured_index: Path, tmp_path: Path
) -> None:
    """The longer run's losses and weights are those of one that was as long from its start."""
    more = ("--optim.schedule", "constant", "--evaluation.at-start")
    failed = run(arguments(coloured_index, tmp_path / "run", *more, "--init-from", "nowhere.pt"))
    assert failed.returncode == 2
    assert (tmp_path / "run" / "config.json").exists()
    command = arguments(coloured_index, tmp_path / "run", *more)
    first = run(command)
    assert first.returncode == 0, first.stderr
    assert "trains 7." in first.stdout
    assert "step 1/10" in first.stdout
    assert "python tools/export.py" in first.stdout
    command[command.index("--total-samples") + 1] = str(32 * 14)
    extended = run(command)
    assert extended.returncode == 0, extended.stderr
    whole = arguments(coloured_index, tmp_path / "whole", *more)
    whole[whole.index("--total-samples") + 1] = str(32 * 14)
    assert run(whole).returncode == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "run")) == 14
    one, other = (
        (path / "checkpoints" / "step_000000014" / "open_clip_model.safetensors").read_bytes()
        for path in (tmp_path / "run", tmp_path / "whole")
    )
    assert one == other
    lines = (tmp_path / "whole" / "evaluations.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 14]


def test_a_closed_pipe_is_no_error() -> None:
    words = f"{sys.executable} train.py --list | head -1; exit ${{PIPESTATUS[0]}}"
    done = run(["bash", "-c", words])
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.startswith("demo ")


def test_a_run_starts_from_another_runs_folder(
    unbroken: Path, coloured_index: Path, tmp_path: Path
) -> None:
    done = run(arguments(coloured_index, tmp_path / "run", "--init-from", str(unbroken)))
    assert done.returncode == 0, done.stderr
    assert f"from {unbroken}/checkpoints/step_000000010" in done.stdout
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "train.log").touch()
    none = run(arguments(coloured_index, tmp_path / "b", "--init-from", str(tmp_path / "empty")))
    assert none.returncode == 2
    assert "has no checkpoint yet" in none.stderr


def test_help_explains_every_field_with_its_unit() -> None:
    shown = run([sys.executable, "train.py", "demo", "--help"])
    assert shown.returncode == 0
    text = " ".join(shown.stdout.replace("│", " ").split())
    for words in ("Pairs per step over all ranks", "Share of patches dropped", "--dry-run"):
        assert words in text


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 9 MB: room for the run folder and no whole checkpoint of the model."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system takes rights that this process lacks")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_ends_with_a_message_and_nothing_half_written(
    small_disk: Path, coloured_index: Path
) -> None:
    failed = run(arguments(coloured_index, small_disk / "run"))
    assert failed.returncode == 1
    assert "disk is full" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert list((small_disk / "run" / "checkpoints").iterdir()) == []
    assert losses(small_disk / "run")[-1][0] >= 3, "what was logged is kept"


def test_a_run_folder_that_cannot_be_written_is_named(coloured_index: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    failed = run(arguments(coloured_index, tmp_path / "file" / "run"))
    assert failed.returncode == 2
    assert "--run-dir" in failed.stderr
    assert "Traceback" not in failed.stderr
