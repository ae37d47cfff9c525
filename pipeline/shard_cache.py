"""Remote shards on the local disk: fetched ahead, checked, and dropped when others need the room.

Several processes of a machine may share the folder: a shard is fetched by one of them, under a
name of its own, and appears whole. One that is dropped while another process reads it stays
readable there until it is closed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tessera.pipeline.file_lock import FileLock, HeldError
from tessera.pipeline.index import ShardRecord
from tessera.pipeline.storage import head_tail_crc32, open_binary

logger = logging.getLogger(__name__)

_COPY_BYTES = 4 * 1024**2
_PARTIAL = ".partial"


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheConfig:
    """Where remote shards are kept and how hard they are tried for."""

    folder: str = ""
    """Local folder; empty reads remote shards in pieces, without keeping any."""
    max_gib: float = 100.0
    """Room that the folder may take; at least the shards of two windows."""
    num_fetches: int = 4
    """Shards fetched at once."""
    num_tries: int = 5
    """Tries for one shard before it is given up."""
    first_wait_s: float = 0.5
    """Wait before the second try; doubled before each further one."""

    def __post_init__(self) -> None:
        if min(self.max_gib, self.num_fetches, self.num_tries) <= 0 or self.first_wait_s < 0:
            raise ValueError(
                "max_gib, num_fetches and num_tries of the cache must be above 0, and first_wait_s "
                "not below"
            )


class ShardCache:
    """Local copies of remote shards."""

    def __init__(self, config: CacheConfig, shards: Sequence[ShardRecord]) -> None:
        """Open the folder; what lies there from before is used.

        Args:
            config: folder, room and tries.
            shards: those of the index; a number is a place in this list.
        """
        self._config = config
        self._shards = shards
        self._folder = Path(config.folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        _remove_partials(self._folder)
        self._pool = ThreadPoolExecutor(config.num_fetches, thread_name_prefix="fetch")
        self._fetches: dict[int, Future[Path]] = {}
        self._wanted: tuple[int, ...] = ()
        self._lock = threading.Lock()
        self._closing = threading.Event()

    def expect(self, numbers: Sequence[int]) -> None:
        """Start to fetch shards that will be read soon, the most urgent first.

        Those that are not among them may be dropped from now on.

        Raises:
            ValueError: together they are larger than the room.
        """
        wanted = tuple(numbers)
        with self._lock:
            if wanted == self._wanted:
                return
            self._wanted = wanted
            need = sum(self._shards[number].size_bytes for number in wanted)
            if need > self._room:
                raise ValueError(
                    f"two windows of shards take {need / 1024**3:.1f} GiB, but the cache has room "
                    f"for {self._config.max_gib:.1f}: enlarge it or read fewer shards in a window"
                )
            for number in [each for each in self._fetches if each not in wanted]:
                if self._fetches[number].done() or self._fetches[number].cancel():
                    del self._fetches[number]
            for number in wanted:
                self._start(number)

    def path(self, number: int) -> Path:
        """The local copy of a shard; waits for it.

        Raises:
            OSError: it could not be fetched.
        """
        with self._lock:
            future = self._start(number)
        path = future.result()
        if not path.exists():
            # Another process needed the room; it is fetched again.
            with self._lock:
                if self._fetches.get(number) is future:
                    del self._fetches[number]
                future = self._start(number)
            path = future.result()
        return path

    def give_up(self) -> None:
        """Have fetches end with an error at their next piece or try; `close` follows."""
        self._closing.set()

    def close(self) -> None:
        """End the fetches; what is there stays for the next run."""
        self.give_up()
        self._pool.shutdown(cancel_futures=True)

    @property
    def _room(self) -> int:
        return int(self._config.max_gib * 1024**3)

    def _start(self, number: int) -> Future[Path]:
        """The fetch of a shard, begun if it was not; one that failed is begun again."""
        future = self._fetches.get(number)
        if future is None or (future.done() and future.exception() is not None):
            future = self._fetches[number] = self._pool.submit(self._fetch, number)
        return future

    def _fetch(self, number: int) -> Path:
        record = self._shards[number]
        path = self._folder / _name(record)
        with _exclusive(_lock_of(path)):
            if _is_whole(path, record):
                with suppress(FileNotFoundError):  # dropped just now; `path` looks for that
                    os.utime(path)
                return path
            partial = _partial_of(path)
            try:
                self._make_room(record.size_bytes, partial)
                self._fetch_with_patience(record, path)
            finally:
                partial.unlink(missing_ok=True)
        return path

    def _fetch_with_patience(self, record: ShardRecord, path: Path) -> None:
        wait_s = self._config.first_wait_s
        for attempt in range(1, self._config.num_tries + 1):
            try:
                _copy(record, path, self._closing)
            except OSError as error:
                if attempt == self._config.num_tries or self._closing.is_set():
                    raise OSError(
                        f"{record.location} could not be fetched in {attempt} tries: {error}"
                    ) from error
                logger.warning("fetching %s again: %s", record.location, error)
                self._closing.wait(wait_s)
                wait_s *= 2
            else:
                return

    def _make_room(self, num_bytes: int, partial: Path) -> None:
        """Drop the shards that were used longest ago, but none that is wanted.

        The room is taken at once, by an empty file of that length: other fetches are under way, of
        this process and of others, and none may count on the same room.
        """
        with _exclusive(self._folder / ".room.lock"):
            kept = {_name(self._shards[number]) for number in self._wanted}
            found = [(path.stat(), path) for path in self._folder.glob("*.tar")]
            total = sum(status.st_size for status, _ in found) + _taken(self._folder)
            with partial.open("wb") as file:
                file.truncate(num_bytes)
            for status, path in sorted(found, key=lambda item: item[0].st_mtime):
                if total + num_bytes <= self._room:
                    return
                if path.name not in kept:
                    path.unlink(missing_ok=True)
                    total -= status.st_size


def _name(record: ShardRecord) -> str:
    """A file name that tells apart shards of one name in different places or states."""
    state = f"{record.location}\0{record.size_bytes}\0{record.head_tail_crc32}"
    digest = hashlib.sha256(state.encode()).hexdigest()[:16]
    return f"{PurePosixPath(record.location).stem}-{digest}.tar"


def _partial_of(path: Path) -> Path:
    """What a shard is called until all of it is there."""
    return path.with_name(f".{path.name}{_PARTIAL}")


def _taken(folder: Path) -> int:
    """Bytes that the fetches under way will have brought, those of other processes too."""
    total = 0
    for partial in folder.glob(f".*{_PARTIAL}"):
        with suppress(FileNotFoundError):  # it has just got its name, and is counted under that
            total += partial.stat().st_size
    return total


def _is_whole(path: Path, record: ShardRecord) -> bool:
    return path.is_file() and path.stat().st_size == record.size_bytes


def _copy(record: ShardRecord, path: Path, closing: threading.Event) -> None:
    """Fetch a shard under another name, check it, and give it its own."""
    partial = _partial_of(path)
    try:
        _transfer(record.location, partial, closing)
        _check(partial, record)
        partial.rename(path)
    except OSError:
        raise
    except Exception as error:
        # Clients of remote storage raise errors of their own.
        raise OSError(f"{type(error).__name__}: {error}") from error


def _transfer(location: str, partial: Path, closing: threading.Event) -> None:
    # Written over, not anew: its length is the room that it has taken.
    with open_binary(location) as source, partial.open("r+b") as target:
        while chunk := source.read(_COPY_BYTES):
            if closing.is_set():
                raise OSError("the loader is closing")
            target.write(chunk)
        if target.tell() != os.fstat(target.fileno()).st_size:
            target.truncate()


def _check(partial: Path, record: ShardRecord) -> None:
    found = partial.stat().st_size
    if found != record.size_bytes:
        raise OSError(f"{found} of {record.size_bytes} bytes came")
    if head_tail_crc32(str(partial)) != record.head_tail_crc32:
        raise OSError("its first or last 64 KiB are not those that were indexed")


def _remove_partials(folder: Path) -> None:
    """Remove what killed processes left of their fetches; one under way is locked, and stays."""
    for partial in folder.glob(f".*{_PARTIAL}"):
        shard = folder / partial.name.removeprefix(".").removesuffix(_PARTIAL)
        with suppress(HeldError), FileLock(_lock_of(shard).open("w")):
            partial.unlink(missing_ok=True)


def _lock_of(path: Path) -> Path:
    """The file that whoever fetches a shard has locked."""
    return path.with_name(f".{path.name}.lock")


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """One process or thread at a time; the lock goes with whoever holds it."""
    with FileLock(path.open("w"), wait=True):
        yield
