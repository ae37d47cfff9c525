"""Embeddings in the layout of LLM2CLIP's released code, as batches in the order of an index.

Beside each shard `NNNNN.tar` it writes `NNNNN_text_embeddings.tar`, whose members `KEY.FIELD` are
raw little-endian float32 (data/extract_embedding.py of microsoft/LLM2CLIP at cba3b45). Nothing in
it says which model made them or from which text, so a person has to.

Shapes: E length of an embedding.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from tessera.pipeline.index import Index

_SUFFIX = "_text_embeddings.tar"
_MAX_LISTED = 3


class Llm2ClipArchive:
    """A folder of such files for the shards of an index."""

    def __init__(self, folder: Path, index: Index, source: str, field: str) -> None:
        """Find the files.

        Args:
            folder: holds `NNNNN_text_embeddings.tar` for each shard that the source has texts of.
            index: of the shards.
            source: the caption source whose texts were embedded; one text for each sample in it.
            field: of the members, such as `shortSV_captions`; letter case does not matter.

        Raises:
            FileNotFoundError: the file of a shard is missing.
            ValueError: the source has no text, or several of a sample, or the first file no such
                field.
        """
        self._index = index
        self._captions = index.captions(source)
        self._field = field.lower()
        owners = self._captions.sample
        if len(np.unique(owners)) != len(owners):
            raise ValueError(
                f"samples have several texts in {source!r}, LLM2CLIP's files one embedding for "
                "each field: import into a source with one text for each sample"
            )
        if not len(owners):
            raise ValueError(f"the caption source {source!r} holds no text")
        self._paths = [folder / _name(record.location) for record in index.shards]
        used = [self._paths[shard] for shard in np.unique(index.shard[owners])]
        missing = [path.name for path in used if not path.is_file()]
        if missing:
            listed = ", ".join(missing[:_MAX_LISTED])
            raise FileNotFoundError(f"{folder} lacks {len(missing)} files, such as {listed}")
        self.num_unused = 0
        """Embeddings of the field whose sample is none of the index's, of the files read so far."""
        self.dim = len(next(iter(self._read(used[0]).values())))
        """E."""

    def batches(self) -> Iterator[NDArray[np.float32]]:
        """[*, E] embeddings of the source's texts in their order, those of one shard at a time.

        Raises:
            ValueError: a text has no embedding, or one of another length.
        """
        shard_of_text = self._index.shard[self._captions.sample]
        for shard, path in enumerate(self._paths):
            first, last = np.searchsorted(shard_of_text, [shard, shard + 1])
            if first == last:  # a download of which nothing was left, say
                continue
            in_tar = self._index.keys_in_shard(shard)
            first_row = int(np.searchsorted(self._index.shard, shard))
            owners = self._captions.sample[first:last] - first_row
            keys = [in_tar[owner] for owner in owners.tolist()]
            found = self._read(path)
            absent = [key for key in keys if key not in found]
            if absent:
                listed = ", ".join(absent[:_MAX_LISTED])
                raise ValueError(f"{path} has no {self._field} for {len(absent)} keys: {listed}")
            self.num_unused += len(found) - len(keys)
            rows = [found[key] for key in keys]
            lengths = {len(row) for row in rows} - {self.dim}
            if lengths:
                raise ValueError(f"{path} holds embeddings of {min(lengths)}, not {self.dim}")
            yield np.stack(rows)

    def _read(self, path: Path) -> dict[str, NDArray[np.float32]]:
        """Embeddings of one file by key.

        Raises:
            ValueError: it is damaged, or holds none of the field.
        """
        found, fields = {}, set()
        try:
            with tarfile.open(path, "r|") as tar:
                for member in tar:
                    key, _, field = member.name.partition(".")
                    fields.add(field)
                    content = tar.extractfile(member)
                    if field.lower() == self._field and content is not None:
                        found[PurePosixPath(key).name] = np.frombuffer(content.read(), "<f4")
        except (tarfile.TarError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        if not found:
            raise ValueError(
                f"{path} has no field {self._field!r}; it has: {', '.join(sorted(fields))}"
            )
        return found


def _name(location: str) -> str:
    return PurePosixPath(location).name.removesuffix(".tar") + _SUFFIX
