"""The architecture's rules, held by reading the imports of every module."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("pipeline", "model", "training", "evaluation", "report", "recipes", "tools")
FORBIDDEN = {
    "pipeline": ("report", "model", "training", "evaluation", "recipes", "tools", "train", "tests"),
    "model": ("report", "pipeline", "training", "evaluation", "recipes", "tools", "train", "tests"),
    "evaluation": ("report", "training", "recipes", "tools", "train", "tests"),
    "training": ("recipes", "tools", "train", "tests"),
    "report": ("training", "recipes", "tools", "train", "tests"),
    "recipes": ("tools", "train", "tests"),
    "tools": ("train", "tests"),
}
DRAWERS = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}


def modules() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_only_import_what_lies_below_them(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        roots = {name.removeprefix("tessera.").split(".")[0] for name in imports(path)}
        assert not roots & set(FORBIDDEN[package]), path


def test_pages_start_without_torch_and_matplotlib() -> None:
    names = [path.stem for path in sorted((ROOT / "report").glob("*.py")) if path.stem[0] != "_"]
    code = "import sys; from tessera.report import " + ", ".join(names)
    code += "; sys.exit(bool({'torch', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_every_import_is_by_the_one_name() -> None:
    for path in [*modules(), ROOT / "train.py"]:
        roots = {name.split(".")[0] for name in imports(path)}
        assert not roots & set(PACKAGES), path


def test_the_one_name_reaches_every_folder() -> None:
    linked = {path.name for path in (ROOT / "tessera").iterdir() if path.is_symlink()}
    assert linked == {*PACKAGES, "train.py"}


def test_one_module_imports_dali() -> None:
    importing = [
        path.relative_to(ROOT).as_posix()
        for path in modules()
        if any(name.startswith("nvidia.dali") for name in imports(path))
    ]
    # The benchmark measures DALI's own reader against the pipeline.
    assert importing == ["pipeline/decoding/dali_graph.py", "tools/benchmarks/dali_reader.py"]


@pytest.mark.parametrize(
    "module",
    [
        "tessera.pipeline.index",
        "tessera.pipeline.order",
        "tessera.pipeline.index.captions",
        "tessera.pipeline.index.tokenizer",
        "tessera.pipeline.index.build",
    ],
)
def test_indexing_starts_without_torch(module: str) -> None:
    check = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False).returncode == 0


def test_no_drawer_and_no_giant_file() -> None:
    for path in [*modules(), ROOT / "train.py"]:
        assert path.name not in DRAWERS, path
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path


def test_no_giant_function() -> None:
    for path in [*modules(), ROOT / "train.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= 80, f"{path}:{node.lineno} {node.name} has {length} lines"


@pytest.mark.parametrize("words", [["--list"], ["cluster-rgb-03", "--help"]])
def test_what_needs_no_model_is_answered_without_importing_torch(words: list[str]) -> None:
    """Importing torch and open_clip takes seconds; a test of seconds would hang on the machine."""
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['train.py', *{words!r}]\n"
        "try:\n    runpy.run_path('train.py', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "found = {'torch', 'open_clip', 'timm', 'transformers'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(found)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
