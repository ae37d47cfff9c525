"""No memory address, Python tuple or object's inner form in what programs print and record."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tessera.pipeline.printable import message_of

ROOT = Path(__file__).resolve().parents[2]
NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
INNER_FORMS = re.compile(
    r"\bat 0x[0-9a-f]+"
    r"|PosixPath\(|tensor\(|dtype\(|torch\.Size\(|<class '|<function |mappingproxy\("
    rf"|(?<![\w)])\({NUMBER}, (?:{NUMBER}(?:, )?)*\)"  # not a call, such as rgb(1, 2, 3) in a page
    rf"|(?<![\w)])\((?:{NUMBER}|'[^']*'),\)"
    r"|(?<![\w)])\('[^']*', "
)
RECORDS = {".json", ".jsonl", ".log", ".html", ".txt"}


def inner_forms(text: str) -> list[str]:
    return [text[max(0, m.start() - 60) : m.end() + 20] for m in INNER_FORMS.finditer(text)]


def run(cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / words[0]), *words[1:]]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "text",
    ["<Loader object at 0x7f12>", "got (1, 2)", "got (0.5,)", "in PosixPath('a')", "('a', 'b')",
     "<class 'int'>", "torch.Size([1])", "of dtype('int64')"],
)  # fmt: skip
def test_the_scan_finds_inner_forms(text: str) -> None:
    assert inner_forms(text)


@pytest.mark.parametrize("text", ["fill: rgb(1, 2, 3)", "a (red, round) thing", "[3, 224, 224]"])
def test_the_scan_leaves_ordinary_text(text: str) -> None:
    assert not inner_forms(text)


def test_a_run_and_its_records_hold_none(tmp_path: Path) -> None:
    dry = run(tmp_path, "train.py", "demo", "--mini", "--dry-run", "--verbose")
    done = run(tmp_path, "train.py", "demo", "--mini", "--run-dir", "run", "--num-threads", "1")
    assert (dry.returncode, done.returncode) == (0, 0), dry.stderr + done.stderr
    texts = {"dry run": dry.stdout + dry.stderr, "run": done.stdout + done.stderr}
    records = [path for path in tmp_path.rglob("*") if path.suffix in RECORDS]
    texts |= {str(path): path.read_text("utf-8", errors="replace") for path in records}
    assert {"config.json", "metrics.jsonl", "report.html", "state.json"} <= {
        p.name for p in records
    }
    found = {name: inner_forms(text) for name, text in texts.items()}
    assert not {name: forms for name, forms in found.items() if forms}


WRONG_USES = (
    ("--data.crop.scale", "0", "2"),
    ("--data.crop.ratio", "3", "1"),
    ("--data.augment.jitter", "-1", "0", "0", "0"),
    ("--mask.embedding-first", "2"),
    ("--mask.kind", "random", "--mask.grid", "4", "4"),
    ("--data.captions", "caption", "caption"),
    ("--data.captions", "caption=0"),
    ("--optim.beta1", "2"),
    ("--evaluation.linear-probe", "one"),
    ("--image-size", "63"),
)


@pytest.mark.parametrize("words", WRONG_USES, ids=" ".join)
def test_a_message_about_wrong_use_holds_none(
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process, for speed."""
    import train

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "set_up_logging", lambda *_args, **_options: None)
    try:
        status = train.main(["demo", *words, "--dry-run"])
    except SystemExit as end:
        status = end.code
    said = "".join(capsys.readouterr())
    assert status == 2, said
    assert not inner_forms(said)


def test_an_exception_of_a_library_is_said_without_its_inner_form() -> None:
    said = message_of(RuntimeError("<_io.BytesIO object at 0x7f0a12>", 3))
    assert said == "<_io.BytesIO object>, 3"
