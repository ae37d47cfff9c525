"""Attacks that chance does not find: each is made by hand, and refused by name."""

from __future__ import annotations

import io
import json
import os
import pickle
import socket
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from tessera.model.pretrained import read_config, read_state_dict
from tessera.pipeline.index import ScanOptions
from tessera.pipeline.index.rejection import Reason
from tessera.pipeline.index.scan import ShardScan, scan_shard
from tessera.pipeline.index.tokenizer import encode_captions
from tessera.tools import index_shards
from tessera.tools.download.causes import Cause, RefusedError
from tessera.tools.download.fetch import Fetcher, FetchLimits
from tessera.tools.download.upright import UprightResizer
from tessera.training.checkpoint import CheckpointError, load
from tests.decoder_pictures import encode, photo
from tests.hostile import stores
from tests.hostile.mutate import mutated, tar_checksums
from tests.hostile.stores import tar_of
from tests.hostile_pictures import pixel_bomb

PICTURE = encode(photo(40, 30))


def sample(key: str, caption: bytes = b"a dog") -> list[tuple[str, bytes]]:
    return [(f"{key}.jpg", PICTURE), (f"{key}.txt", caption)]


def scanned(folder: Path, tar: bytes, options: ScanOptions | None = None) -> ShardScan:
    path = folder / "0.tar"
    path.write_bytes(tar)
    return scan_shard(str(path), options or ScanOptions())


def keys(scan: ShardScan) -> list[str]:
    return [row["key"] for row in scan.table(["key", "reason"]).to_pylist() if not row["reason"]]


