"""Walk a tar file header by header, without reading the data of its members.

Every 512-byte header is read once and the data behind it is skipped, so the caller decides what
is worth reading. USTAR, GNU long names and PAX records are understood; `tarfile` understands
more, but reads a tar that ends early to its end without a word, and that is the fault a shard
most often has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

BLOCK_BYTES = 512
_MAX_EXTENSION_BYTES = 1 << 20
_MAX_PADDING_BYTES = 1 << 20
_ZERO_BLOCK = bytes(BLOCK_BYTES)
_REGULAR = (b"\0", b"0", b"7")
_WITHOUT_DATA = b"123456"
_KEY_AND_SUFFIX = re.compile(r"^((?:.*/)?[^./][^./]*)\.([^/]*)$", re.DOTALL)
_TO_LAST_DOT = re.compile(r"^((?:.*/)?[^./][^/]*)\.([^./]*)$", re.DOTALL)
_UNPACK = "unpack it first, as samples are read from the middle of the file, with"
_NO_TAR = (
    (b"\x1f\x8b", f"it is compressed with gzip: {_UNPACK} `gzip -dc OLD > NEW.tar`"),
    (b"\x28\xb5\x2f\xfd", f"it is compressed with zstd: {_UNPACK} `zstd -dc OLD > NEW.tar`"),
    (b"\xfd7zXZ", f"it is compressed with xz: {_UNPACK} `xz -dc OLD > NEW.tar`"),
    (b"BZh", f"it is compressed with bzip2: {_UNPACK} `bzip2 -dc OLD > NEW.tar`"),
    (b"PK\x03\x04", "it is a zip file: pack its content with `tar --sort=name`"),
    (b"version https://git-lfs", "it is a Git LFS pointer: fetch the file with `git lfs pull`"),
    (b"<", "it is not a tar file but a web page or XML: download it again"),
)


class TarError(ValueError):
    """The file is no tar, or holds something that was not read; the text says what and where."""


class TarCutShortError(TarError):
    """The tar cannot be read to its end; `name` is the member that is cut, if it has a header."""

    def __init__(self, message: str, name: str = "") -> None:
        super().__init__(message)
        self.name = name


class TarMember(NamedTuple):
    """One regular file inside a tar."""

    name: str
    """Full name, with folders."""
    offset: int
    """First byte of its data, counted from the start of the tar."""
    num_bytes: int
    """Length of its data in bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberGroup:
    """The members of one sample: neighbours in the tar that share a key."""

    key: str
    """Name up to the first dot of its last part, folders included, as webdataset has it; up to the
    last dot where that was asked for."""
    members: dict[str, TarMember]
    """Member by suffix; suffixes in lower case and without the leading dot."""
    cut_member: str | None = None
    """None: the group is whole. A name: that member is cut. Empty: the tar cannot be read on
    behind this group, so members may be missing."""


def walk_tar(file: BinaryIO, num_bytes: int) -> Iterator[TarMember]:
    """Yield the regular files of a tar in their order; folders and links are passed over.

    Args:
        file: the tar, open for reading. The caller may seek and read between two members.
        num_bytes: length of the file.

    Raises:
        TarCutShortError: the file ends inside a member or without the end-of-archive block.
        TarError: a damaged header, no tar at all, or more data behind the end of the archive.
    """
    position = 0
    pax: dict[str, str] = {}
    global_pax: dict[str, str] = {}
    long_name: str | None = None
    while True:
        header = _read_header(file, position)
        if header is None:
            _check_nothing_follows(file, position + BLOCK_BYTES)
            return
        name, size, kind = header
        data_start = position + BLOCK_BYTES
        if kind in b"Lxg":
            payload = _read_extension(file, data_start, size, name)
            if kind == b"L":
                long_name = _text(payload.rstrip(b"\0"))
            else:
                (pax if kind == b"x" else global_pax).update(_pax_records(payload, position))
            position = data_start + _padded(size)
            continue
        name, size = _override(name, size, long_name, {**global_pax, **pax}, position)
        data_bytes = 0 if kind in _WITHOUT_DATA else size
        if data_start + data_bytes > num_bytes:
            msg = f"{name} should end at byte {data_start + data_bytes}, the file at {num_bytes}"
            raise TarCutShortError(msg, name)
        if kind in _REGULAR and not name.endswith("/"):
            yield TarMember(name, data_start, size)
        position = data_start + _padded(data_bytes)
        if kind != b"K":
            pax, long_name = {}, None


def group_members(
    members: Iterable[TarMember], *, to_last_dot: bool = False
) -> Iterator[MemberGroup]:
    """Gather neighbours that share a key, as webdataset does.

    Args:
        members: from `walk_tar`.
        to_last_dot: a key goes to the last dot of the name instead of the first.

    A suffix that comes twice within a key starts a new group. Names without a dot and hidden
    files belong to no sample and are passed over. Where the walk ends in a `TarCutShortError`,
    the groups it leaves in doubt carry `cut_member`; the error then goes on to the caller.
    """
    key, group = "", dict[str, TarMember]()
    try:
        for member in members:
            member_key, suffix = split_name(member.name, to_last_dot=to_last_dot)
            if not member_key:
                continue
            if group and (member_key != key or suffix in group):
                yield MemberGroup(key=key, members=group)
                group = {}
            key = member_key
            group[suffix] = member
    except TarCutShortError as error:
        cut_key, _ = split_name(error.name, to_last_dot=to_last_dot)
        if group and cut_key in ("", key):
            yield MemberGroup(key=key, members=group, cut_member=error.name)
        elif group:
            yield MemberGroup(key=key, members=group)
        if cut_key and cut_key != key:
            yield MemberGroup(key=cut_key, members={}, cut_member=error.name)
        raise
    except TarError:
        if group:
            yield MemberGroup(key=key, members=group)
        raise
    if group:
        yield MemberGroup(key=key, members=group)


