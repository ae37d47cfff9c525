# Letters that look like others are what these tests are about.
# ruff: noqa: RUF001
from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from tessera.pipeline.index import tokenizer
from tessera.pipeline.index.captions import EOT, MAX_TOKENS, SOT
from tessera.pipeline.index.tokenizer import encode_captions, token_strings

ROOT = Path(__file__).resolve().parents[4]
DATA = Path(os.environ.get("TESSERA_DATA", ROOT.parent / "shared" / "data"))
NUM_GENERATED = 100_000

SCRIPTS = [
    "صورة كلب يجري في الحديقة ١٢٣",
    "一只狗在公园里奔跑。『今天』２０２４年",
    "собака бежит по парку, ёлка №5",
    "สุนัขวิ่งในสวน น้ำ ๑๒๓",
    "कुत्ता पार्क में दौड़ता है १२३",
    "犬が公園を走る ﾊﾝｶｸ カタカナ",
    "강아지가 공원에서 달린다 각",
    "Ο ΣΚΥΛΟΣ τρέχει ΟΔΟΣ. ΑΣ",
    "İSTANBUL ıspanak ẞtraße ŒUVRE ǅ ŉ",
    "e\u0301te\u0301 a\u0308\u0323 Z\u0351\u036b\u0343 \u0345",
    "ſtreet 'ſ 'S dog\u2019s K Å ﬁne ﬂuffy ⅳ Ⅷ ² ½",
]
EMOJI = ["😀", "🎉🎉", "👩‍👩‍👧‍👦", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "👍🏽", "❤️", "☀", "🇩🇪", "😂😂😂"]
MARKUP = [
    "&amp;", "&amp;amp;", "&amp;amp;lt;b&gt;", "&eacute;", "&EACUTE;", "&#233;", "&#x1F600;",
    "&nbsp;", "&notit;", "&copy 2020", "&", "& ", "&;", "&#", "&#0;", "&#xD800;", "&#999999999999;",
    "&#128;", "&#13;", "&hellip;", "R&D", "a&b=c&lt", "<b>bold</b>", "<br/>", "<", "&quot;hi&quot;",
    "&#39;s", "&zwj;", "&Tab;", "&NewLine;", "&shy;", "&amp;#39;",
]  # fmt: skip
MOJIBAKE = [
    "cafÃ©", "â€œquotedâ€\x9d", "donâ€™t", "Ã  la mode", "ÃƒÂ©", "ðŸ˜€", "rÃ©sumÃ©", "Â© 2019",
    "Ð¡Ð¾Ð±Ð°ÐºÐ°", "l\x92homme", "\x93smart\x94", "Ã¼ber", "â€¦", "schÃ¶n â€“ gut", "voilÃ le",
]  # fmt: skip
ODD = [
    "\0", "\t", "\n", "\r", "\r\n", "\x0b", "\x0c", "\x1b[31mred\x1b[0m", "\x1b", "\x1c", "\x1f",
    "\x7f", "\x85", "\xa0", "\xad", "\u180e", "\u200b", "\u200d", "\u200e", "\u2028", "\u2029",
    "\u3000", "\ufeff", "\ufffd", "\ufffc", "\u206a", "\U000e0001", "\u0378", "\uffff",
]  # fmt: skip
SPECIAL = [
    "<start_of_text>", "<end_of_text>", "<START_OF_TEXT>", "<ſtart_of_text>", "x<end_of_text>y",
    "<start_of_text", "</w>", "w</w>", "<|endoftext|>", "&lt;end_of_text&gt;",
]  # fmt: skip
PLAIN = [
    "https://example.com/a_b?x=1&y=%20#top", "IMG_2041.JPG", "1,234.56", "3x4", "@user", "#tag",
    "it's", "they'll", "we've", "I'm", "he'd", "you're", "don't", "DON'T", "'s", "''s", "\u2018s",
    "\u2019t", "\u201cquoted\u201d", "rock'n'roll", "--", "...", "!!!", "(c)", "$9.99", "50%", "_",
]  # fmt: skip


@lru_cache(maxsize=1)
def reference() -> SimpleTokenizer:
    return SimpleTokenizer()


def expected(text: str) -> list[int]:
    return reference().encode(text)[:MAX_TOKENS]


def assert_equal_to_open_clip(texts: list[str], batch_size: int = 1000) -> None:
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        for text, ids in zip(batch, encode_captions(batch), strict=True):
            assert ids.dtype == np.uint16
            assert ids.tolist() == expected(text), ascii(text)


