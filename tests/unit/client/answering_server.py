"""A server on loopback that answers `sprat` as a test tells it to."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

Answer = Callable[[str, str, Any], Any]
"""Method, path and JSON body of a request to what is answered."""


@contextmanager
def answering(monkeypatch: pytest.MonkeyPatch, answer: Answer) -> Iterator[None]:
    """Serve while the context lasts; commands in this process find it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = json.dumps(answer(self.command, self.path, json.loads(given) if given else None)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.do_GET()

        def do_PUT(self) -> None:
            self.do_GET()

        def do_PATCH(self) -> None:
            self.do_GET()

        def log_message(self, *_words: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setenv("SPRAT_SERVER", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("SPRAT_TOKEN", "t")
        yield
        server.shutdown()
