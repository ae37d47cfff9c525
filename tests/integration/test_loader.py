"""From real tars through DALI to packed batches: exact order, exact budget, nothing lost."""

import io
import shutil
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from tessera.pipeline import LoaderConfig, open_evaluation_loader, open_loader
from tessera.pipeline.augment_config import AugmentConfig
from tessera.pipeline.index import build_index, open_index
from tessera.pipeline.masking import MaskConfig
from tessera.pipeline.patches import patchify
from tests.conftest import caption_of, jpeg_bytes, sample_members, write_tar

ROOT = Path(__file__).resolve().parents[2]
CONFIG = LoaderConfig(
    batch_size=16,
    image_size=32,
    patch_size=8,
    context_length=24,
    mask=MaskConfig(kind="cluster"),
    num_threads=2,
)


def test_batches_keep_their_contract(coloured_index: Path) -> None:
    with open_loader(coloured_index, CONFIG) as loader:
        for _ in range(8):
            batch = next(loader)
            batch.check()
            assert len(batch.patches) == round(16 * 16 * 0.5)
            assert batch.patches.shape[1] == 3 * 8 * 8
            assert batch.tokens.max() == 49407


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_sample_is_served_once_per_pass(coloured_index: Path, world_size: int) -> None:
    served = []
    for rank in range(world_size):
        with open_loader(
            coloured_index, replace(CONFIG, rank=rank, world_size=world_size)
        ) as loader:
            served.append([next(loader).sample_ids for _ in range(12)])
    for number in range(2):
        ids = torch.cat([ids for rank in served for ids in rank[number * 6 : number * 6 + 6]])
        assert sorted(ids.tolist()) == list(range(96))