def generated_captions(count: int) -> list[str]:
    """Captions of all kinds: three in four plain words, the others with oddities mixed in."""
    draw = random.Random(20240229)
    words = [s[:-4] for s in token_strings(range(512, SOT)) if s.endswith("</w>")]
    words = [word for word in words if word.isascii()]

    def plain() -> str:
        word = draw.choice(words)
        change = draw.random()
        if change < 0.2:
            word = word.capitalize() if change < 0.15 else word.upper()
        elif change < 0.3:
            word += draw.choice(words)
        return word + draw.choice(["", "", "", "", "", ",", ".", "'s", "-", "!"])

    def code_points() -> str:
        top = draw.choice([0x80, 0x100, 0x250, 0x3000, 0x10000, 0x110000])
        points = [draw.randrange(top) for _ in range(draw.randint(1, 6))]
        return "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)

    def script() -> str:
        text = draw.choice(SCRIPTS)
        start = draw.randrange(len(text))
        return text[start : start + draw.randint(1, 12)]

    lists = [EMOJI, MARKUP, MOJIBAKE, ODD, SPECIAL, PLAIN]
    odd: list[Callable[[], str]] = [code_points, script, lambda: draw.choice(draw.choice(lists))]
    captions = []
    for _ in range(count):
        parts = [plain() for _ in range(draw.randint(1, 9))]
        if draw.random() < 0.25:
            for _ in range(draw.randint(1, 4)):
                parts.insert(draw.randint(0, len(parts)), draw.choice(odd)())
        captions.append(draw.choice([" ", " ", " ", " ", "  ", "", "\t"]).join(parts))
    return captions


def test_100_000_generated_captions_equal_open_clip() -> None:
    captions = generated_captions(NUM_GENERATED)
    assert len(set(captions)) > 0.95 * NUM_GENERATED
    assert_equal_to_open_clip(captions)


def test_every_listed_oddity_equals_open_clip_alone_and_between_words() -> None:
    oddities = [*SCRIPTS, *EMOJI, *MARKUP, *MOJIBAKE, *ODD, *SPECIAL, *PLAIN, "", " ", "  a  b "]
    between = [f"a dog{odd}cat {odd} 7" for odd in oddities]
    pairs = [first + second for first in oddities for second in oddities[::7]]
    assert_equal_to_open_clip([*oddities, *between, *pairs], batch_size=5)


def test_every_code_point_equals_open_clip() -> None:
    points = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    assert_equal_to_open_clip([" ".join(points[n : n + 60]) for n in range(0, len(points), 60)])


def test_real_captions_equal_open_clip() -> None:
    captions: list[str] = []
    for path in sorted(DATA.glob("*/*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                if file is None or not member.name.endswith((".txt", ".json")):
                    continue
                content = file.read().decode("utf-8")
                is_json = member.name.endswith(".json")
                captions += json.loads(content).get("captions", []) if is_json else [content]
    if not captions:
        pytest.skip(f"no real captions at {DATA}: set TESSERA_DATA to the folder of the test data")
    assert_equal_to_open_clip(list(dict.fromkeys(captions)))


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(max_codepoint=0x7F), max_size=40))
def test_any_ascii_text_equals_open_clip(text: str) -> None:
    assert_equal_to_open_clip([text])


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("&amp;lt#38xX<> \n'\u2019sÃ©â€œ\u00a0a"), max_size=30))
def test_any_mixture_of_escapes_and_mojibake_equals_open_clip(text: str) -> None:
    assert_equal_to_open_clip([text])


def test_half_a_surrogate_pair_equals_open_clip() -> None:
    assert_equal_to_open_clip(["a \ud83d dog", "a \ud83d\ude00 dog", "\udc00"])


def test_ids_do_not_depend_on_the_batch() -> None:
    captions = generated_captions(2_000)
    together = encode_captions(captions)
    for size in (1, 7):
        apart = [
            ids
            for start in range(0, len(captions), size)
            for ids in encode_captions(captions[start : start + size])
        ]
        assert [ids.tolist() for ids in apart] == [ids.tolist() for ids in together]
    assert encode_captions([]) == []


def test_splitting_at_white_space_first_is_exact() -> None:
    """A cleaned text holds no white space but single spaces, and no piece holds a space."""
    for character in map(chr, range(0x110000)):
        assert character.isspace() or not any(low.isspace() for low in character.lower())
    assert not tokenizer._PIECES.search(" ")
    assert tokenizer._PIECES.findall("'s a1! <end_of_text>") == [
        "'s",
        "a",
        "1",
        "!",
        "<end_of_text>",
    ]
    assert tokenizer._PIECES.pattern == reference().pat.pattern
    assert tokenizer._PIECES.flags == reference().pat.flags


