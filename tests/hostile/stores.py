"""Shards, indexes and checkpoints."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from tessera.model.pretrained import read_config, read_state_dict
from tessera.pipeline.crops import CropConfig, draw_windows
from tessera.pipeline.index import ScanOptions, build_index, open_index
from tessera.pipeline.index.captions import CaptionRecord, write_record
from tessera.pipeline.index.scan import scan_shard
from tessera.pipeline.reader import ShardReader
from tessera.training.checkpoint import CheckpointError, load
from tests.decoder_pictures import encode, photo
from tests.hostile.harness import Parser
from tests.hostile.mutate import tar_checksums

_NUM_SAMPLES = 6
_SCAN = ScanOptions(captions="json:captions", columns=("url",), sha256=True, dhash=True)


def tar_of(members: Sequence[tuple[str, bytes]], format_name: int = tarfile.USTAR_FORMAT) -> bytes:
    """A tar of (name, content)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format_name) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _members(prefix: str = "") -> list[tuple[str, bytes]]:
    members = []
    for number in range(_NUM_SAMPLES):
        key, caption = f"{prefix}{number:09d}", f"a picture with the number {number}"
        document = {"captions": [caption, caption + " again"], "url": f"http://a.example/{number}"}
        members += [
            (f"{key}.jpg", encode(photo(40, 30, seed=number), quality=60)),
            (f"{key}.txt", caption.encode()),
            (f"{key}.json", json.dumps(document).encode()),
            (f"{key}.cls", str(number).encode()),
        ]
    return members


def _tars(_: Path) -> list[bytes]:
    return [
        tar_of(_members()),
        tar_of(_members("folder/" * 20), tarfile.GNU_FORMAT),
        tar_of(_members("bücher/" * 20), tarfile.PAX_FORMAT),
    ]


def _scan(folder: Path) -> Callable[[bytes], object]:
    path = folder / "0.tar"

    def scan(data: bytes) -> None:
        path.write_bytes(data)
        if scan_shard(str(path), _SCAN).problem:
            raise _ProblemError

    return scan


class _ProblemError(Exception):
    """The report of a shard names a problem; what is sound in it may still be read."""


def _index_files(name: str) -> Callable[[Path], list[bytes]]:
    """The bytes of one file of an index, which is made first."""

    def made(folder: Path) -> list[bytes]:
        shard = folder / "shards" / "0.tar"
        shard.parent.mkdir()
        shard.write_bytes(tar_of(_members()))
        build_index([shard], folder / "index", options=_SCAN)
        record = CaptionRecord(
            index_fingerprint=open_index(folder / "index").fingerprint,
            fingerprint="0" * 64,
            tokenizer="",
            inputs=(),
            join="key",
            num_texts=2 * _NUM_SAMPLES,
            num_samples=_NUM_SAMPLES,
            coverage=1.0,
            counts={},
        )
        source = folder / "index" / "captions" / "second.arrow"
        shutil.copy(folder / "index" / "captions" / "caption.arrow", source)
        write_record(source, record)
        if name != "index.json":
            # Without the sizes that it holds, every damaged file is opened.
            manifest = json.loads((folder / "index" / "index.json").read_text("utf-8"))
            text = json.dumps(manifest | {"files": {}})
            (folder / "index" / "index.json").write_text(text, "utf-8")
        return [(folder / "index" / name).read_bytes()]

    return made


def _use_index(name: str) -> Callable[[Path], Callable[[bytes], object]]:
    """Opens the index with one file replaced, and reads everything that a run or a tool reads."""

    def prepared(folder: Path) -> Callable[[bytes], object]:
        path = folder / "index" / name

        def use(data: bytes) -> None:
            # Another file under the same name: the old one is still mapped.
            path.unlink()
            path.write_bytes(data)
            index = open_index(folder / "index")
            ids = np.arange(index.num_samples)
            index.keys(ids)
            for source in ("caption", "second"):
                captions = index.captions(source)
                rows = captions.draw(ids, np.full(len(ids), 0.7))
                captions.texts(rows)
                captions.pack(rows, 77)
                captions.text.to_pylist()
            for column in index.column_names:
                index.column(column).to_pylist()
            draws = np.random.default_rng(0).random((len(ids), 32))
            draw_windows(index.width[ids], index.height[ids], draws, CropConfig())
            reader = ShardReader(index, 1)
            try:
                reader.read(ids)
            finally:
                reader.close()

        return use

    return prepared