def test_samples_do_not_depend_on_batch_size_threads_or_ranks(coloured_index: Path) -> None:
    """With a mask that looks at one image at a time, a sample's patches are always the same."""
    config = replace(CONFIG, mask=MaskConfig(kind="random"))
    seen: list[dict[int, tuple]] = []
    for batch_size, rank, world_size, threads in ((16, 0, 1, 1), (48, 0, 1, 3), (96, 1, 2, 2)):
        changed = replace(
            config, batch_size=batch_size, num_threads=threads, rank=rank, world_size=world_size
        )
        found = {}
        with open_loader(coloured_index, changed) as loader:
            for _ in range(96 // batch_size):
                batch = next(loader)
                for i, sample in enumerate(batch.sample_ids.tolist()):
                    image = slice(int(batch.image_offsets[i]), int(batch.image_offsets[i + 1]))
                    text = slice(int(batch.text_offsets[i]), int(batch.text_offsets[i + 1]))
                    found[sample] = (
                        batch.patches[image].numpy().tobytes(),
                        batch.positions[image].tolist(),
                        batch.tokens[text].tolist(),
                    )
        seen.append(found)
    assert len(seen[0]) == 96
    assert seen[0] == seen[1]
    assert len(seen[2]) == 48
    assert all(seen[0][sample] == value for sample, value in seen[2].items())


def test_seeking_gives_the_batch_of_that_step(coloured_index: Path) -> None:
    with open_loader(coloured_index, CONFIG) as loader:
        batches = [next(loader) for _ in range(9)]
        for step in (7, 0, 3):
            loader.seek(step)
            again = next(loader)
            assert torch.equal(again.patches, batches[step].patches)
            assert torch.equal(again.tokens, batches[step].tokens)


def test_previews_while_the_threads_work_ahead(coloured_index: Path) -> None:
    with open_loader(coloured_index, CONFIG) as loader:
        for step in range(30):
            batch, shown = next(loader), loader.preview(step)
            assert torch.equal(batch.sample_ids, torch.from_numpy(shown.visits.sample_ids))


def test_what_is_visible_is_what_was_decoded(coloured_index: Path) -> None:
    with open_loader(coloured_index, CONFIG) as loader:
        shown, batch = loader.preview(2), [next(loader) for _ in range(3)][2]
    patches = patchify(shown.images, 8)
    for i in range(16):
        image = slice(int(batch.image_offsets[i]), int(batch.image_offsets[i + 1]))
        places = batch.positions[image].long()
        assert torch.equal(batch.patches[image], patches[i, places])
        assert torch.equal(places, shown.visible[i].nonzero().squeeze(1))


def test_decoding_agrees_with_pil(coloured_index: Path, real_data: Path, tmp_path: Path) -> None:
    """Centre crops of real photos against PIL's bicubic resize, at least 50 dB."""
    del coloured_index
    build_index([real_data / "coco-val159" / "00000.tar"], tmp_path / "index")
    index = open_index(tmp_path / "index")
    config = replace(CONFIG, image_size=224, patch_size=16)
    with open_evaluation_loader(tmp_path / "index", config) as loader:
        ours = loader.preview(0)
    for i in range(16):
        sample = int(ours.visits.sample_ids[i])
        with Path(index.shards[index.shard[sample]].location).open("rb") as file:
            file.seek(int(index.offset[sample]))
            picture = Image.open(io.BytesIO(file.read(int(index.size[sample])))).convert("RGB")
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        box = (left, top, left + side, top + side)
        theirs = picture.resize((224, 224), Image.Resampling.BICUBIC, box=box)
        error = np.square(ours.images[i].numpy().astype(float) - np.asarray(theirs)).mean()
        assert 10 * np.log10(255**2 / error) > 50


def test_evaluation_goes_once_through_in_order(coloured_index: Path) -> None:
    config = replace(CONFIG, batch_size=40)
    with open_evaluation_loader(coloured_index, config) as loader:
        batches = list(loader)
    assert [b.num_samples for b in batches] == [40, 40, 16]
    assert torch.cat([b.sample_ids for b in batches]).tolist() == list(range(96))
    assert all(len(b.patches) == 16 * b.num_samples for b in batches)


def test_both_captions_of_a_sample_are_drawn(coloured_index: Path) -> None:
    with open_loader(coloured_index, CONFIG) as loader:
        lengths = {
            int(length) for _ in range(12) for length in next(loader).text_offsets.diff().tolist()
        }
    index = open_index(coloured_index)
    rows, offsets = index.captions().rows(np.array([5]))
    assert index.captions().texts(rows) == [caption_of(5), caption_of(5) + ", seen again"]
    assert len(rows) == offsets[-1] == 2
    assert len(lengths) >= 2


@pytest.fixture
def damaged_index(coloured_index: Path, tmp_path: Path) -> tuple[Path, list[int]]:
    """An index whose shards lost some samples' bytes after it was made, unnoticed."""
    folder = tmp_path / "copy"
    shutil.copytree(coloured_index.parent, folder)
    build_index(sorted((folder / "shards").glob("*.tar")), folder / "index")
    index = open_index(folder / "index")
    bad = [3, 40, 41, 77]
    for sample in bad:
        path = Path(index.shards[index.shard[sample]].location)
        with path.open("r+b") as file:
            file.seek(int(index.offset[sample]))
            file.write(b"<html>" + bytes(int(index.size[sample]) - 6))
    return folder / "index", bad


def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage that comes after the check at the start: during the run."""
    monkeypatch.setattr("tessera.pipeline.index.Index.check_shards", lambda _: None)


def test_bad_samples_are_replaced_counted_and_named(
    damaged_index: tuple[Path, list[int]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    index_dir, bad = damaged_index
    unchecked(monkeypatch)
    served = []
    for _ in range(2):
        with open_loader(index_dir, CONFIG) as loader:
            batches = [next(loader) for _ in range(6)]
            assert sorted(loader.stats.bad_samples) == bad
            assert loader.stats.num_replaced >= len(bad)
        served.append(torch.cat([b.sample_ids for b in batches]))
        assert all(len(b.sample_ids.unique()) == 16 for b in batches)
    assert torch.equal(*served), "replacement is a function of the step, not of chance"
    assert not set(bad) & set(served[0].tolist())
    assert set(range(96)) - set(bad) <= set(served[0].tolist())
    assert "000000003" in caplog.text
    assert "00001.tar" in caplog.text


def write_damaged_set(folder: Path) -> tuple[list[Path], dict[int, Path]]:
    """200 samples in 4 shards, and the shards of 4 that are to be damaged."""
    folder.mkdir()
    paths = [folder / f"{shard:05d}.tar" for shard in range(4)]
    for shard, path in enumerate(paths):
        members = [m for n in range(shard * 50, shard * 50 + 50) for m in sample_members(n)]
        write_tar(path, members)
    return paths, {n: paths[n // 50] for n in (7, 55, 99, 160)}


def damage(path: Path, number: int) -> None:
    """Overwrite the image of a sample where it lies."""
    data, good = path.read_bytes(), jpeg_bytes(number)
    assert data.count(good) == 1
    path.write_bytes(data.replace(good, b"<html>".ljust(len(good), b"\0")))


def test_damage_that_is_indexed_is_never_served_and_the_rest_exactly_once(tmp_path: Path) -> None:
    paths, bad = write_damaged_set(tmp_path / "shards")
    for number, path in bad.items():
        damage(path, number)
    build_index(paths, tmp_path / "index")
    with open_loader(tmp_path / "index", replace(CONFIG, batch_size=14)) as loader:
        assert open_index(tmp_path / "index").num_rejected == len(bad)
        assert loader.index.num_samples == 196
        for _ in range(2):
            ids = [n for _ in range(14) for n in next(loader).sample_ids.tolist()]
            served = {int(key) for key in loader.index.keys(ids)}
            assert len(ids) == len(served) == 196
            assert served == set(range(200)) - bad.keys()
        assert not loader.stats.num_replaced


@pytest.mark.parametrize("order", ["global", "window"])
def test_later_damage_costs_its_own_visits_only_and_both_keys_are_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    order: Literal["global", "window"],
) -> None:
    """Every good sample comes in its turn; each bad visit is one more of a good one, as reported.

    A pass has as many places as the index has samples, so with full batches it cannot be otherwise.
    """
    paths, bad = write_damaged_set(tmp_path / "shards")
    build_index(paths, tmp_path / "index")
    for number, path in bad.items():
        damage(path, number)
    unchecked(monkeypatch)
    config = replace(CONFIG, batch_size=20, order=order, window_shards=2)
    with open_loader(tmp_path / "index", config) as loader:
        # One by one: threads that work ahead would tell of the next pass already.
        batches = [loader.assemble(step) for step in range(10)]
        told = {bad.key: bad.replaced_by for bad in loader.stats.bad_samples.values()}
        keys = loader.index.keys(torch.cat([b.sample_ids for b in batches]).tolist())
    assert sorted(map(int, told)) == sorted(bad)
    extra = Counter(map(int, keys)) - Counter(set(range(200)) - bad.keys())
    assert extra == Counter(int(key) for key in told.values())
    assert len(keys) == 200
    assert all(
        f"sample {k}" in caplog.text and f"{r} comes" in caplog.text for k, r in told.items()
    )
    for rank in range(2):
        with open_loader(tmp_path / "index", replace(config, rank=rank, world_size=2)) as loader:
            for batch in batches:
                half = batch.sample_ids[10 * rank : 10 * rank + 10]
                assert torch.equal(next(loader).sample_ids, half)


def test_bytes_for_the_model_are_counted(coloured_index: Path) -> None:
    with open_loader(coloured_index, replace(CONFIG, model_device="cpu")) as loader:
        made = [loader.assemble(step) for step in range(3)]
        assert loader.stats.copy.num_samples == 48
        assert loader.stats.bytes_per_image == sum(b.num_bytes for b in made) / 48


def test_evaluation_leaves_bad_samples_out(
    damaged_index: tuple[Path, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    index_dir, bad = damaged_index
    unchecked(monkeypatch)
    with open_evaluation_loader(index_dir, CONFIG) as loader:
        ids = torch.cat([b.sample_ids for b in loader]).tolist()
    assert ids == [n for n in range(96) if n not in bad]


def test_evaluation_passes_over_a_batch_of_bad_samples_only(
    damaged_index: tuple[Path, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    index_dir, bad = damaged_index
    unchecked(monkeypatch)
    with open_evaluation_loader(index_dir, replace(CONFIG, batch_size=1)) as loader:
        ids = [int(batch.sample_ids) for batch in loader]
        assert loader.step == 96
    assert ids == [n for n in range(96) if n not in bad]


def test_a_shard_that_vanishes_under_the_run_ends_it_with_its_name(
    damaged_index: tuple[Path, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    index_dir, _ = damaged_index
    unchecked(monkeypatch)
    for path in (index_dir.parent / "shards").glob("*.tar"):
        path.unlink()
    with open_loader(index_dir, CONFIG) as loader, pytest.raises(RuntimeError, match=r"\.tar"):
        next(loader)


def test_a_shard_changed_since_indexing_is_refused(
    damaged_index: tuple[Path, list[int]],
) -> None:
    index_dir, _ = damaged_index
    with (index_dir.parent / "shards" / "00001.tar").open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(ValueError, match=r"00001\.tar[\s\S]*index_shards"):
        open_loader(index_dir, CONFIG)


def test_a_batch_larger_than_the_data_is_refused(coloured_index: Path) -> None:
    with pytest.raises(ValueError, match="same pair twice"):
        open_loader(coloured_index, replace(CONFIG, batch_size=97))


def test_a_missing_index_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tools/index_shards\.py"):
        open_loader(tmp_path / "nothing", CONFIG)


def test_closing_leaves_no_thread(coloured_index: Path) -> None:
    before = threading.active_count()
    loader = open_loader(coloured_index, CONFIG)
    next(loader)
    loader.close()
    assert threading.active_count() <= before


def test_a_threshold_is_found_once_and_the_same_wherever_reading_starts(
    coloured_index: Path,
) -> None:
    mask = MaskConfig(kind="cluster", mode="threshold", mask_ratio=0.5, min_mask_ratio=0.2)
    config = replace(CONFIG, mask=mask)
    with open_loader(coloured_index, config) as first:
        batches = [next(first) for _ in range(6)]
    shares = [len(b.patches) / (config.num_patches * b.num_samples) for b in batches]
    assert abs(np.mean(shares) - 0.5) < 0.1
    assert len(set(shares)) > 1
    with open_loader(coloured_index, config) as later:
        later.seek(4)
        again = next(later)
    assert again.patches.equal(batches[4].patches)


def test_augmentation_is_drawn_for_each_visit_and_not_in_evaluation(coloured_index: Path) -> None:
    plain = replace(CONFIG, mask=MaskConfig(kind="none"))
    flipping = replace(plain, augment=AugmentConfig(flip=1.0))
    jittering = replace(plain, augment=AugmentConfig(jitter=(0.4, 0.4, 0.4, 0.1)))
    with (
        open_loader(coloured_index, plain) as ours,
        open_loader(coloured_index, flipping) as flipped,
        open_loader(coloured_index, jittering) as jittered,
        open_loader(coloured_index, jittering) as repeated,
    ):
        images = ours.preview(3).images
        assert flipped.preview(3).images.equal(images.flip(2))
        changed = jittered.preview(3).images
        assert not changed.equal(images)
        assert repeated.preview(3).images.equal(changed)
    with (
        open_evaluation_loader(coloured_index, plain) as ours,
        open_evaluation_loader(coloured_index, jittering) as others,
    ):
        assert ours.preview(0).images.equal(others.preview(0).images)


def test_a_mask_that_leaves_less_than_a_patch_of_each_image_is_refused() -> None:
    config = partial(LoaderConfig, batch_size=16, image_size=224, patch_size=32, context_length=16)
    config(mask=MaskConfig(mask_ratio=0.97))
    config(mask=MaskConfig(kind="random", mask_ratio=0.99))  # keeps one at least
    with pytest.raises(ValueError, match=r"less than one patch of each image: at most 0\.980"):
        config(mask=MaskConfig(mask_ratio=0.99))


def test_memory_is_flat_over_passes(coloured_index: Path) -> None:
    """A batch or a picture kept in each step would show; slower leaks are for tests/faults/soak.py.

    In a process of its own, where nothing else takes memory or gives it back.
    """
    script = f"""
        from pathlib import Path
        from tessera.pipeline import LoaderConfig, open_loader

        def private_bytes():
            lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
            return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))

        config = LoaderConfig(
            batch_size=16, image_size=224, patch_size=16, context_length=24, num_threads=2,
        )
        with open_loader(Path({str(coloured_index)!r}), config) as loader:
            for _ in range(6):
                for _ in range(18):
                    batch = next(loader)
                print(private_bytes(), batch.patches.nbytes)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT, capture_output=True, text=True, timeout=240, check=True,
    )  # fmt: skip
    used, sizes = zip(*(map(int, line.split()) for line in done.stdout.splitlines()), strict=True)
    assert len(used) == 6, "after 3, 6 .. 18 passes"
    kept_in_72_steps = min(used[4:]) - max(used[:2])
    assert kept_in_72_steps < 72 * sizes[0] / 3, used