def split_name(name: str, *, to_last_dot: bool = False) -> tuple[str, str]:
    """Key and lower-case suffix of a member's name; both empty if it belongs to no sample."""
    match = (_TO_LAST_DOT if to_last_dot else _KEY_AND_SUFFIX).match(name)
    return (match[1], match[2].lower()) if match else ("", "")


def _read_header(file: BinaryIO, position: int) -> tuple[str, int, bytes] | None:
    """Name, size and type of the header at `position`; None at the end-of-archive block."""
    file.seek(position)
    block = file.read(BLOCK_BYTES)
    if len(block) < BLOCK_BYTES:
        if position == 0:
            raise TarError(_other_format(block) or "it is too short to be a tar file")
        raise TarCutShortError(f"the file ends at byte {position + len(block)}, inside the archive")
    if block == _ZERO_BLOCK:
        return None
    if not _checksum_is_right(block):
        raise _damaged(position, block)
    name = _text(block[:100].split(b"\0", 1)[0])
    if block[257:263] == b"ustar\0" and block[345]:
        name = _text(block[345:500].split(b"\0", 1)[0]) + "/" + name
    kind = block[156:157]
    if kind == b"S":
        raise TarCutShortError(f"{name} is a sparse file; pack the tar again without them")
    return name, _number(block[124:136], position), kind


def _checksum_is_right(block: bytes) -> bool:
    try:
        stored = int(block[148:156].split(b"\0", 1)[0].strip() or b"-1", 8)
    except ValueError:
        return False
    return stored == sum(block) - sum(block[148:156]) + 8 * ord(" ")


def _number(field: bytes, position: int) -> int:
    """A number in octal digits or, with the top bit set, in base 256 (GNU, over 8 GiB)."""
    if field[0] & 0x80:
        return int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
    try:
        return int(field.split(b"\0", 1)[0].strip() or b"0", 8)
    except ValueError:
        raise _damaged(position) from None


def _read_extension(file: BinaryIO, start: int, size: int, name: str) -> bytes:
    if size > _MAX_EXTENSION_BYTES:
        raise TarCutShortError(f"the extended header at byte {start} claims {size} bytes")
    file.seek(start)
    payload = file.read(size)
    if len(payload) < size:
        raise TarCutShortError(f"the file ends inside the extended header at byte {start}", name)
    return payload


def _pax_records(payload: bytes, position: int) -> dict[str, str]:
    """Records of a PAX header: `LENGTH KEYWORD=VALUE` and a newline, LENGTH counting it all."""
    records: dict[str, str] = {}
    start = 0
    while start < len(payload) and payload[start] != 0:
        digits, _, _ = payload[start : start + 20].partition(b" ")
        if not digits.isdigit() or int(digits) <= len(digits) + 1:
            raise _damaged(position)
        record = payload[start + len(digits) + 1 : start + int(digits) - 1]
        keyword, _, value = record.partition(b"=")
        records[_text(keyword)] = _text(value)
        start += int(digits)
    return records


def _override(
    name: str, size: int, long_name: str | None, pax: dict[str, str], position: int
) -> tuple[str, int]:
    """Name and size with what the extended headers before them say."""
    if any(keyword.startswith("GNU.sparse.") for keyword in pax):
        raise TarCutShortError(f"{name} is a sparse file; pack the tar again without them")
    name = pax.get("path", long_name or name)
    if "size" in pax:
        if not pax["size"].isdigit():
            raise _damaged(position)
        size = int(pax["size"])
    return name, size


def _check_nothing_follows(file: BinaryIO, position: int) -> None:
    """Tars joined with `cat` go on behind the first end-of-archive; do not lose that silently."""
    file.seek(position)
    if file.read(_MAX_PADDING_BYTES).strip(b"\0"):
        msg = f"the archive ends at byte {position} but more data follows, which was not read"
        raise TarError(f"{msg}: tars joined with cat must be joined with `tar --concatenate`")


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES


def _text(raw: bytes) -> str:
    """Names that are not UTF-8 stay distinct, readable and storable."""
    return raw.decode("utf-8", "backslashreplace")


def _damaged(position: int, block: bytes = b"") -> TarError:
    if position == 0:
        return TarError(_other_format(block) or "it is not a tar file")
    return TarCutShortError(f"the header at byte {position} is damaged")


def _other_format(block: bytes) -> str:
    """What a file is that is no tar, where its first bytes tell."""
    start = block.lstrip()
    return next((what for magic, what in _NO_TAR if start.startswith(magic)), "")
