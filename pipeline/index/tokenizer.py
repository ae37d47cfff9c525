"""open_clip's BPE made fast: the same ids, in plain arrays that are stored and packed unpadded.

A text is cleaned, split at white space, and each word between is looked up among the words met
before; only new ones are tokenised, by the Rust library `tokenizers` over open_clip's own
vocabulary. This is exact because no token of open_clip's reaches over white space. Neither
open_clip nor torch is imported.
"""

from __future__ import annotations

import gzip
import html
import importlib.util
import re
from array import array
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import ftfy
import numpy as np
import regex
from numpy.typing import NDArray
from tokenizers.models import BPE

from tessera.pipeline.index.captions import EOT, MAX_TOKENS, SOT, pack_tokens

TOKENIZER_NAME = "open_clip.SimpleTokenizer"
_VOCABULARY_FILE = "bpe_simple_vocab_16e6.txt.gz"
_NUM_MERGES = 48_894
_SPECIAL = {"<start_of_text>": SOT, "<end_of_text>": EOT}
_END_OF_WORD = "</w>"
# What open_clip splits a cleaned text by. Its case-insensitive `'s` also takes a long s.
_PIECES = regex.compile(
    "|".join(_SPECIAL) + r"|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)
_MAX_CACHED_WORDS = 200_000
_MAX_CACHED_CHARACTERS = 64
_BYTES_PER_ID = 2
# Ampersands escaped again and again, of which ftfy undoes one layer a pass over the whole text.
# More layers than ids are kept of a text make no difference.
_AMPERSAND = "(?:(?:amp|AMP|#0{0,22}38|#[xX]0{0,21}26);)"
_ESCAPED_AGAIN = re.compile(f"(&{_AMPERSAND}{{300}}){_AMPERSAND}+")
_LONG_NUMBER = re.compile(r"&#([0-9]{1000,})")


def encode_captions(texts: Sequence[str]) -> list[NDArray[np.uint16]]:
    """Token ids of each text, without SOT and EOT.

    Args:
        texts: any number of texts.

    Returns:
        One read-only uint16 array per text, at most 253 ids, equal to what
        `open_clip.get_tokenizer("ViT-B-16")` has between SOT and EOT.

    Raises:
        FileNotFoundError: open_clip or its vocabulary is not installed.
    """
    ids_of = _word_ids().__getitem__
    arrays: list[NDArray[np.uint16]] = []
    for text in texts:
        ids = b"".join(map(ids_of, _clean(text).split()))[: MAX_TOKENS * _BYTES_PER_ID]
        arrays.append(np.frombuffer(ids, np.uint16))
    return arrays


def tokenize_prompts(
    texts: Sequence[str], context_length: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Tokenise texts that are in no index, such as the prompts of a zero-shot evaluation.

    Args:
        texts: B texts.
        context_length: most tokens of one text, SOT and EOT included.

    Returns:
        tokens [U] int32 and text_offsets [B+1] int32, as in `PackedBatch`.

    Raises:
        ValueError: `context_length` is below 2 or above 255.
    """
    arrays = encode_captions(texts)
    lengths = np.fromiter(map(len, arrays), np.int64, len(arrays))
    ids = np.concatenate(arrays) if arrays else np.empty(0, np.uint16)
    return pack_tokens(ids, np.cumsum(lengths) - lengths, lengths, context_length)


def encode_pieces(text: str) -> tuple[list[str], list[int]]:
    """The words and signs that a text is cut into before byte-pair encoding.

    Args:
        text: any text.

    Returns:
        The pieces, in the case of the text, and how many ids each has. Where every piece is kept
        the ids are those of `encode_captions`.
    """
    ids_of = _word_ids().__getitem__
    pieces = [piece for word in _repair(text).split() for piece in _PIECES.findall(word)]
    return pieces, [len(ids_of(piece.lower())) // _BYTES_PER_ID for piece in pieces]


def token_strings(ids: Iterable[int]) -> list[str]:
    """What each token id stands for, for people to read; `</w>` marks the end of a word."""
    strings, _ = _vocabulary()
    return [strings[int(token)] for token in ids]


def _clean(text: str) -> str:
    """What open_clip does to a text before it splits it.

    Lowered as a whole, as there: a sigma becomes what its neighbours make of it.
    """
    return _repair(text).lower()


def _repair(text: str) -> str:
    """Repair encoding and undo HTML escapes.

    Printable ASCII is what nearly all captions are. ftfy leaves it as it is unless it holds an
    HTML entity, and an ampersand before a space begins none.
    """
    if text.isascii() and text.isprintable() and text.count("&") == text.count("& "):
        return text
    text = ftfy.fix_text(_ESCAPED_AGAIN.sub(r"\1", text))
    return " ".join(_unescape(_unescape(text)).split())


def _unescape(text: str) -> str:
    """`html.unescape`, which raises an error on numbers of more than 4,300 digits."""
    return html.unescape(_LONG_NUMBER.sub(_shorter_number, text))


def _shorter_number(match: re.Match[str]) -> str:
    """The same code point, or one equally far beyond Unicode, in at most 20 digits."""
    return "&#" + (match[1].lstrip("0")[:20] or "0")


class _WordIds(dict[str, bytes]):
    """Ids of words as uint16 bytes; a word that is not there is tokenised when it is asked for.

    Bounded: a web-sized set has tens of millions of different words.
    """

    def __init__(self, bpe: BPE, alphabet: list[str]) -> None:
        super().__init__()
        self._bpe = bpe
        self._byte_letters = str.maketrans(dict(enumerate(alphabet)))

    def __missing__(self, word: str) -> bytes:
        ids = [number for piece in _PIECES.findall(word) for number in self._piece_ids(piece)]
        packed = array("H", ids[:MAX_TOKENS]).tobytes()
        if len(word) <= _MAX_CACHED_CHARACTERS:
            if len(self) >= _MAX_CACHED_WORDS:
                self.clear()
            self[word] = packed
        return packed

    def _piece_ids(self, piece: str) -> list[int]:
        if piece in _SPECIAL:
            return [_SPECIAL[piece]]
        letters = piece.encode().decode("latin-1").translate(self._byte_letters)
        return [token.id for token in self._bpe.tokenize(letters)]


@lru_cache(maxsize=1)
def _word_ids() -> _WordIds:
    strings, merges = _vocabulary()
    numbers = {string: number for number, string in enumerate(strings)}
    # Its own cache is of no use behind that of whole words.
    bpe = BPE(numbers, merges, cache_capacity=0, end_of_word_suffix=_END_OF_WORD)
    return _WordIds(bpe, [letter for _, letter in sorted(_byte_alphabet())])


@lru_cache(maxsize=1)
def _vocabulary() -> tuple[list[str], list[tuple[str, str]]]:
    """The string of every id, and the merges, first to last, of open_clip's vocabulary file."""
    spec = importlib.util.find_spec("open_clip")
    folders = (spec and spec.submodule_search_locations) or []
    path = next((p for p in (Path(f) / _VOCABULARY_FILE for f in folders) if p.is_file()), None)
    if path is None:
        msg = f"open_clip's vocabulary {_VOCABULARY_FILE} is not installed"
        raise FileNotFoundError(f"{msg}: pip install open_clip_torch")
    lines = gzip.decompress(path.read_bytes()).decode().split("\n")[1 : _NUM_MERGES + 1]
    merges = [(first, second) for first, second in (line.split() for line in lines)]
    letters = [letter for _, letter in _byte_alphabet()]
    ends = [letter + _END_OF_WORD for letter in letters]
    strings = [*letters, *ends, *(first + second for first, second in merges), *_SPECIAL]
    if len(merges) != _NUM_MERGES or strings.index("<end_of_text>") != EOT:
        raise ValueError(f"{path} is damaged: install open_clip_torch again")
    return strings, merges


def _byte_alphabet() -> list[tuple[int, str]]:
    """Every byte with the letter that stands for it, in the order of their ids (GPT-2's).

    Bytes that are printable in Latin-1 stand for themselves, the others for letters from U+0100.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    moved = [(byte, chr(0x100 + number)) for number, byte in enumerate(others)]
    return [(byte, chr(byte)) for byte in printable] + moved