def test_nothing_is_masked_unless_asked(coloured_index: Path) -> None:
    assert LoaderConfig().mask.kind == "none"
    config = LoaderConfig(batch_size=16, image_size=32, patch_size=8, context_length=24)
    with open_loader(coloured_index, config) as loader:
        assert len(next(loader).patches) == 16 * 16


@pytest.mark.parametrize("order", ["global", "window"])
def test_no_batch_holds_a_sample_twice(coloured_index: Path, order: Literal["global"]) -> None:
    """Nor do two ranks of one batch, also where it crosses from one pass to the next."""
    mask = MaskConfig(kind="none")
    config = replace(CONFIG, batch_size=36, mask=mask, order=order, window_shards=1)
    shares = []
    for rank in range(2):
        with open_loader(coloured_index, replace(config, rank=rank, world_size=2)) as loader:
            shares.append([next(loader).sample_ids for _ in range(12)])
    for parts in zip(*shares, strict=True):
        assert len(torch.cat(parts).unique()) == config.batch_size


def test_the_packing_thread_has_the_loaders_own_threads(
    coloured_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun sets OMP_NUM_THREADS=1 for the whole process."""
    found = []

    def cut(images: torch.Tensor, patch_size: int) -> torch.Tensor:
        found.append(torch.get_num_threads())
        return patchify(images, patch_size)

    monkeypatch.setattr("tessera.pipeline.assembler.patchify", cut)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with open_loader(
            coloured_index, replace(CONFIG, mask=MaskConfig(), num_threads=3)
        ) as loader:
            next(loader)
        assert set(found) == {3}
        assert torch.get_num_threads() == 1, "the model keeps its number"
    finally:
        torch.set_num_threads(before)
