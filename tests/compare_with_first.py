"""Does this tree still do what the first edition (5ca2be5) did, on the same inputs?

    python tests/compare_with_first.py                              a worktree of 5ca2be5 is made
    python tests/compare_with_first.py --first ../first index batches

Both trees run as subprocesses, one part at a time, and write what they found as JSON: index rows,
selections, token ids, batches (hashes of their bytes), masks, losses of two miniatures, evaluation
scores. What differs on purpose stands in DIFFERENCES. Exit status: 0 the same, 1 not, 2 wrong use.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

COMMIT = "5ca2be5"
ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("TESSERA_DATA", ROOT.parent / "shared" / "data"))
SETS = {"flickr8k-dev": "json:captions", "coco-val159": "txt"}
PARTS = ("index", "selections", "captions", "tokens", "batches", "masks", "losses", "scores")
MINIATURES = ("flip-50", "cluster-rgb-03")
"""Recipes whose first losses are compared; their names in train.py."""

DIFFERENCES: dict[str, str] = {
    # "PART/NAME, a pattern": "why it differs on purpose"
    "index/*/columns/plain": "the index notes which images are plain JPEGs",
}
ROUNDING: dict[str, tuple[float, str]] = {
    # "PART/NAME, a pattern": (relative difference allowed, why)
    "losses/*": (1e-6, "qkv is one product, pixels are normalised in the projection's weight"),
}


# What runs in either tree: only names that are fixed for callers, or programs.


def part_index(work: Path) -> dict[str, Any]:
    """Every column of samples, captions and rejections; the fingerprint."""
    import pyarrow as pa

    from pipeline.index import open_index

    found: dict[str, Any] = {}
    for name in SETS:
        index = open_index(work / "index" / name)
        found[f"{name}/fingerprint"] = index.fingerprint
        for column in index.table.schema.names:
            found[f"{name}/columns/{column}"] = digest(index.table.column(column).to_pylist())
        captions = index.captions()
        found[f"{name}/texts"] = digest(captions.text.to_pylist())
        found[f"{name}/owners"] = digest(captions.sample.tolist())
        with pa.memory_map(str(index.directory / "rejected.arrow")) as source:
            rejected = pa.ipc.open_file(source).read_all().to_pylist()
        found[f"{name}/rejected"] = digest([[row["key"], row["reason"]] for row in rejected])
    return found


SELECTIONS = {
    "wide": ["--where", "width >= height and max_num_tokens > 8"],
    "unique": ["--unique", "text"],
    "few": ["--limit", "50", "--seed", "3"],
    "parts": ["--split-into", "train=0.8", "heldout=0.2"],
}


def part_selections(work: Path) -> dict[str, Any]:
    """Rows that tools/select_samples.py keeps."""
    import numpy as np

    try:
        from tessera.pipeline.index.dataset import open_dataset
    except ModuleNotFoundError:
        from pipeline.selection import open_dataset  # pyright: ignore[reportMissingImports]

    found: dict[str, Any] = {}
    for name in SETS:
        place = work / "index" / name
        for selection, words in SELECTIONS.items():
            program("tools/select_samples.py", place, "--out", selection, *words)
        for selection in ("wide", "unique", "few", "parts-train", "parts-heldout"):
            dataset = open_dataset(f"{place}@{selection}")
            rows = np.asarray(dataset.sample_ids(0, dataset.num_samples))
            found[f"{name}/{selection}"] = digest(rows.tolist())
    return found


def part_captions(work: Path) -> dict[str, Any]:
    """Caption sources that tools/add_captions.py makes of tables, by key, and of the shards."""
    from pipeline.index import open_index

    place = work / "index" / "flickr8k-dev"
    keys = open_index(place).table.column("key").to_pylist()
    rows = [(key, f"rewrite {n} of a picture") for n, key in enumerate(keys[::2])]
    rows += [
        ("stranger", "of no sample"),
        *((key, "one more text") for key in keys[:9]),
        (keys[1], "x"),
    ]
    (work / "t.csv").write_text("key,caption\n" + "".join(f"{k},{t}\n" for k, t in rows[::-1]))
    lines = "".join(json.dumps({"key": k, "caption": [t, "a second"]}) + "\n" for k, t in rows)
    (work / "t.jsonl").write_text(lines)
    sources: dict[str, list[object]] = {
        "first": [work / "t.csv"],
        "last": [work / "t.csv", "--repeats", "last", "--min-words", "1"],
        "all": [work / "t.jsonl", "--repeats", "all"],
        "shards": ["--format", "shards", "--text-columns", "captions"],
    }
    found: dict[str, Any] = {}
    for name, words in sources.items():
        program("tools/add_captions.py", place, name, *words)
        record = open_index(place).caption_record(name)
        assert record is not None
        found |= {f"{name}/fingerprint": record.fingerprint, f"{name}/counts": record.counts}
    return found


def part_tokens(_work: Path) -> dict[str, Any]:
    """Token ids of captions, odd ones among them."""
    try:
        from pipeline.index.tokenizer import encode_captions
    except ImportError:  # the first edition
        from pipeline.tokenizer import encode_captions  # pyright: ignore[reportMissingImports]

    odd = ["", "A dog &amp; a cat", "\uff26\uff35", "\U0001f600", "a " * 400, "caf\u00e9", "<b>"]
    return {ascii(t[:20]): ids.tolist() for t, ids in zip(odd, encode_captions(odd), strict=True)}


def part_batches(work: Path) -> dict[str, Any]:
    """Bytes of batches: mask kinds, orders, crops, ranks, and a start in the middle."""
    from pipeline import LoaderConfig, open_evaluation_loader, open_loader
    from pipeline.crops import CropConfig
    from pipeline.loader_config import AugmentConfig
    from pipeline.masking import MaskConfig

    found: dict[str, Any] = {}

    def take(
        label: str, name: str, steps: Sequence[int], open_it: Any = open_loader, **changes: Any
    ) -> None:
        settings = {"batch_size": 16, "image_size": 96, "num_steps": 40, "decoder": "pil"}
        settings |= {"mask": MaskConfig(kind="cluster"), "num_threads": 1, **changes}
        with open_it(str(work / "index" / name), LoaderConfig(**settings)) as loader:
            for step in steps:
                loader.seek(step)
                tensors = next(loader).tensors()
                for part, values in tensors.items():
                    found[f"{label}/{step}/{part}"] = digest(values.cpu().numpy().tobytes())

    for kind in ("none", "random", "grid", "block", "cluster", "edge_aware", "kmeans"):
        mask = MaskConfig(kind=kind)
        for order in ("global", "window"):
            for scale in ((0.9, 1.0), (0.4, 1.0), (1.0, 1.0)):
                label = f"mask {kind}, order {order}, crop {scale[0]}"
                crop = CropConfig(scale=scale)
                take(label, "coco-val159", (0, 12), mask=mask, order=order, crop=crop)
            for ranks in (2, 4):
                for rank in range(ranks):
                    part = {"rank": rank, "world_size": ranks, "mask": mask, "order": order}
                    take(f"mask {kind}, order {order}, rank {rank} of {ranks}", "flickr8k-dev",
                         (39,), **part)  # fmt: skip
    for mode in ("threshold", "topk", "fill"):
        take(f"mode {mode}", "coco-val159", (3,), mask=MaskConfig(kind="cluster", mode=mode))
    for reduction in ("truncate", "random", "block"):
        take(f"texts {reduction}", "flickr8k-dev", (5,), context_length=8, text_reduction=reduction)
    take(
        "augment", "coco-val159", (2,), augment=AugmentConfig(flip=0.5, jitter=(0.4, 0.4, 0.4, 0.1))
    )
    take("evaluation", "coco-val159", (0, 9), open_evaluation_loader)
    take("turbo", "coco-val159", (1, 2, 3), decoder="turbo", image_size=224)
    return found


def part_masks(_work: Path) -> dict[str, Any]:
    """Visible patches of random pixels."""
    import torch

    from pipeline.masking import BlockMask, ClusterMask, GridMask, NoMask, RandomMask

    patches = torch.randint(
        0, 256, (8, 49, 3 * 16 * 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )
    found: dict[str, Any] = {}
    strategies = {
        "none": NoMask(), "random": RandomMask(0.5), "grid": GridMask(), "block": BlockMask(),
        "cluster": ClusterMask(anchor_ratio=0.06, mask_ratio=0.5),
    }  # fmt: skip
    for name, strategy in strategies.items():
        visible = strategy(patches, generator=torch.Generator().manual_seed(2))
        found[name] = digest(visible.numpy().tobytes())
    return found


def part_losses(work: Path) -> dict[str, Any]:
    """First losses of miniatures in float32."""
    found: dict[str, Any] = {}
    for recipe in MINIATURES:
        folder = work / "runs" / recipe
        words = ["--data.train", work / "index" / "flickr8k-dev", "--run-dir", folder]
        words += ["--data.decoder", "pil", "--precision", "float32", "--evaluation.zero-shot"]
        words += ["--evaluation.retrieval", work / "index" / "coco-val159"]
        program("train.py", recipe, "--mini", *words)
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        losses = [json.loads(line).get("loss") for line in lines]
        found |= {f"{recipe}/{step}": loss for step, loss in enumerate(losses) if loss is not None}
    return found


def part_scores(work: Path) -> dict[str, Any]:
    """Retrieval and zero-shot by a model of random weights."""
    out = work / "scores.json"
    words = ["--retrieval", work / "index" / "coco-val159", "--batch-size", "32"]
    if (DATA / "clothing").is_dir():
        words += ["--zero-shot", DATA / "clothing"]
    program("tools/evaluate.py", "ViT-S-32-alt", *words, "--device", "cpu", "--out", out)
    found: dict[str, Any] = {}
    for record in json.loads(out.read_text(encoding="utf-8"))["results"]:
        name = f"{Path(record['dataset']).name}/{record['task']}"
        found |= {f"{name}/{metric}": value for metric, value in record["metrics"].items()}
    return found


def digest(value: object) -> str:
    """A short name for a value, the same only for the same value."""
    raw = value if isinstance(value, bytes) else json.dumps(value, default=str).encode()
    return hashlib.sha256(raw).hexdigest()[:16]


def program(name: str, *words: object) -> None:
    """Run a program of the tree in which this runs."""
    command = [sys.executable, name, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])}: {done.stderr.strip()[-2000:]}")


def measure(part: str, work: Path) -> None:
    """In a tree: make the indexes if they are not there, and write what a part finds."""
    for name, captions in SETS.items():
        place = work / "index" / name
        if not place.is_dir():
            words = ["--captions", captions, "--workers", 1]
            program("tools/index_shards.py", DATA / name, "--out", place, *words)
    found = globals()[f"part_{part}"](work)
    (work / f"{part}.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


# What compares.


@contextmanager
def first_tree(given: Path | None) -> Iterator[Path]:
    """A tree of the first edition: the one that is named, or a worktree for as long as this runs.

    Raises:
        ValueError: the named one is another commit.
    """
    if given is not None:
        command = ["git", "-C", str(given), "rev-parse", "--short=7", "HEAD"]
        head = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        if head != COMMIT:
            raise ValueError(f"{given} is at {head}, not at {COMMIT}")
        yield given.resolve()
        return
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "first"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run(
            [*git, "add", "--detach", str(tree), COMMIT], check=True, capture_output=True
        )
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True, capture_output=True)


def found_by(tree: Path, part: str, work: Path) -> dict[str, Any]:
    """What a part finds in a tree.

    Raises:
        RuntimeError: it failed there.
    """
    work.mkdir(parents=True, exist_ok=True)
    code = f"import sys; sys.path.insert(0, {str(tree)!r}); import runpy; "
    code += f"m = runpy.run_path({str(Path(__file__).resolve())!r}); "
    code += "m['measure'](sys.argv[1], m['Path'](sys.argv[2]))"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"TESSERA_DATA": str(DATA), "PYTHONPATH": str(tree)}
    done = subprocess.run(
        [sys.executable, "-c", code, part, str(work)],
        cwd=tree, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{part} failed in {tree}: {done.stderr.strip()[-2000:]}")
    return json.loads((work / f"{part}.json").read_text(encoding="utf-8"))


def compared(part: str, first: dict[str, Any], now: dict[str, Any]) -> tuple[int, list[str]]:
    """How many values are the same, and a line for each that is not; those on purpose say why."""
    lines: list[str] = []
    for name in sorted(first.keys() | now.keys()):
        before, after = first.get(name, "absent"), now.get(name, "absent")
        if before != after:
            why = on_purpose(f"{part}/{name}", before, after)
            mark = f"on purpose ({why})" if why else "DIFFERS"
            lines.append(f"  {part}/{name}: {before} -> {after}: {mark}")
    return len(first.keys() | now.keys()) - len(lines), lines


def on_purpose(name: str, before: object, after: object) -> str:
    """Why a value may differ as it does; empty if it may not."""
    if isinstance(before, float) and isinstance(after, float):
        for pattern, (most, why) in ROUNDING.items():
            if fnmatch(name, pattern) and math.isclose(before, after, rel_tol=most):
                return f"{why}; at most {most:g}"
    return next((why for pattern, why in DIFFERENCES.items() if fnmatch(name, pattern)), "")


def main() -> int:
    """Compare; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Raw)
    parser.add_argument("what", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--first", type=Path, help=f"a worktree at {COMMIT}")
    parser.add_argument("--data", type=Path, help="folder of flickr8k-dev and coco-val159")
    arguments = parser.parse_args()
    unknown = set(arguments.what) - set(PARTS)
    if unknown:
        parser.error(f"no part is called {', '.join(sorted(unknown))}")
    if arguments.data is not None:
        globals()["DATA"] = arguments.data.resolve()
    missing = [name for name in SETS if not (DATA / name).is_dir()]
    if missing:
        parser.error(f"{DATA} lacks {', '.join(missing)}: set TESSERA_DATA or --data")
    num_different = 0
    with first_tree(arguments.first) as first, tempfile.TemporaryDirectory() as folder:
        for part in arguments.what or PARTS:
            try:
                trees = (("first", first), ("now", ROOT))
                before, after = (found_by(t, part, Path(folder) / n) for n, t in trees)
            except RuntimeError as error:
                print(f"{part:11} FAILED: {error}", flush=True)
                num_different += 1
                continue
            same, lines = compared(part, before, after)
            num_different += sum(line.endswith("DIFFERS") for line in lines)
            print("\n".join([f"{part:11} {same} the same, {len(lines)} not", *lines]), flush=True)
    return 1 if num_different else 0


class _Raw(argparse.RawDescriptionHelpFormatter):
    """Keep the lines of the description."""


if __name__ == "__main__":
    sys.exit(main())