def special(kind: bytes, name: str, target: str = "", size: int = 0) -> bytes:
    """One header of a link, a device and the like, without data behind it."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info.tobuf(tarfile.GNU_FORMAT)


def with_size_field(tar: bytes, field: bytes) -> bytes:
    """The first header claims another size, under a right checksum."""
    return tar_checksums(tar[:124] + field + tar[136:])


@pytest.mark.parametrize(
    "name", ["../../etc/x", "/etc/x", "..\\x", "a/../../x", "C:\\x", "x\x1b[2J"]
)
def test_names_that_lead_outside_write_nothing(tmp_path: Path, name: str) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    scan = scanned(inner, tar_of(sample(name) + sample("good")))
    assert "good" in keys(scan)
    assert sorted(tmp_path.rglob("*")) == [inner, inner / "0.tar"]


def test_links_and_devices_are_passed_over(tmp_path: Path) -> None:
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
    links = b"".join(special(kind, "bad.jpg", "/etc/passwd") for kind in kinds)
    scan = scanned(tmp_path, links + tar_of(sample("good")))
    assert keys(scan) == ["good"]
    assert scan.problem == ""


@pytest.mark.parametrize(
    "field",
    [
        b"77777777777\0",  # 8 GiB in octal
        b"\x80" + bytes(6) + b"\x02\x80\0\0\0",  # 10 GiB in base 256
        b"\x80" + b"\xff" * 11,
        b"\xff" * 12,  # -1 in base 256
        b"-0000000001\0",
        b"99999999999\0",
    ],
)
def test_absurd_sizes_are_a_tar_that_is_cut_short(tmp_path: Path, field: bytes) -> None:
    scan = scanned(tmp_path, with_size_field(tar_of(sample("bad")), field))
    assert keys(scan) == []
    assert scan.problem


def test_a_large_extended_header_is_not_read(tmp_path: Path) -> None:
    for kind in (b"L", b"x", b"g"):
        header = special(kind, "././@LongLink", size=10 * 2**30)
        assert "claims" in scanned(tmp_path, header + bytes(4096)).problem


def test_pax_records_cannot_move_a_member_out_of_the_file(tmp_path: Path) -> None:
    for size in ("-512", "99999999999999999999", "1e3", "\u0664"):
        body = f" size={size}\n".encode()
        record = f"{len(body) + 2}".encode() + body
        header = special(b"x", "pax", size=len(record)) + record.ljust(512, b"\0")
        scan = scanned(tmp_path, header + tar_of(sample("bad")))
        assert "bad.jpg" not in keys(scan)
        assert scan.problem


def test_sparse_members_are_refused(tmp_path: Path) -> None:
    scan = scanned(tmp_path, special(b"S", "bad.jpg", size=512) + bytes(2048))
    assert "sparse" in scan.problem


def test_tars_one_behind_the_other_are_not_lost_silently(tmp_path: Path) -> None:
    scan = scanned(tmp_path, tar_of(sample("a")) + tar_of(sample("b")))
    assert keys(scan) == ["a"]
    assert "more data follows" in scan.problem


def test_names_that_are_not_utf8_stay_apart(tmp_path: Path) -> None:
    tar = tar_of(sample("\udcff") + sample("\udcfe"), tarfile.GNU_FORMAT)
    assert len(set(keys(scanned(tmp_path, tar)))) == 2


def test_bombs_are_rejected_by_limits_that_can_be_set(tmp_path: Path) -> None:
    tar = tar_of([("a.jpg", pixel_bomb()), ("a.txt", b"a dog"), *sample("b")])
    scan = scanned(tmp_path, tar)
    assert keys(scan) == ["b"]
    assert [each.reason for each in scan.rejected] == [Reason.TOO_LARGE]
    few_pixels = scanned(tmp_path, tar, ScanOptions(max_image_pixels=40 * 30 - 1))
    few_bytes = scanned(tmp_path, tar, ScanOptions(max_image_bytes=len(PICTURE) - 1))
    for scan in (few_pixels, few_bytes):
        assert [each.reason for each in scan.rejected] == [Reason.TOO_LARGE] * 2
    with pytest.raises(ValueError, match="max_image_pixels"):
        ScanOptions(max_image_pixels=10**9)


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        (b"a" * 2**20, Reason.CAPTION_TOO_LONG),
        (b"\xff\xfe", Reason.BAD_CAPTION_ENCODING),
        ("\u200b\u00a0\u2003".encode(), None),
        (b"\x1b[2J\x1b]0;title\x07", None),
        ("\u202ea dog\u202c".encode(), None),
    ],
)
def test_odd_captions(tmp_path: Path, caption: bytes, reason: Reason | None) -> None:
    scan = scanned(tmp_path, tar_of(sample("odd", caption)))
    assert [each.reason for each in scan.rejected] == ([reason] if reason else [])


@pytest.mark.parametrize("text", ["a" * 2**20, "a " * 2**19, "\u0351" * 2**18, "&amp;" * 2**17,
    "\u202e\u05d0 " * 2**17, "\u00c3\u00a9" * 2**18])  # fmt: skip
def test_a_megabyte_of_caption_is_cut_in_bounded_time(text: str) -> None:
    (ids,) = encode_captions([text])
    assert len(ids) <= 253


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_no_pickle_is_executed_whatever_it_calls_itself(tmp_path: Path) -> None:
    target = tmp_path / "executed"
    torch.save({"state_dict": Bomb(target)}, tmp_path / "new.pt")
    torch.save(Bomb(target), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(Bomb(target)))
    (tmp_path / "named.safetensors").write_bytes(pickle.dumps(Bomb(target)))
    tensors = {"a": torch.ones(2)}
    text = pickle.dumps(Bomb(target)).decode("latin-1")
    (tmp_path / "metadata.safetensors").write_bytes(save(tensors, {"config": text}))
    for name in ("new.pt", "old.pt", "plain.bin", "named.safetensors"):
        with pytest.raises(ValueError, match="damaged, or holds more than tensors"):
            read_state_dict(tmp_path / name)
    assert torch.equal(read_state_dict(tmp_path / "metadata.safetensors")["a"], tensors["a"])
    (tmp_path / "open_clip_config.json").write_bytes(pickle.dumps(Bomb(target)))
    with pytest.raises(ValueError, match="no JSON"):
        read_config(tmp_path)
    assert not target.exists()


@pytest.mark.parametrize("name", ["/dev/zero", "../outside.json", "folder/file.safetensors"])
def test_a_checkpoint_names_only_files_of_its_own(tmp_path: Path, name: str) -> None:
    state = {"format": 1, "step": 1, "sha256": {name: "0" * 64}}
    (tmp_path / "state.json").write_text(json.dumps(state), "utf-8")
    (tmp_path / "open_clip_config.json").write_text("{}", "utf-8")
    with pytest.raises(CheckpointError, match="no file of its own"):
        load(tmp_path)


def test_json_nested_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("[" * 200_000, "utf-8")
    with pytest.raises(CheckpointError):
        load(tmp_path)
    (tmp_path / "open_clip_config.json").write_text('{"a":' * 200_000, "utf-8")
    with pytest.raises(ValueError, match="no JSON"):
        read_config(tmp_path)


def test_a_picture_is_told_by_its_content_not_by_its_name(tmp_path: Path) -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    for content in (postscript, buffer.getvalue(), b"<svg/>", b"PK\x03\x04", b"\x7fELF"):
        scan = scanned(tmp_path, tar_of([("a.jpg", content), ("a.txt", b"a dog")]))
        assert keys(scan) == []
        assert scan.rejected[0].reason in (Reason.NOT_AN_IMAGE, Reason.UNSUPPORTED_IMAGE)


def test_names_and_captions_cannot_steer_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    steering = "\x1b[2J\x1b]0;title\x07\u202e\x9b"
    shard = tmp_path / "0.tar"
    shard.write_bytes(tar_of([(f"{steering}.jpg", b"no picture"), (f"{steering}.txt", b"a dog")]))
    (tmp_path / "1.tar").write_bytes(tar_of(sample("good")))
    words = ["index_shards", str(tmp_path), "--out", str(tmp_path / "index"), "--workers", "1"]
    monkeypatch.setattr("sys.argv", words)
    assert index_shards.main() == 0
    shown = capsys.readouterr().out
    assert "\\x1b[2J" in shown
    assert not set(steering) - set("[2J];0title") & set(shown)


def test_nothing_hidden_in_a_downloaded_picture_is_stored() -> None:
    resizer = UprightResizer(
        image_size=64, encode_quality=90, min_image_size=8, max_aspect_ratio=10, max_pixels=10**6
    )
    markup, archive = b"<html><script>alert(1)</script></html>", b"PK\x03\x04" + b"hidden" * 9
    comment = b"\xff\xfe" + (len(markup) + 2).to_bytes(2, "big") + markup
    for picture in (PICTURE + markup + archive, PICTURE[:2] + comment + PICTURE[2:] + archive):
        stored = resizer(io.BytesIO(picture))[0]
        assert stored is not None
        assert markup not in stored
        assert b"hidden" not in stored


def test_a_name_that_changes_its_address_is_connected_to_where_it_was_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = [["8.8.8.8", "10.0.0.1"], ["127.0.0.1"]]
    tried: list[str] = []

    async def refuse(_: object, __: object, address: tuple[str, int]) -> None:
        tried.append(address[0])
        raise ConnectionRefusedError

    def look_up(_: str) -> list[object]:
        return [(socket.AF_INET, 0, 0, "", (address, 0)) for address in answers.pop(0)]

    monkeypatch.setattr("asyncio.selector_events.BaseSelectorEventLoop.sock_connect", refuse)
    limits = FetchLimits(
        timeout_s=1, deadline_s=2, max_bytes=100, retries=0, user_agent="a", respect_opt_out=True
    )
    fetcher = Fetcher(limits, lookup=look_up)
    with pytest.raises(RefusedError) as raised:
        fetcher.fetch("http://rebinding.example/a.jpg")
    assert raised.value.cause is Cause.CONNECTION
    assert tried == ["8.8.8.8"]
    assert len(answers) == 1


@pytest.mark.parametrize(
    ("name", "number"),
    [("weights: .pt", 563), ("weights: .pt", 1980), ("checkpoint: state.json", 1163)],
)
def test_what_the_harness_once_found_is_refused(name: str, number: int, tmp_path: Path) -> None:
    (parser,) = (each for each in stores.parsers() if each.name == name)
    files = parser.files(tmp_path)
    parse = parser.open(tmp_path)
    with pytest.raises(parser.refusals):
        parse(mutated(files, 1, number, parser.repair))
