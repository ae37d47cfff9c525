"""Caption files, tables of pictures and links, and the captions themselves."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tessera.pipeline.index.caption_readers import TableReader
from tessera.pipeline.index.laclip import LaclipReader
from tessera.pipeline.index.tokenizer import encode_captions, encode_pieces
from tessera.tools.download.table.formats import detect_format
from tessera.tools.download.table.rows import Tally, read_batches
from tessera.tools.sharding import SkippedError, SourceOptions, open_source
from tests.hostile.harness import Parser

_ROWS = [
    (f"pictures/{n:09d}.jpg", f"http://a.example/{n}.jpg", f"thing{n}, dog{n} near place{n} \u05d0")
    for n in range(20)
]
_NAMES = ("image", "url", "caption")


def _delimited(separator: str) -> bytes:
    return "".join(f"{separator.join(row)}\n" for row in [_NAMES, *_ROWS]).encode()


def _csv(_: Path) -> list[bytes]:
    quoted = "".join(",".join(f'"{cell}"' for cell in row) + "\r\n" for row in [_NAMES, *_ROWS])
    return [quoted.encode(), b"\xef\xbb\xbf" + quoted.encode()]


def _tsv(_: Path) -> list[bytes]:
    return [_delimited("\t")]


def _json_lines(_: Path) -> list[bytes]:
    documents = [dict(zip(_NAMES, row, strict=True)) for row in _ROWS]
    plain = "".join(json.dumps(each) + "\n" for each in documents)
    lists = "".join(
        json.dumps(each | {"caption": [each["caption"]] * 2}) + "\n" for each in documents
    )
    return [plain.encode(), lists.encode()]


def _parquet(_: Path) -> list[bytes]:
    columns = {name: [row[place] for row in _ROWS] for place, name in enumerate(_NAMES)}
    files = []
    for compression in ("snappy", "zstd", "none"):
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns), buffer, compression=compression, row_group_size=3)
        files.append(buffer.getvalue())
    lists = columns | {"caption": [[text, text] for text in columns["caption"]]}
    buffer = io.BytesIO()
    pq.write_table(pa.table(lists), buffer)
    return [*files, buffer.getvalue()]


def _json_maps(_: Path) -> list[bytes]:
    texts = {url: caption for _, url, caption in _ROWS}
    return [json.dumps(texts).encode(), json.dumps({u: [c, c] for u, c in texts.items()}).encode()]


def _captions(suffix: str) -> Callable[[Path], Callable[[bytes], object]]:
    def prepared(folder: Path) -> Callable[[bytes], object]:
        path = folder / f"captions{suffix}"
        key = "key" if suffix == ".json" else "url"
        reader = TableReader(files=(path,), text_columns=("caption",), key_column=key)

        def read(data: bytes) -> None:
            path.write_bytes(data)
            for batch in reader.batches():
                encode_captions([text for texts in batch.texts for text in texts])

        return read

    return prepared


def _laclip(folder: Path) -> Callable[[bytes], object]:
    originals, rewrites = folder / "originals.csv", folder / "rewrites.txt"
    rewrites.write_text("".join(f"{caption}\n" for *_, caption in _ROWS), "utf-8")

    def read(data: bytes) -> None:
        originals.write_bytes(data)
        for batch in LaclipReader(files=(originals, rewrites)).batches():
            encode_captions([text for texts in batch.texts for text in texts])

    return read


def _laclip_files(_: Path) -> list[bytes]:
    return ["".join(f'{image},"{caption}"\n' for image, _, caption in _ROWS).encode()]


def _sources(suffix: str) -> Callable[[Path], Callable[[bytes], object]]:
    """Tables of pictures, for make_shards."""

    def prepared(folder: Path) -> Callable[[bytes], object]:
        path = folder / f"table{suffix}"

        def read(data: bytes) -> None:
            path.write_bytes(data)
            for draft in open_source(path, SourceOptions(image_column="image")).drafts:
                if not isinstance(draft.image, Path) or not draft.image.is_relative_to(folder):
                    raise AssertionError(f"{draft.image} lies outside")

        return read

    return prepared


def _saved_dataset(folder: Path) -> list[bytes]:
    buffer = io.BytesIO()
    images = pa.array([{"bytes": b"\xff\xd8\xff", "path": None}] * len(_ROWS))
    table = pa.table({"image": images, "caption": [row[2] for row in _ROWS]})
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    saved = folder / "saved"
    saved.mkdir()
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": "0.arrow"}]}))
    return [buffer.getvalue()]


def _use_saved_dataset(folder: Path) -> Callable[[bytes], object]:
    path = folder / "saved" / "0.arrow"

    def read(data: bytes) -> None:
        # Another file under the same name: the old one may still be mapped.
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        source = open_source(folder / "saved", SourceOptions())
        for draft in source.drafts:
            if source.fetch and isinstance(draft.image, int):
                source.fetch(draft.image)

    return read


def _links(folder: Path) -> Callable[[bytes], object]:
    """Tables of links, for the downloader."""
    path = folder / "links"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        for batch in read_batches(path, detect_format(path), Tally(), {}):
            batch.validate(full=True)

    return read


def _link_tables(folder: Path) -> list[bytes]:
    text = "".join(f"{url}\t{caption}\n" for _, url, caption in _ROWS).encode()
    plain = [*_json_lines(folder)[:1], *_parquet(folder)[:3]]
    return [text, gzip.compress(text), _delimited(","), *plain]


def _hostile_captions(_: Path) -> list[bytes]:
    texts = [
        "a dog \u202egnirts\u202c and \u2066isolated\u2069 \u200b\u200d\ufeff zero width",
        "\x1b[31mred\x1b[0m \x1b]0;title\x07 \0\x01\x7f\x9b",
        "שלום עולם مرحبا بالعالم 你好 \U0001f468\u200d\U0001f469\u200d\U0001f467",
        "Z\u0351\u036b\u0343\u036a" * 40,
        "&amp;" * 50 + "&#x1F600;&#99999999999;&lt;script&gt;",
        "\u00c3\u00a9t\u00c3\u00a9 \u00e2\u20ac\u0153quoted\u00e2\u20ac",
        "</w>" * 20 + "<start_of_text><end_of_text>",
    ]
    return [text.encode() for text in texts]


def _tokenize(_: Path) -> Callable[[bytes], object]:
    def tokenize(data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        (ids,) = encode_captions([text])
        encode_pieces(text)
        if len(ids) and int(ids.max()) > 49407:
            raise AssertionError("an id outside of the vocabulary")

    return tokenize


def parsers() -> Sequence[Parser]:
    """All of this module."""
    kinds = {".csv": _csv, ".tsv": _tsv, ".jsonl": _json_lines, ".parquet": _parquet}
    captions = {**kinds, ".json": _json_maps}
    return [
        *(
            Parser(
                name=f"add_captions: {suffix}",
                files=files,
                open=_captions(suffix),
                refusals=(ValueError,),
            )
            for suffix, files in captions.items()
        ),
        Parser(
            name="add_captions: LaCLIP",
            files=_laclip_files,
            open=_laclip,
            refusals=(ValueError,),
        ),
        *(
            Parser(
                name=f"make_shards: {suffix}",
                files=files,
                open=_sources(suffix),
                refusals=(ValueError,),
            )
            for suffix, files in kinds.items()
        ),
        Parser(
            name="make_shards: saved data set",
            files=_saved_dataset,
            open=_use_saved_dataset,
            refusals=(ValueError, SkippedError),
        ),
        Parser(name="download: table", files=_link_tables, open=_links, refusals=(ValueError,)),
        Parser(name="captions", files=_hostile_captions, open=_tokenize, refusals=()),
    ]
