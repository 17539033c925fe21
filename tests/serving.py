"""A server of `qavit serve` in this process, and rude clients for it: they go to 127.0.0.1 alone."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from typing import Any

from qavit.serve import _server
from qavit.serve._app import make_application
from qavit.serve._limits import Limits
from qavit.serve._worker import Worker

TOKEN = "a-token-for-tests"
LIMITS = Limits()


class Served:
    """A model behind a port of 127.0.0.1, until `close`."""

    def __init__(
        self, model: Any, limits: Limits = LIMITS, first: bytes | None = None, questions: tuple[str, ...] = ()
    ) -> None:
        self.model = model
        self.listening = _server._listening(0)
        self.listener = self.listening.__enter__()
        self.port = self.listener.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}/{TOKEN}/"
        self.worker = Worker()
        self.application = make_application(model, TOKEN, limits, self.worker, first, questions)
        self.server = _server.make_server(self.application, limits)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]}, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()
        self.listening.__exit__(None, None, None)
        assert self.worker.end(30)

    # ---- clients ----

    def request(
        self, path: str, body: bytes | None = None, method: str | None = None, timeout: float = 60, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """One request by a well-behaved client: status, headers in small letters, body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method or ("GET" if body is None else "POST"), f"/{TOKEN}/{path}", body, named)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def upload(self, data: bytes, **headers: str) -> tuple[int, Any]:
        status, _, body = self.request("picture", data, **{"Content_Type": "application/octet-stream", **headers})
        return status, json.loads(body)

    def ask(self, **asked: Any) -> tuple[int, Any]:
        status, _, body = self.request("ask", json.dumps(asked).encode(), Content_Type="application/json")
        return status, json.loads(body)

    def raw(self, data: bytes, timeout: float = 60) -> bytes:
        """What comes back for bytes as they are, until the server closes the connection."""
        parts: list[bytes] = []
        closed = contextlib.suppress(ConnectionResetError, BrokenPipeError)  # before all was read
        with socket.create_connection(("127.0.0.1", self.port), timeout) as connection, closed:
            connection.sendall(data)
            while part := connection.recv(65536):
                parts.append(part)
        return b"".join(parts)
