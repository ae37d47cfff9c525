from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tessera.pipeline.counter_random import Purpose, uniforms
from tessera.pipeline.index import Index, open_index
from tessera.pipeline.index.arrow_file import write_batch
from tessera.pipeline.index.caption_mix import CaptionMix, parse_weights, text_counts
from tessera.pipeline.index.captions import CaptionRecord, caption_batch, write_record
from tessera.pipeline.index.tokenizer import encode_captions

NUM_SAMPLES = 96


@pytest.fixture
def index(coloured_index: Path, tmp_path: Path) -> Index:
    """Two original captions a sample; `four` has four texts of all but every third sample."""
    import shutil

    shutil.copytree(coloured_index.parent, tmp_path / "copy")
    index = open_index(tmp_path / "copy" / "index")
    owners = [n for n in range(NUM_SAMPLES) if n % 3 for _ in range(4)]
    texts = [f"text {place % 4} of sample {owner}" for place, owner in enumerate(owners)]
    tokens = encode_captions(texts)
    for place, owner in enumerate(owners):
        if owner == 1 and place % 4 == 2:
            tokens[place] = tokens[place][:0]
    path = index.directory / "captions" / "four.arrow"
    write_batch(path, caption_batch(texts, tokens, owners))
    write_record(
        path,
        CaptionRecord(
            index_fingerprint=index.fingerprint, fingerprint="a" * 64, tokenizer=index.tokenizer,
            inputs=(), join="key", num_texts=len(owners), num_samples=64, coverage=2 / 3,
            counts={"num_short": 1},
        ),
    )  # fmt: skip
    return index


def draws(ids: np.ndarray, passes: int | np.ndarray = 0, num_draws: int = 2) -> np.ndarray:
    return uniforms(7, passes, ids, Purpose.CAPTION, num_draws)


@pytest.mark.parametrize(
    ("captions", "wanted"),
    [
        (["caption"], (("caption", 1.0),)),
        (["caption=1", "laclip=4"], (("caption", 1.0), ("laclip", 4.0))),
        (["vecap", "caption=0.25"], (("vecap", 1.0), ("caption", 0.25))),
    ],
)
def test_weights(captions: list[str], wanted: tuple) -> None:
    assert parse_weights(captions) == wanted


@pytest.mark.parametrize(
    "captions", [[], ["a", "a=2"], ["a=x"], ["a=0"], ["a=-1"], ["a=nan"], ["=2"], ["a="]]
)
def test_wrong_weights_are_refused(captions: list[str]) -> None:
    with pytest.raises(ValueError, match="captions"):
        parse_weights(captions)


def test_the_original_alone_is_drawn_as_its_table_does(index: Index) -> None:
    ids = np.arange(NUM_SAMPLES)
    drawn = CaptionMix(index, parse_weights(["caption"])).draw(ids, draws(ids))
    table = index.captions()
    assert drawn.rows.tolist() == table.draw(ids, draws(ids)[:, 0]).tolist()


def test_weights_one_and_four_are_uniform_over_five_texts(index: Index) -> None:
    mix = CaptionMix(index, parse_weights(["caption=1", "four=4"]))
    passes = np.arange(20_000)
    ids = np.full(len(passes), 2)
    drawn = mix.draw(ids, draws(ids, passes))
    texts, counts = np.unique(mix.texts(drawn.rows), return_counts=True)
    # The sample has two originals, which share one fifth.
    wanted = [0.2 if text.startswith("text") else 0.1 for text in texts]
    assert len(texts) == 6
    assert np.abs(counts / len(passes) - wanted).max() < 4 * np.sqrt(0.2 * 0.8 / len(passes))
    assert (drawn.num_missing, drawn.num_short) == (0, 0)


def test_missing_and_short_texts_become_originals_and_are_counted(index: Index) -> None:
    mix = CaptionMix(index, parse_weights(["four"]))
    ids = np.array([0, 1, 1, 2, 3])
    uniform = np.array([[0.0, 0.5], [0.6, 0.5], [0.3, 0.5], [0.9, 0.5], [0.7, 0.5]])
    drawn = mix.draw(ids, uniform)
    texts = mix.texts(drawn.rows)
    assert texts[2:4] == ["text 1 of sample 1", "text 3 of sample 2"]
    assert mix.sources(drawn.rows) == ["caption", "caption", "four", "four", "caption"]
    originals = index.captions()
    assert texts[1] == originals.texts(originals.draw(np.array([1]), np.array([0.6])))[0]
    assert (drawn.num_missing, drawn.num_short) == (2, 1)


def every_text(index: Index, *captions: str) -> CaptionMix:
    return CaptionMix(index, parse_weights(captions), every_text=True)


