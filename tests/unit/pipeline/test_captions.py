from __future__ import annotations

import pickle
import time
from pathlib import Path

import numpy as np
import pytest

from tessera.pipeline.index.arrow_file import write_batch
from tessera.pipeline.index.captions import EOT, SOT, CaptionTable, caption_batch, pack_tokens
from tessera.pipeline.index.tokenizer import encode_captions, tokenize_prompts

TEXTS = [
    "a photo of a dog",
    "Two   cats\n\tand a &amp;quot;HAT&amp;quot; &nbsp; &eacute;",
    "\N{DOG FACE}\N{FACE WITH TEARS OF JOY} party!!! \N{FAMILY}\N{ZERO WIDTH JOINER}\N{GIRL}",
    "\u732b\u3068\u72ac \u043a\u043e\u0442 \u0438 \u0441\u043e\u0431\u0430\u043a\u0430 na\u00efve",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd 12345 it's they'll",
    "mojibake: schÃ¶n \u201cquoted\u201d \ufb01ne",
    "word " * 300,
    "x" * 2000,
    "<start_of_text> hidden <end_of_text>",
    "!",
]


def make_table(tmp_path: Path, owners: list[int], num_samples: int) -> CaptionTable:
    texts = [f"text {row}" for row in range(len(owners))]
    tokens = [np.arange(10 * row, 10 * row + row, dtype=np.uint16) for row in range(len(owners))]
    path = tmp_path / "caption.arrow"
    write_batch(path, caption_batch(texts, tokens, owners))
    return CaptionTable(path, num_samples)


def open_clip_rows(texts: list[str], context_length: int) -> list[list[int]]:
    """Each up to its first end token, where open_clip reads its feature."""
    import open_clip

    padded = open_clip.get_tokenizer("ViT-B-16")(texts, context_length=context_length).tolist()
    return [row[: row.index(EOT) + 1] for row in padded]


def unpacked(tokens: np.ndarray, offsets: np.ndarray) -> list[list[int]]:
    return [part.tolist() for part in np.split(tokens, offsets[1:-1])]


@pytest.mark.parametrize("context_length", [2, 3, 16, 77, 255])
def test_prompts_equal_open_clip(context_length: int) -> None:
    tokens, offsets = tokenize_prompts(TEXTS, context_length)
    assert tokens.dtype == offsets.dtype == np.int32
    assert unpacked(tokens, offsets) == open_clip_rows(TEXTS, context_length)


def test_encode_captions_gives_capped_uint16_without_special_tokens() -> None:
    arrays = encode_captions(["a dog", "word " * 300])
    assert [array.dtype for array in arrays] == [np.uint16, np.uint16]
    assert [len(array) for array in arrays] == [2, 253]
    assert not {SOT, EOT} & set(arrays[0].tolist())


def test_first_text_and_rows_count_owners(tmp_path: Path) -> None:
    table = make_table(tmp_path, [0, 0, 0, 1, 3, 3], num_samples=5)
    assert table.num_texts == 6
    assert table.first_text.tolist() == [0, 3, 4, 4, 6, 6]
    rows, offsets = table.rows(np.array([3, 2, 0]))
    assert rows.tolist() == [4, 5, 0, 1, 2]
    assert offsets.tolist() == [0, 2, 2, 5]


def test_draw_takes_the_floor_of_u_times_count(tmp_path: Path) -> None:
    table = make_table(tmp_path, [0, 0, 0, 1], num_samples=2)
    ids = np.array([0, 0, 0, 0, 1, 1])
    uniforms = np.array([0.0, 0.33, 0.34, np.nextafter(1.0, 0.0), 0.0, 0.99])
    assert table.draw(ids, uniforms).tolist() == [0, 0, 1, 2, 3, 3]


def test_draw_refuses_a_sample_without_text(tmp_path: Path) -> None:
    table = make_table(tmp_path, [0, 2], num_samples=3)
    with pytest.raises(ValueError, match="sample 1 has no text"):
        table.draw(np.array([0, 1]), np.zeros(2))


def test_texts_follow_the_rows_asked_for(tmp_path: Path) -> None:
    table = make_table(tmp_path, [0, 1, 2], num_samples=3)
    assert table.texts(np.array([2, 0, 2])) == ["text 2", "text 0", "text 2"]


def test_pack_puts_start_and_end_around_each_text(tmp_path: Path) -> None:
    table = make_table(tmp_path, [0, 1, 2, 3], num_samples=4)
    tokens, offsets = table.pack(np.array([3, 0, 1]), context_length=4)
    assert tokens.dtype == offsets.dtype == np.int32
    assert unpacked(tokens, offsets) == [[SOT, 30, 31, EOT], [SOT, EOT], [SOT, 10, EOT]]


def test_pack_of_no_rows_is_empty(tmp_path: Path) -> None:
    tokens, offsets = make_table(tmp_path, [0], 1).pack(np.array([], np.int64), 77)
    assert tokens.tolist() == []
    assert offsets.tolist() == [0]


@pytest.mark.parametrize("context_length", [1, 256])
def test_pack_refuses_a_context_that_is_not_stored(tmp_path: Path, context_length: int) -> None:
    with pytest.raises(ValueError, match="context_length must lie between 2 and 255"):
        make_table(tmp_path, [0], 1).pack(np.array([0]), context_length)


def test_table_of_another_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the index has 2 samples"):
        make_table(tmp_path, [0, 1, 2], num_samples=2)


def test_table_survives_pickling(tmp_path: Path) -> None:
    table = make_table(tmp_path, [0, 1], num_samples=2)
    copy = pickle.loads(pickle.dumps(table))
    assert copy.texts(np.array([1])) == ["text 1"]


def test_packing_1024_captions_takes_under_2_ms() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 40, 1024)
    ids = rng.integers(0, 49406, lengths.sum()).astype(np.uint16)
    starts = np.cumsum(lengths) - lengths
    times = []
    for _ in range(50):
        begin = time.perf_counter()
        pack_tokens(ids, starts, lengths, 77)
        times.append(time.perf_counter() - begin)
    assert min(times) < 2e-3
