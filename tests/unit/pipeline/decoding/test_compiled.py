"""Compiling once, and saying why it cannot be done."""

from __future__ import annotations

from pathlib import Path

import pytest

from tessera.pipeline.decoding import compiled
from tessera.pipeline.decoding.compiled import load_jpeg_window
from tessera.pipeline.native import CompilationError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    load_jpeg_window.cache_clear()
    return tmp_path / "cache" / "tessera"


def test_compiled_once(own_cache: Path) -> None:
    load_jpeg_window()
    (library,) = own_cache.iterdir()
    before = library.stat().st_mtime_ns
    load_jpeg_window.cache_clear()
    load_jpeg_window()
    assert [path.stat().st_mtime_ns for path in own_cache.iterdir()] == [before]


def test_another_compiler_is_another_library(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_jpeg_window()
    load_jpeg_window.cache_clear()
    monkeypatch.setenv("CC", "cc -g")
    load_jpeg_window()
    assert len(list(own_cache.iterdir())) == 2


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "there-is-no-such-compiler")
    with pytest.raises(CompilationError, match="install gcc, or set CC"):
        load_jpeg_window()


def test_a_compiler_that_fails_leaves_nothing(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "cc -DDECODED=+")
    with pytest.raises(CompilationError, match=r"cc failed: .*error"):
        load_jpeg_window()
    assert list(own_cache.iterdir()) == []


def test_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled.PIL, "__file__", str(tmp_path / "PIL" / "__init__.py"))
    with pytest.raises(CompilationError, match="install Pillow as a wheel"):
        load_jpeg_window()


def test_no_folder_to_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(CompilationError, match="XDG_CACHE_HOME"):
        load_jpeg_window()
