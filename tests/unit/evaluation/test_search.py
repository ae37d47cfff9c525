from __future__ import annotations

import http.client
import io
import json
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from urllib.parse import quote

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tessera.evaluation.encoder import Encoder
from tessera.evaluation.image_sets import decode
from tessera.evaluation.search import Search, open_pictures, open_search
from tessera.model import Clip, build_clip, open_clip_weights
from tessera.report.pictures import thumbnail
from tessera.report.search import ADDRESS, make_server
from tessera.tools import search as tool
from tests.chromium import Browser
from tests.conftest import caption_of, jpeg_bytes

COUNT = 6
NASTY = "<script>alert(1)</script> & \"'"


@pytest.fixture(scope="module")
def clip() -> Clip:
    torch.manual_seed(0)
    return build_clip("tessera-demo").eval()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures, one of them with a caption, and a file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    for number in range(12):
        place = folder / "more" if number % 2 else folder
        (place / f"{number:02d}.jpg").write_bytes(jpeg_bytes(number))
    (folder / "00.txt").write_text(NASTY, "utf-8")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    return folder


@pytest.fixture(scope="module")
def search(clip: Clip, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Search:
    cache = tmp_path_factory.mktemp("cache")
    return open_search(clip, open_pictures(str(photos)), cache, 1, lambda _: None)[0]


@pytest.fixture(scope="module")
def port(search: Search) -> Iterator[int]:
    with make_server(search, "a model", 0, COUNT) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()


def ask(
    port: int, path: str, *, method: str = "GET", body: bytes = b"", **headers: str
) -> tuple[int, str, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection(ADDRESS, port, timeout=60)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body=body or None, headers=named)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text, answer.headers


def form_with(data: bytes) -> tuple[str, bytes]:
    head = '--xyz\r\nContent-Disposition: form-data; name="picture"; filename="a.jpg"\r\n'
    head += "Content-Type: image/jpeg\r\n\r\n"
    return "multipart/form-data; boundary=xyz", head.encode() + data + b"\r\n--xyz--\r\n"


def test_texts_find_by_the_cosine_of_the_models_features(clip: Clip, search: Search) -> None:
    encoder = Encoder(clip=clip)
    images = encoder.images("all", open_pictures(search.pictures.name).open())
    expected = (images.features @ encoder.prompts(["a red picture"])[0]).sort(descending=True)
    hits = search.by_text("a red picture", COUNT)
    assert [hit.score for hit in hits] == pytest.approx(expected.values[:COUNT].tolist())
    assert [hit.place for hit in hits] == images.places[expected.indices[:COUNT]].tolist()


def test_a_picture_finds_itself_by_its_file_and_others_by_its_place(search: Search) -> None:
    (first, *_) = search.by_file(jpeg_bytes(7), COUNT)
    assert first.key == "more/07.jpg"
    assert first.score == pytest.approx(1.0, abs=1e-5)
    others = search.by_place(first.place, COUNT)
    assert len(others) == COUNT
    assert first.place not in [hit.place for hit in others]


def test_undecodable_files_are_counted_and_refused_as_queries(search: Search) -> None:
    assert (search.size, search.num_bad) == (12, 1)
    with pytest.raises(ValueError, match="no picture"):
        search.by_file(b"no picture at all", COUNT)
    with pytest.raises(ValueError, match="there is no picture 99"):
        search.by_place(99, COUNT)


def test_a_damaged_exif_block_spoils_its_own_thumbnail_only() -> None:
    """Such a picture is found, as the model's transform does not look at EXIF."""
    file = io.BytesIO()
    Image.new("RGB", (40, 30)).save(file, "PNG", exif=b"Exif\0\0garbage!!")
    with pytest.raises(OSError, match="not a TIFF"):
        thumbnail(file.getvalue())


def test_an_index_and_its_keys_are_found(clip: Clip, coloured_index: Path, tmp_path: Path) -> None:
    pictures = open_pictures(str(coloured_index))
    search, _ = open_search(clip, pictures, tmp_path, 1, lambda _: None)
    (first, *_) = search.by_file(jpeg_bytes(40), COUNT)
    assert (first.key, first.caption) == ("000000040", caption_of(40))
    assert search.file(first.place) == jpeg_bytes(40)


def test_features_are_kept_until_model_or_pictures_change(
    clip: Clip, photos: Path, tmp_path: Path
) -> None:
    mine, cache = tmp_path / "photos", tmp_path / "cache"
    shutil.copytree(photos, mine)

    def was_cached(model: Clip) -> bool:
        return open_search(model, open_pictures(str(mine)), cache, 1, lambda _: None)[1]

    assert [was_cached(clip), was_cached(clip)] == [False, True]
    (mine / "00.jpg").write_bytes(jpeg_bytes(3))
    assert [was_cached(clip), was_cached(clip)] == [False, True]
    torch.manual_seed(1)
    assert not was_cached(build_clip("tessera-demo"))


def test_an_empty_folder_and_one_that_is_not_there_are_told(tmp_path: Path, clip: Clip) -> None:
    with pytest.raises(ValueError, match="holds neither an index nor pictures"):
        open_pictures(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        open_pictures(str(tmp_path / "nowhere"))
    (tmp_path / "bad.png").write_bytes(b"no")
    with pytest.raises(ValueError, match="could be decoded"):
        open_search(clip, open_pictures(str(tmp_path)), tmp_path, 1, lambda _: None)


def test_the_page_answers_texts_and_pictures(port: int) -> None:
    status, text, _ = ask(port, "/")
    assert (status, text.count("<li>")) == (200, 12), "some pictures at random"
    assert f'<a href="/?q={quote(NASTY, safe="/")}"' in text, "captions are examples of queries"
    status, text, _ = ask(port, "/?q=a+red+picture")
    assert (status, text.count("<li>")) == (200, COUNT)
    status, text, _ = ask(port, "/?like=3")
    assert (status, text.count("<li>")) == (200, COUNT)
    kind, body = form_with(jpeg_bytes(7))
    status, text, _ = ask(port, "/", method="POST", body=body, Content_Type=kind)
    assert (status, text.count("<li>")) == (200, COUNT)
    assert "more/07.jpg" in text


def test_what_cannot_be_answered_is_explained(port: int) -> None:
    assert "there is no picture 99" in ask(port, "/?like=99")[1]
    assert ask(port, "/?like=a")[0] == 200
    for data, said in ((b"no picture", "decoded"), (b"", "no picture was chosen")):
        kind, body = form_with(data)
        assert said in ask(port, "/", method="POST", body=body, Content_Type=kind)[1]
    assert "no picture was chosen" in ask(port, "/", method="POST", body=b"x")[1]
    assert ask(port, "/", method="POST", Content_Length="99999999999")[0] == 413
    assert ask(port, "/etc/passwd")[0] == 404
    assert ask(port, "/../../etc/passwd")[0] == 404


def test_other_names_of_this_host_are_refused(port: int) -> None:
    kind, body = form_with(jpeg_bytes(7))
    for host in ("evil.example", f"evil.example:{port}", ADDRESS, "localhost:1", ""):
        assert ask(port, "/?q=dog", Host=host)[0] == 421
        sent = ask(port, "/", method="POST", body=body, Content_Type=kind, Host=host)
        assert sent[0] == 421
    assert ask(port, "/?q=dog", Host=f"localhost:{port}")[0] == 200


def test_queries_and_captions_stay_text(port: int) -> None:
    text = ask(port, "/?q=%3Cscript%3Ealert(1)%3C/script%3E%22")[1]
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&#34;" in text
    _, _, headers = ask(port, "/")
    assert "default-src 'none'" in (headers["Content-Security-Policy"] or "")
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_is_readable_in_a_browser(width: int, port: int, browser: Browser) -> None:
    seen = browser.look(f"http://{ADDRESS}:{port}/?q={NASTY.replace('&', '%26')}", width=width)
    assert seen.complaints == []
    assert (seen.images, seen.empty, seen.wider) == (COUNT, 0, 0)
    assert NASTY in seen.text


def test_the_tool_answers_in_the_terminal(
    clip: Clip,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for step in ("step_000000001", "step_000000002"):
        folder = tmp_path / "run" / "checkpoints" / step
        folder.mkdir(parents=True)
    save_file(open_clip_weights.dump(clip), folder / "open_clip_model.safetensors")
    config = open_clip_weights.open_clip_config(clip.config)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}), "utf-8")

    def run(*words: str) -> tuple[int, str]:
        cache = ["--cache", str(tmp_path / "cache")]
        monkeypatch.setattr(sys, "argv", ["search.py", *words, *cache])
        return tool.main(), capsys.readouterr().out

    run_folder, place = str(tmp_path / "run"), str(photos)
    status, out = run(run_folder, place, "--query", "a red picture", "--count", "2")
    assert status == 0
    assert "12 pictures" in out
    assert "features made, 1 not decodable" in out
    found = json.loads(out.splitlines()[-1])
    assert found["model"].endswith("step_000000002")
    assert len(found["hits"]) == 2
    status, out = run(run_folder, place, "--image", str(photos / "more" / "07.jpg"))
    assert status == 0
    assert "features from the cache" in out
    assert json.loads(out.splitlines()[-1])["hits"][0]["key"] == "more/07.jpg"
    assert run(str(tmp_path / "nothing"), place, "--query", "a")[0] == 2
    assert run(run_folder, place, "--image", str(tmp_path / "no.jpg"))[0] == 2
    with pytest.raises(SystemExit, match="2"):
        run(run_folder, place, "--query", "a", "--image", place)
    with socket.create_server((ADDRESS, 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(sys, "argv", ["search.py", run_folder, place, "--port", str(port)])
        assert tool.main() == 1
    said = capsys.readouterr().err
    assert f"failed: port {port} of this machine cannot be used (Address already in use)" in said


def test_no_message_holds_a_memory_address_or_a_tuple(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(OSError, match=r"no picture of a known format$"):
        thumbnail(b"no picture")
    pictures = open_pictures(str(tmp_path)).open()
    said = decode(pictures.read(np.array([0]))[0], lambda image: torch.zeros(1))
    assert said == "it is no picture of a known format (JPEG, PNG, WEBP, BMP, TIFF)"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"nor pictures \(\.jpg, \.jpeg, "):
        open_pictures(str(tmp_path / "empty"))
