from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tessera.pipeline.index import open_index
from tessera.pipeline.index.arrow_file import write_batch
from tessera.pipeline.index.captions import CaptionTable, caption_batch
from tessera.pipeline.index.tokenizer import encode_captions, encode_pieces, token_strings
from tessera.pipeline.index.word_classes import (
    class_of,
    classify,
    open_tagger,
    read_word_classes,
    write_word_classes,
)

ROOT = Path(__file__).resolve().parents[3]
TEXTS = [
    "An orange cat is sleeping on a ledge",
    "A photo of Zürich&amp;Genève, 1984 — it's great!!",
    "",
    "\U0001f600 ΑΣ antidisestablishmentarianism's <end_of_text> 0.5",
]
LEXICON = "cat\tNN\nledge\tNN\nOrange\tJJ\nsleeping\tVBG\nphoto\tNN1\ngreat\tAJ0\n"


@pytest.fixture
def lexicon(tmp_path: Path) -> Path:
    path = tmp_path / "words.tsv"
    path.write_text(LEXICON, encoding="utf-8")
    return path


@pytest.fixture
def table(tmp_path: Path) -> CaptionTable:
    path = tmp_path / "caption.arrow"
    write_batch(path, caption_batch(TEXTS, encode_captions(TEXTS), np.arange(len(TEXTS))))
    return CaptionTable(path, len(TEXTS))


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        *[("NNS", 0), ("NP0", 0), ("JJR", 1), ("AJ0", 1), ("VBZ", 2), ("VVG", 2)],
        *[("MD", 3), ("VM0", 3), ("IN", 3), ("", 3)],
    ],
)
def test_tags_of_both_sets(tag: str, expected: int) -> None:
    assert class_of(tag) == expected


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_add_up_to_the_ids(text: str) -> None:
    _, counts = encode_pieces(text)
    assert sum(counts) == len(encode_captions([text])[0])


def test_tokens_have_the_class_of_their_word(lexicon: Path) -> None:
    text = "An orange cat's antidisestablishmentarianism, sleeping"
    ids = encode_captions([text])[0]
    classes = classify(text, len(ids), open_tagger(str(lexicon)))
    assert classes is not None
    by_token = list(zip(token_strings(ids), classes.tolist(), strict=True))
    assert by_token[:4] == [("an</w>", 3), ("orange</w>", 1), ("cat</w>", 0), ("'s</w>", 3)]
    assert by_token[-1] == ("sleeping</w>", 2)


def test_written_and_read(table: CaptionTable, lexicon: Path) -> None:
    seen: list[int] = []
    report = write_word_classes(table, str(lexicon), 1, seen.append)
    classes = read_word_classes(table)
    assert len(classes) == len(table.token_ids) == report.num_tokens
    first = classes[: table.token_offsets[1]].tolist()
    assert first == [3, 1, 0, 3, 2, 3, 3, 0]
    assert report.share["noun"] == pytest.approx((classes == 0).mean())
    assert (report.num_texts, report.unaligned, sum(seen)) == (4, 0, 4)
    assert not list(table.path.parent.glob(".partial*"))


def test_without_context_a_token_has_the_class_of_its_own_piece(
    table: CaptionTable, lexicon: Path
) -> None:
    seen: list[int] = []
    lexicon.write_text(LEXICON + "ism\tVB\nan\tNN\n", encoding="utf-8")
    report = write_word_classes(table, str(lexicon), 1, seen.append, context_free=True)
    assert (report.num_tokens, report.unaligned, sum(seen)) == (len(table.token_ids), 0, 4)
    pieces = token_strings(table.token_ids.tolist())
    by_piece = dict(zip(pieces, read_word_classes(table).tolist(), strict=True))
    assert [by_piece[f"{w}</w>"] for w in ("an", "orange", "cat", "sleeping", "on")] == [
        0,
        1,
        0,
        2,
        3,
    ]
    assert by_piece["anti"] == 3, "a piece of a word is not the word"
    assert 'context_free": true' in (table.path.parent / "caption.word_classes.json").read_text()


def test_texts_that_are_never_served_are_not_counted(tmp_path: Path, lexicon: Path) -> None:
    """Of added sources, texts of too few words are stored without ids."""
    path = tmp_path / "caption.arrow"
    ids = encode_captions(["a cat"])
    write_batch(path, caption_batch(["a cat", "cat"], [*ids, ids[0][:0]], [0, 1]))
    assert write_word_classes(CaptionTable(path, 2), str(lexicon), 1).unaligned == 0


def test_a_text_that_is_not_its_ids_is_counted(tmp_path: Path, lexicon: Path) -> None:
    path = tmp_path / "caption.arrow"
    write_batch(path, caption_batch(["cat cat"], encode_captions(["cat"]), [0]))
    table = CaptionTable(path, 1)
    assert write_word_classes(table, str(lexicon), 1).unaligned == 1
    assert read_word_classes(table).tolist() == [3]


def test_classes_of_other_captions_are_refused(table: CaptionTable, lexicon: Path) -> None:
    with pytest.raises(ValueError, match=r"no word classes; run .*tag_captions.*--source caption"):
        read_word_classes(table)
    write_word_classes(table, str(lexicon), 1)
    texts = ["dog", *TEXTS[1:]]
    write_batch(table.path, caption_batch(texts, encode_captions(texts), np.arange(len(texts))))
    with pytest.raises(ValueError, match="other captions"):
        read_word_classes(CaptionTable(table.path, len(TEXTS)))


def test_what_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError):
        open_tagger(str(tmp_path / "absent.tsv"))
    (tmp_path / "bad.tsv").write_text("cat\tNN\ndog NN\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 2: expected word<TAB>tag"):
        open_tagger(str(tmp_path / "bad.tsv"))
    monkeypatch.setitem(sys.modules, "HanTa", None)
    monkeypatch.setitem(sys.modules, "nltk", None)
    for name in ("hanta", "nltk"):
        with pytest.raises(ValueError, match="pip install"):
            open_tagger(name)


def test_hanta_knows_context() -> None:
    pytest.importorskip("HanTa", reason="the tagger HanTa is not installed")
    tagger = open_tagger("hanta")
    for text, word, expected in (("the green park", "park", 0), ("we park the car", "park", 2)):
        classes = classify(text, len(encode_captions([text])[0]), tagger)
        assert classes is not None
        assert classes[text.split().index(word)] == expected


def test_the_tool(coloured_index: Path, lexicon: Path, tmp_path: Path) -> None:
    index = shutil.copytree(coloured_index, tmp_path / "index")
    command = [sys.executable, "tools/tag_captions.py", str(index), "--tagger"]
    done = run([*command, str(lexicon), "--workers", "2"])
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["num_texts"], result["unaligned"]) == (192, 0)
    # The lexicon has none of their words.
    assert result["share"]["other"] == 1
    assert set(read_word_classes(open_index(index).captions()).tolist()) == {3}
    wrong = run([*command, "absent.tsv"])
    assert wrong.returncode == 2
    assert "absent.tsv" in wrong.stderr


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
