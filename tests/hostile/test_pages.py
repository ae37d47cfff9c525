"""Captions, keys, file names and messages of other people stay text in every page."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tessera.evaluation.scores import ZERO_SHOT, Score
from tessera.evaluation.search import Search, open_pictures
from tessera.model import build_clip
from tessera.pipeline import LoaderConfig, open_loader
from tessera.pipeline.index import ScanOptions, build_index
from tessera.pipeline.masking import MaskConfig
from tessera.report.batch import make_sheet, write_sheet_page
from tessera.report.benchmark import write_page
from tessera.report.index import write_index_report
from tessera.report.run import render_report
from tessera.report.run_data import ReportData, RetrievalExample
from tessera.report.search import Answer, make_server, render_search
from tessera.report.series import StepSeries
from tests.decoder_pictures import encode, photo
from tests.hostile.stores import tar_of

ATTACK = "\"'><script>alert(1)</script></style></title><img src=x onerror=alert(2)>\u202e\x1b[2J&"
NAME = "a'\"><script>alert(1)<b onclick=x>&\u202e"
"""The same without the slash, for names of files."""
ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ("step", "samples", "loss", "lr", "logit_scale", "step_s", "data_wait_s")
LOADING = {"script", "iframe", "object", "embed", "base"}
FORMS = {"form", "input", "button"}


class Elements(HTMLParser):
    """All elements of a page, and its words."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words += data


def harmless(page: str, *, forms: bool = False) -> Elements:
    """Holds that nothing of an attack became an element or an attribute."""
    found = Elements(page)
    assert not (LOADING if forms else LOADING | FORMS) & set(found.names)
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    sources = [value or "" for name, value in found.attributes if name in ("src", "href")]
    local = ("data:image/", "#", "/?") if forms else ("data:image/", "#")
    assert all(source.startswith(local) for source in sources)
    assert found.names.count("style") == 1
    assert "\x1b" not in page
    policies = [value or "" for name, value in found.attributes if name == "content"]
    assert policies[0].startswith("default-src 'none'")
    return found


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve samples, all of whose names and captions attack, and one that is rejected."""
    folder = tmp_path_factory.mktemp("pages") / NAME
    folder.mkdir()
    members = []
    for number in range(12):
        members += [
            (f"{number}{NAME}.jpg", encode(photo(64, 64, seed=number))),
            (f"{number}{NAME}.txt", ATTACK.encode()),
        ]
    members += [(f"bad{NAME}.jpg", b"<script>"), (f"bad{NAME}.txt", b"a dog")]
    shard = folder / f"{NAME}.tar"
    shard.write_bytes(tar_of(members, 1) + bytes(512) + b"<script>")
    report = build_index([shard], folder / "index", options=ScanOptions())
    write_index_report(report, folder / "index" / "report.html")
    return folder / "index"


def test_index_report(index: Path) -> None:
    found = harmless((index / "report.html").read_text("utf-8"))
    assert "<script>" in found.words


def test_batch_sheet(index: Path, tmp_path: Path) -> None:
    config = LoaderConfig(
        batch_size=4, image_size=32, patch_size=8, mask=MaskConfig(), num_threads=1
    )
    with open_loader(index, config) as loader:
        write_sheet_page(make_sheet(loader, 0, 4), tmp_path / "sheet.html")
    found = harmless((tmp_path / "sheet.html").read_text("utf-8"))
    assert found.words.count("<img src=x onerror=alert(2)>") == 4
    assert NAME in found.words


def attacked(value: Any) -> Any:
    """The same with an attack in the place of every text, names included."""
    if isinstance(value, str):
        return ATTACK
    if isinstance(value, Mapping):
        return {key: attacked(each) for key, each in value.items()}
    if isinstance(value, list):
        return [attacked(each) for each in value]
    return value


def test_every_part_that_pages_are_made_of(tmp_path: Path) -> None:
    """The run page shows every kind of part; the others are made of the same ones."""
    score = Score(dataset=ATTACK, task=ZERO_SHOT, metric="acc1", value=0.2, chance=0.1, n=9)
    evaluations = [(k, ATTACK, 0.1 * k) for k in (1, 2)]
    data = ReportData(
        title=ATTACK, recipe=ATTACK, command=ATTACK, created=ATTACK, status=ATTACK,
        config={ATTACK: {ATTACK: ATTACK}}, facts=[(ATTACK, ATTACK)], versions=[(ATTACK, ATTACK)],
        steps=StepSeries(**{n: np.arange(1, 4) for n in COLUMNS}, evaluations=evaluations),
        time_split=[(ATTACK, 1.0)], data_facts=[(ATTACK, ATTACK)], scores=[score],
        confusions=[(ATTACK, ATTACK, 3)],
        retrieval=[RetrievalExample(kind="text_to_image", results=[], query_text=ATTACK)],
    )  # fmt: skip
    found = harmless(render_report(data))
    assert found.words.count("<script>") > 10


def test_benchmark_page(tmp_path: Path) -> None:
    record = ROOT / "docs" / "results" / "data-cpu" / "ladder-coco-0.9.json"
    result = attacked(json.loads(record.read_text("utf-8")))
    result["sides"][ATTACK] = result["sides"]["loader"]
    result["left_out"] = {ATTACK: ATTACK}
    write_page(result, tmp_path / "page.html")
    assert "<script>" in harmless((tmp_path / "page.html").read_text("utf-8")).words


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Search:
    folder = tmp_path_factory.mktemp("search") / NAME
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}{NAME}.jpg").write_bytes(encode(photo(32, 32, seed=number)))
        (folder / f"{number}{NAME}.txt").write_text(ATTACK, "utf-8")
    pictures = open_pictures(str(folder))
    features = torch.eye(3, 4)
    return Search(build_clip("tessera-demo"), pictures, features, torch.arange(3).numpy())


def test_search_page(search: Search) -> None:
    answer = Answer(query=ATTACK, about=ATTACK, hits=search.by_place(0, 2))
    found = harmless(render_search(search, ATTACK, answer), forms=True)
    assert found.words.count("<img src=x onerror=alert(2)>") >= 2
    assert (
        "<script>"
        in harmless(render_search(search, ATTACK, Answer(problem=ATTACK)), forms=True).words
    )


@pytest.fixture(scope="module")
def port(search: Search) -> Iterator[int]:
    with make_server(search, "model", 0, 2) as server:
        assert server.server_address[0] == "127.0.0.1"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost", 200),
        ("evil.example", 421),
        ("0.0.0.0", 421),
        ("[::1]", 421),
    ],
)
def test_the_server_answers_this_machine_only(port: int, host: str, status: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/", headers={"Host": f"{host}:{port}"})
    response = connection.getresponse()
    assert response.status == status
    assert "Access-Control-Allow-Origin" not in response.headers
    connection.close()


@pytest.mark.parametrize(
    "upload",
    [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"<svg/>", b"\xff\xd8\xff", b""],
)
def test_uploads_that_are_no_picture_are_told(port: int, upload: bytes) -> None:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="picture"; filename="a"\r\n\r\n'
        + upload
        + b"\r\n--x--\r\n"
    )
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    headers = {"Content-Type": "multipart/form-data; boundary=x", "Host": f"127.0.0.1:{port}"}
    connection.request("POST", "/", body, headers)
    response = connection.getresponse()
    assert response.status == 200
    harmless(response.read().decode(), forms=True)
    connection.close()
