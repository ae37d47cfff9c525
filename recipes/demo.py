"""The demo: a small CLIP on pictures that it draws itself, in a few minutes on a CPU.

Under data/demo: shards/train and shards/heldout (KEY.jpg, .txt, .json with all captions and what is
shown, .cls of the held-out ones; the files of CLIP_benchmark beside them), shards/demo.json (what
was drawn), index/train and index/heldout.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from dataclasses import asdict
from functools import partial
from pathlib import Path

from tqdm import tqdm

from tessera.pipeline.crops import CropConfig
from tessera.pipeline.durable import work_folder
from tessera.pipeline.index.dataset import parse_reference
from tessera.pipeline.masking import MaskConfig
from tessera.pipeline.workers import map_in_processes
from tessera.recipes import demo_scenes
from tessera.recipes.demo_scenes import HELDOUT, Split
from tessera.training.config import DataConfig, EvaluationConfig, OptimConfig, TrainConfig
from tessera.training.environment import num_cores

DETAIL = {"train": 0.8, "heldout": 1.0}
"""How likely a caption is to name a size or a background."""
_ROOT = Path("data/demo")
_SIZES: dict[Split, int] = {"train": 12_000, "heldout": 600}
_PER_SHARD = 250
_FIRST_KEY = {"train": 0, "heldout": 500_000_000}
_TEMPLATES = ("{c}.", "there is {c}.", "a picture of {c}.", "this picture shows {c}.")


def demo() -> TrainConfig:
    """Train on 12,000 drawn scenes with half of the patches masked by clusters.

    The 600 held-out pictures show colours on backgrounds on which no training picture has them;
    these pairs, such as "a red object on the beach", are the zero-shot classes. Shapes are in every
    caption as well, but so short a run tells colours, backgrounds, sizes and numbers apart, and
    shapes hardly better than chance.

    Command: `python train.py`
    Data: drawn by the recipe itself, about 80 MB under data/demo.
    Hardware and result: 2 CPU cores, a few minutes, docs/results/foundation-cpu.md.
    """
    return TrainConfig(
        recipe="demo",
        run_dir="runs/demo",
        model="tessera-demo",
        total_samples=32_000,
        batch_size=128,
        mask=MaskConfig(kind="cluster", mask_ratio=0.5),
        data=DataConfig(train=str(_ROOT / "index" / "train"), crop=CropConfig(scale=(0.7, 1.0))),
        optim=OptimConfig(learning_rate=1.5e-3, warmup=0.1, weight_decay=0.1),
        evaluation=EvaluationConfig(
            zero_shot=(str(_ROOT / "index" / "heldout"),),
            retrieval=(str(_ROOT / "index" / "heldout"),),
        ),
        log_every=50,
        save_every=100,
    )


def draw_demo_data(config: TrainConfig) -> None:
    """Draw and index the demo's pictures, unless they are there or the run uses other data."""
    folders = [parse_reference(each).index_dir for each in config.data.train_references]
    if Path(str(demo().data.train)) in folders:
        draw_data(_ROOT, _SIZES)


def draw_data(root: Path, sizes: dict[Split, int], seed: int = 0) -> None:
    """Draw and index pictures, unless these very ones are there.

    Args:
        root: gets shards/ and index/.
        sizes: pictures of each split, at least 1.
        seed: of every random choice.

    Raises:
        FileExistsError: `root`/shards holds something else.
    """
    from tessera.pipeline.index import ScanOptions, build_index, open_index

    shards, record = root / "shards", root / "shards" / "demo.json"
    drawer = hashlib.sha256(Path(demo_scenes.__file__).read_bytes()).hexdigest()
    wanted = {"drawer": drawer, "seed": seed, "per_shard": _PER_SHARD, **sizes}
    if not record.is_file() or json.loads(record.read_text()).get("parameters") != wanted:
        if shards.exists() and not record.is_file():
            raise FileExistsError(f"{shards} is not the demo's (no {record.name}): rename it")
        with work_folder(shards) as work:
            _write_shards(work / "new", sizes, seed)
            (work / "new" / record.name).write_text(json.dumps({"parameters": wanted}))
            # New shards can be as large as the old ones, which would pass for the same.
            shutil.rmtree(root / "index", ignore_errors=True)
            if shards.exists():
                shards.rename(work / "old")
            (work / "new").rename(shards)
    for split in sizes:
        index_dir, tars = root / "index" / split, sorted((shards / split).glob("*.tar"))
        try:
            open_index(index_dir).check_shards()
        except (FileNotFoundError, ValueError):
            options = ScanOptions(captions="json:captions")
            build_index(tars, index_dir, options=options, num_workers=num_cores())


def _write_shards(out: Path, sizes: dict[Split, int], seed: int) -> None:
    shards: list[tuple[Path, Split, range]] = []
    for split, size in sizes.items():
        (out / split).mkdir(parents=True)
        for number, first in enumerate(range(0, size, _PER_SHARD)):
            numbers = range(first, min(first + _PER_SHARD, size))
            shards.append((out / split / f"{number:05d}.tar", split, numbers))
    write = partial(_write_shard, seed)
    with tqdm(total=sum(sizes.values()), desc="drawing", unit="img", disable=None) as bar:
        for num_drawn in map_in_processes(write, shards, min(num_cores(), len(shards))):
            bar.update(num_drawn)
    names = [demo_scenes.class_name(*pair) for pair in HELDOUT]
    for name, lines in (("classnames", names), ("zeroshot_classification_templates", _TEMPLATES)):
        (out / "heldout" / f"{name}.txt").write_text("\n".join(lines) + "\n")


def _write_shard(seed: int, shard: tuple[Path, Split, range]) -> int:
    path, split, numbers = shard
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in numbers:
            for suffix, content in _sample(seed, split, number).items():
                # TarInfo's defaults hold no clock, user or umask: equal samples, equal bytes.
                member = tarfile.TarInfo(f"{_FIRST_KEY[split] + number:09d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return len(numbers)


def _sample(seed: int, split: Split, number: int) -> dict[str, bytes]:
    """The files of a sample by their suffix."""
    scene = demo_scenes.describe(seed, split, number)
    rng = demo_scenes.rng_of(seed, split, number, "picture")
    picture, file = demo_scenes.draw(rng, scene), io.BytesIO()
    picture.save(file, "JPEG", quality=rng.randint(75, 95))
    rng = demo_scenes.rng_of(seed, split, number, "captions")
    captions = demo_scenes.captions(rng, scene, 3, DETAIL[split])
    facts = json.dumps({"captions": captions, "scene": asdict(scene)})
    files = {"jpg": file.getvalue(), "txt": captions[0].encode(), "json": facts.encode()}
    pair = (scene.things[0].colour, scene.background)
    return files | ({"cls": str(HELDOUT.index(pair)).encode()} if split == "heldout" else {})