def test_words_without_any_token_do_not_count_towards_the_limit() -> None:
    (ids,) = encode_captions(["\u0345 " * 300 + "dog"])
    assert token_strings(ids) == ["dog</w>"]
    assert_equal_to_open_clip(["\u0345 " * 300 + "dog", "\u0345", "a\u0345 b \u0345c"])


def test_merging_by_queue_equals_merging_pass_by_pass() -> None:
    """True as every merge comes after those that make its parts: a merge makes none due earlier."""
    strings, merges = tokenizer._vocabulary()
    rank = {first + second: number for number, (first, second) in enumerate(merges)}
    assert len(rank) == len(merges)
    for number, pair in enumerate(merges):
        assert all(rank.get(part, -1) < number for part in pair)
    assert strings == list(reference().encoder)
    assert merges == list(reference().bpe_ranks)


@pytest.mark.parametrize(
    "text",
    [
        "a" * 1_000_000,
        "na" * 500_000,
        "😀" * 250_000,
        "a dog " * 170_000,
        "é" * 500_000,
        "7" * 10**6,
    ],
    ids=["letter", "word", "emoji", "words", "accents", "digits"],
)
def test_a_text_of_a_megabyte_equals_open_clip_in_linear_time(text: str) -> None:
    started = time.process_time()
    (ids,) = encode_captions([text])
    seconds = time.process_time() - started
    assert ids.tolist() == expected(text)
    assert seconds < 5, f"{seconds:.1f} s; linear time is below 1 s"


def test_a_long_word_of_random_letters_equals_open_clip() -> None:
    draw = random.Random(3)
    words = ["".join(draw.choices("etaoinshrdlu", k=length)) for length in (63, 64, 65, 500, 2000)]
    assert_equal_to_open_clip([*words, *words])
    started = time.process_time()
    (ids,) = encode_captions(["".join(draw.choices("etaoinshrdlu", k=1_000_000))])
    assert time.process_time() - started < 8
    assert len(ids) == MAX_TOKENS


@pytest.mark.parametrize("layer", ["amp;", "#38;", "AMP;", "#x26;", "#x0026;", "amp;#38;"])
@pytest.mark.parametrize("frame", ["{}", "a {}lt;b&gt; &amp;amp; é", "<b> {} dog"])
def test_an_ampersand_escaped_over_and_over_equals_open_clip(layer: str, frame: str) -> None:
    assert_equal_to_open_clip([frame.format("&" + layer * count) for count in (2, 299, 300, 700)])
    started = time.process_time()
    encode_captions([frame.format("&" + layer * 10_000)])
    assert time.process_time() - started < 2


def test_numbers_that_python_refuses_to_read_are_beyond_unicode() -> None:
    texts = ["a &#" + "9" * 5000 + "; dog", "&#" + "0" * 5000 + "65; b", "&amp;#" + "1" * 5000]
    with pytest.raises(ValueError, match="4300 digits"):
        expected(texts[0])
    arrays = encode_captions(texts)
    assert arrays[0].tolist() == expected("a \ufffd dog")
    assert arrays[1].tolist() == expected("a b")
    assert arrays[2].tolist() == expected("\ufffd")


def test_special_tokens_inside_a_text_are_single_ids() -> None:
    (ids,) = encode_captions(["<start_of_text>dog<END_OF_TEXT>"])
    assert (ids[0], ids[-1], len(ids)) == (SOT, EOT, 3)


def test_memory_of_words_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "_MAX_CACHED_WORDS", 100)
    texts = [f"word{number}x and {'y' * 100}{number}" for number in range(1000)]
    assert_equal_to_open_clip(texts)
    words = tokenizer._word_ids()
    assert 0 < len(words) <= 100
    assert max(map(len, words)) <= 64


def test_arrays_are_read_only_so_that_they_can_share_memory() -> None:
    (ids,) = encode_captions(["a dog"])
    with pytest.raises(ValueError, match="read-only"):
        ids[0] = 1


def test_tokenising_imports_neither_torch_nor_open_clip() -> None:
    code = (
        "import sys; from tessera.pipeline.index.tokenizer import encode_captions, token_strings\n"
        "assert token_strings(encode_captions(['a café'])[0]) == ['a</w>', 'cafÃ©</w>']\n"
        "assert not {'torch', 'open_clip', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-X", "utf8", "-c", code], cwd=ROOT, check=True)


def test_missing_vocabulary_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer.importlib.util, "find_spec", lambda _: None)
    tokenizer._vocabulary.cache_clear()
    with pytest.raises(FileNotFoundError, match="pip install open_clip_torch"):
        token_strings([0])
