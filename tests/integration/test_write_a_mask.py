"""docs/pipeline.md, "Write a mask": its two edits, made as the page says."""

import ast
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tessera.pipeline import LoaderConfig, open_loader
from tessera.pipeline.masking import MaskConfig
from tessera.pipeline.masking.config import KINDS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "pipeline.md"


def test_the_two_edits_of_the_page_make_a_mask(
    coloured_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = PAGE.read_text(encoding="utf-8").split("### Write a mask")[1].split("\n## ")[0]
    name = re.search(r"`pipeline/masking/(\w+)\.py`:", section)
    assert name
    source, entry = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    module = ModuleType(f"tessera.pipeline.masking.{name[1]}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(source, f"{name[1]}.py", "exec"), module.__dict__)
    for kind, value in ast.literal_eval(f"{{{entry}}}").items():
        monkeypatch.setitem(KINDS, kind, value)

    mask = MaskConfig(kind="centre", mask_ratio=0.25)
    config = LoaderConfig(batch_size=8, image_size=64, patch_size=8, mask=mask, num_threads=1)
    with open_loader(coloured_index, config) as loader:
        batch, again = next(loader), loader.seek(0)
        del again
        repeated = next(loader)
    counts = batch.image_offsets.diff()
    assert (counts == 48).all()
    assert batch.positions.equal(repeated.positions)
    middle = ((batch.positions // 8).sub(3.5).abs() < 2) & ((batch.positions % 8 - 3.5).abs() < 2)
    assert middle.sum() == 8 * 16
