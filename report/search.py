"""The search page, and its server, which answers this machine alone.

It listens on 127.0.0.1. A page of some web site can still send a browser here under a name of its
own (DNS rebinding), so requests must name this host; what is uploaded is decoded and forgotten.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.parser import BytesParser
from email.policy import HTTP
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from tessera.report.numbers import shorten
from tessera.report.page import Picture, render
from tessera.report.pictures import thumbnail

if TYPE_CHECKING:  # whoever has a search has waited for torch already
    from tessera.evaluation.search import Hit, Search

logger = logging.getLogger(__name__)

ADDRESS = "127.0.0.1"
"""Where the page is."""
_MOST_BYTES = 32 * 2**20
"""Of an uploaded picture."""
_PATIENCE_S = 30.0
"""For a request to arrive."""
_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_NUM_AT_FIRST, _NUM_EXAMPLES = 12, 4
_EXAMPLES = ("a dog on the beach", "two people talking", "a red car", "food on a plate")
"""Queries that the page offers where pictures have no captions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A query and what was found for it."""

    query: str = ""
    """Text of the query, for the field."""
    about: str = ""
    """What was looked for, in words; empty before anything is asked."""
    picture: Picture | None = None
    """[H, W, 3] uint8, the query if it was a picture."""
    hits: Sequence[Hit] = ()
    """What was found, best first."""
    problem: str = ""
    """Why nothing was found."""


def render_search(search: Search, model: str, answer: Answer) -> str:
    """Return the whole page; without a query it shows some pictures at random.

    Args:
        search: finds the pictures that are shown.
        model: name of the model.
        answer: to the query of this request.
    """
    opening = [] if answer.about or answer.problem else search.some(_NUM_AT_FIRST)
    captions = dict.fromkeys(shorten(hit.caption, 60) for hit in opening if hit.caption)
    return render(
        "search",
        title=f"{answer.about or 'Search'} \N{EN DASH} Tessera",
        search=search,
        model=model,
        answer=answer,
        hits=[(hit, *_shown(search, hit)) for hit in answer.hits or opening],
        examples=list(captions)[:_NUM_EXAMPLES] or _EXAMPLES,
    )


def _shown(search: Search, hit: Hit) -> tuple[Picture | None, str]:
    """The picture, or why it cannot be shown."""
    try:
        return thumbnail(search.file(hit.place)), ""
    except OSError as error:
        return None, str(error)


def make_server(search: Search, model: str, port: int, count: int) -> ThreadingHTTPServer:
    """Listen; `serve_forever` of the result answers.

    Args:
        search: answers.
        model: its name, for the page.
        port: 0 takes a free one.
        count: pictures to show.

    Raises:
        OSError: the port is in use.
    """

    class Handler(_Handler):
        """Answers for this search."""

        def page(self, answer: Answer) -> str:
            return render_search(search, model, answer)

        def by_words(self, words: dict[str, list[str]]) -> Answer:
            return _by_words(search, words, count)

        def by_file(self, data: bytes) -> Answer:
            return _by_file(search, data, count)

    with _explained(port):
        return _Server((ADDRESS, port), Handler)


def check_port(port: int) -> None:
    """See before any work that a port is free.

    Raises:
        OSError: it is not.
    """
    with _explained(port):
        _Server((ADDRESS, port), BaseHTTPRequestHandler).server_close()


@contextmanager
def _explained(port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            f"port {port} of this machine cannot be used ({error.strerror}): choose another with "
            "--port, or 0 for a free one"
        ) from error


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Say in one line what went wrong with a request; a browser that has gone is no fault."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError | TimeoutError):
            logger.warning("a request failed: %r", error)


class _Handler(BaseHTTPRequestHandler):
    timeout = _PATIENCE_S
    protocol_version = "HTTP/1.1"

    def page(self, answer: Answer) -> str:
        raise NotImplementedError

    def by_words(self, words: dict[str, list[str]]) -> Answer:
        raise NotImplementedError

    def by_file(self, data: bytes) -> Answer:
        raise NotImplementedError

    def do_GET(self) -> None:
        """A page, with what was found for the words of the address."""
        if self._is_for_us():
            words = parse_qs(urlsplit(self.path).query, max_num_fields=10)
            self._send(HTTPStatus.OK, self.page(self.by_words(words)))

    def do_POST(self) -> None:
        """A page with what was found for an uploaded picture."""
        if not self._is_for_us():
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > _MOST_BYTES:
            self.close_connection = True
            problem = f"a picture of at most {_MOST_BYTES // 2**20} MB is wanted"
            self._send(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, self.page(Answer(problem=problem)))
            return
        body = self.rfile.read(int(length))
        data = _uploaded(self.headers.get("Content-Type", ""), body)
        self._send(HTTPStatus.OK, self.page(self.by_file(data)))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log nothing: queries are private."""

    def _is_for_us(self) -> bool:
        port = self.connection.getsockname()[1]
        if self.headers.get("Host") in (f"{ADDRESS}:{port}", f"localhost:{port}"):
            if urlsplit(self.path).path == "/":
                return True
            self.send_error(HTTPStatus.NOT_FOUND)
        else:
            self.close_connection = True
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
        return False

    def _send(self, status: HTTPStatus, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _by_words(search: Search, words: dict[str, list[str]], count: int) -> Answer:
    text, like = words.get("q", [""])[0].strip(), words.get("like", [""])[0]
    try:
        if like:
            place = int(like)
            hits = search.by_place(place, count)
            picture = thumbnail(search.file(place))
            key, _ = search.pictures.words(place)
            return Answer(about=f"More like {key}", picture=picture, hits=hits)
        if text:
            hits = search.by_text(text, count)
            return Answer(query=text, about=shorten(text, 80), hits=hits)
    except (ValueError, OSError) as error:
        return Answer(query=text, problem=str(error))
    return Answer()


def _by_file(search: Search, data: bytes, count: int) -> Answer:
    if not data:
        return Answer(problem="no picture was chosen")
    try:
        hits = search.by_file(data, count)
        return Answer(about="Like your picture", picture=thumbnail(data), hits=hits)
    except (ValueError, OSError) as error:
        return Answer(problem=str(error))


def _uploaded(content_type: str, body: bytes) -> bytes:
    """The file of a form's field `picture`; empty where there is none."""
    head = f"Content-Type: {content_type}\r\n\r\n".encode("latin-1", "replace")
    form = BytesParser(policy=HTTP).parsebytes(head + body)
    for part in form.iter_parts() if form.is_multipart() else ():
        if part.get_param("name", header="content-disposition") == "picture":
            content = part.get_payload(decode=True)
            return content if isinstance(content, bytes) else b""
    return b""