def _tensors() -> dict[str, torch.Tensor]:
    return {"visual.proj": torch.ones(8, 4), "positional_embedding": torch.arange(12.0).view(3, 4)}


def _safetensors(_: Path) -> list[bytes]:
    return [save(_tensors())]


def _pickles(_: Path) -> list[bytes]:
    files = []
    for new in (True, False):
        buffer = io.BytesIO()
        torch.save({"state_dict": _tensors()}, buffer, _use_new_zipfile_serialization=new)
        files.append(buffer.getvalue())
    return files


def _weights(suffix: str) -> Callable[[Path], Callable[[bytes], object]]:
    def prepared(folder: Path) -> Callable[[bytes], object]:
        path = folder / f"weights{suffix}"

        def read(data: bytes) -> None:
            path.write_bytes(data)
            for tensor in read_state_dict(path).values():
                tensor.float().sum() if tensor.numel() < 10**6 else None

        return read

    return prepared


def _checkpoint(name: str) -> Callable[[Path], Callable[[bytes], object]]:
    """Loads a checkpoint one of whose files is damaged, with the hash of the damaged file."""

    def prepared(folder: Path) -> Callable[[bytes], object]:
        def use(data: bytes) -> None:
            names = ("open_clip_model.safetensors", "open_clip_config.json", "state.json")
            contents = dict(zip(names, (save(_tensors()), b'{"model_cfg": {}}', b""), strict=True))
            contents |= {name: data} if name != "state.json" else {}
            hashes = {n: hashlib.sha256(contents[n]).hexdigest() for n in names[:2]}
            state = {"format": 1, "step": 3, "sha256": hashes}
            contents["state.json"] = data if name == "state.json" else json.dumps(state).encode()
            for file, content in contents.items():
                (folder / file).write_bytes(content)
            load(folder)

        return use

    return prepared


def _state(_: Path) -> list[bytes]:
    tensors, config = save(_tensors()), b'{"model_cfg": {}}'
    files = {"open_clip_model.safetensors": tensors, "open_clip_config.json": config}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    return [json.dumps({"format": 1, "step": 3, "sha256": hashes, "samples": 10}).encode()]


def _configs(_: Path) -> list[bytes]:
    import open_clip

    raw = open_clip.get_model_config("ViT-B-16")
    pixels = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    return [json.dumps({"model_cfg": raw, "preprocess_cfg": pixels}).encode()]


def _config(folder: Path) -> Callable[[bytes], object]:
    def read(data: bytes) -> None:
        (folder / "open_clip_config.json").write_bytes(data)
        read_config(folder)

    return read


def parsers() -> Sequence[Parser]:
    """All of this module."""
    names = ("samples.arrow", "captions/caption.arrow", "columns/url.arrow", "captions/second.json",
             "rejected.arrow", "index.json")  # fmt: skip
    index = [
        Parser(
            name=f"index: {name}",
            files=_index_files(name),
            open=_use_index(name),
            refusals=(ValueError, FileNotFoundError),
        )
        for name in names
    ]
    return [
        Parser(
            name="shards: tar",
            files=_tars,
            open=_scan,
            refusals=(_ProblemError,),
            divisor=2,
            repair=tar_checksums,
        ),
        *index,
        *(
            Parser(
                name=f"weights: {suffix}",
                files=files,
                open=_weights(suffix),
                refusals=(ValueError,),
            )
            for suffix, files in ((".safetensors", _safetensors), (".pt", _pickles))
        ),
        Parser(name="model config", files=_configs, open=_config, refusals=(ValueError,)),
        Parser(
            name="checkpoint: state.json",
            files=_state,
            open=_checkpoint("state.json"),
            refusals=(CheckpointError,),
        ),
        Parser(
            name="checkpoint: tensors",
            files=_safetensors,
            open=_checkpoint("open_clip_model.safetensors"),
            refusals=(CheckpointError,),
        ),
    ]