def test_every_text_comes_in_its_place(index: Index) -> None:
    mix = every_text(index, "caption=1", "four=4")
    assert mix.texts_per_sample == 5
    ids = np.array([2, 4])
    drawn = mix.draw(ids, draws(ids, num_draws=mix.draws_per_sample))
    texts = np.array(mix.texts(drawn.rows)).reshape(2, 5)
    for sample, row in zip(ids, texts, strict=True):
        assert row[1:].tolist() == [f"text {place} of sample {sample}" for place in range(4)]
    assert mix.sources(drawn.rows) == ["caption", "four", "four", "four", "four"] * 2
    assert (drawn.num_missing, drawn.num_short) == (0, 0)


def test_of_more_texts_than_places_all_come_in_turn(index: Index) -> None:
    """Two in a row of four, from a drawn one on; one of both originals."""
    mix = every_text(index, "four=2", "caption=1")
    passes = np.arange(400)
    ids = np.full(len(passes), 2)
    drawn = mix.draw(ids, draws(ids, passes, num_draws=mix.draws_per_sample))
    rows = np.array(mix.texts(drawn.rows)).reshape(-1, 3)
    pairs, counts = np.unique(rows[:, :2], axis=0, return_counts=True)
    numbers = [(int(one.split()[1]), int(other.split()[1])) for one, other in pairs]
    assert numbers == [(0, 1), (1, 2), (2, 3), (3, 0)]
    assert counts.min() > 60
    assert len(set(rows[:, 2])) == 2


def test_places_without_a_text_get_drawn_originals(index: Index) -> None:
    """Sample 0 has no rewrites, sample 1 a short one, and nobody has five."""
    mix = every_text(index, "four=5")
    ids = np.array([0, 1, 2])
    drawn = mix.draw(ids, draws(ids, num_draws=mix.draws_per_sample))
    sources = np.array(mix.sources(drawn.rows)).reshape(3, 5).tolist()
    assert sources[0] == ["caption"] * 5
    assert sources[1] == ["four", "four", "caption", "four", "caption"]
    assert sources[2] == ["four"] * 4 + ["caption"]
    assert len(set(mix.texts(drawn.rows[:5]))) == 2, "both originals, each place by its own draw"
    assert (drawn.num_missing, drawn.num_short) == (5 + 1 + 1, 1)


def test_weights_that_count_no_texts_are_refused(index: Index) -> None:
    with pytest.raises(ValueError, match=r"whole numbers, got caption=1 four=1\.5"):
        every_text(index, "caption", "four=1.5")
    assert text_counts(parse_weights(["caption", "four=4"])) == (1, 4)


def test_a_draw_does_not_depend_on_the_batch(index: Index) -> None:
    mix = CaptionMix(index, parse_weights(["caption", "four=2"]))
    ids = np.random.default_rng(0).permutation(NUM_SAMPLES)
    whole = mix.draw(ids, draws(ids)).rows
    parts = [mix.draw(some, draws(some)).rows for some in np.array_split(ids, 7)]
    assert whole.tolist() == np.concatenate(parts).tolist()
    assert len(set(mix.sources(whole))) == 2


@pytest.mark.parametrize("context_length", [5, 77])
def test_packed_texts_are_those_drawn(index: Index, context_length: int) -> None:
    mix = CaptionMix(index, parse_weights(["four=3", "caption"]))
    ids = np.arange(NUM_SAMPLES)
    rows = mix.draw(ids, draws(ids)).rows
    assert mix.draws_needed(rows, context_length) == 0
    tokens, offsets = mix.pack(rows, context_length, np.empty((len(rows), 0)))
    encoded = encode_captions(mix.texts(rows))
    assert offsets[-1] == len(tokens)
    for ids_of_text, packed in zip(encoded, np.split(tokens, offsets[1:-1]), strict=True):
        assert packed[1:-1].tolist() == ids_of_text[: context_length - 2].tolist()


def test_fingerprint_is_of_the_added_sources(index: Index) -> None:
    before = CaptionMix(index, parse_weights(["caption", "four"])).fingerprint
    assert CaptionMix(index, parse_weights(["caption"])).fingerprint == ""
    assert CaptionMix(index, parse_weights(["four=9", "caption"])).fingerprint == before
    path = index.directory / "captions" / "four.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fingerprint": "b" * 64}))
    assert CaptionMix(index, parse_weights(["caption", "four"])).fingerprint != before


def test_describe_names_coverage_and_share(index: Index) -> None:
    (line,) = CaptionMix(index, parse_weights(["caption=1", "four=4"])).describe()
    assert "four: 80.0% of the draws" in line
    assert "66.7% of the samples" in line


def test_class_numbers_in_place_of_captions_are_told(index: Index) -> None:
    """Training on what `index_shards --captions class` makes said nothing."""
    assert CaptionMix(index, (("caption", 1.0),)).warnings() == []
    numbers = [str(owner % 10) for owner in range(NUM_SAMPLES)]
    table = caption_batch(numbers, encode_captions(numbers), np.arange(NUM_SAMPLES))
    write_batch(index.directory / "captions" / "class.arrow", table)
    (line,) = CaptionMix(index, (("class", 1.0),)).warnings()
    assert "'class'" in line
    assert "learns no words" in line
