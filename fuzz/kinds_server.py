"""Requests to the server of `qavit serve`: what is asked, what is given, and the bytes of a connection."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from kinds_tables import jpeg, png
from small_models import write_qavit
from watching import Found, Kind

import qavit
from qavit.serve import _app as app
from qavit.serve import _limits as limits
from qavit.serve import _server as server

TOKEN = "a-token-for-tests"
HOST = b"127.0.0.1:8000"
BOUNDS = limits.Limits(upload_bytes=1 << 16, pixels=1 << 18, pictures=3, ask_bytes=1 << 16)
EXPECTED = {200, 400, 403, 404, 405, 408, 410, 413, 415, 421, 499, 503}
ROUNDS = 400  # of the loop, by which a request that has come whole is answered


class Now:
    """Computes where it is asked to: one thread, so that each execution is a function of its input."""

    async def run(self, job: Callable[[], Any]) -> Any:
        return job()


class Transport(asyncio.Transport):
    """A connection that keeps what it is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent, self.closed = bytearray(), False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("127.0.0.1", 4000), "sockname": ("127.0.0.1", 8000)}.get(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self.closed:
            self.sent += data

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


class Served:
    """A model behind no port at all."""

    def __init__(self, model: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.application = app.make_application(model, TOKEN, BOUNDS, Now(), png(), ("where?",))  # type: ignore[arg-type]
        self.server = server.make_server(self.application, BOUNDS)
        self.server.config.load()
        self.protocol = server._bounded_protocol(BOUNDS)
        self.picture = self.post("picture", b"application/octet-stream", png())["id"]

    def post(self, path: str, kind: bytes, body: bytes) -> Any:
        """What is answered to a body, told by the application itself."""
        status, headers, answer = self.loop.run_until_complete(self._post(path, kind, body))
        told = dict(headers)
        if status not in EXPECTED:
            raise Found(f"{path}: {status} {answer[:200]!r}")
        if told.get(b"x-content-type-options") != b"nosniff" or b"content-security-policy" not in told:
            raise Found(f"{path}: an answer without the headers that keep others out")
        content = json.loads(answer)
        if status != 200 and not (isinstance(content, dict) and content["error"]):
            raise Found(f"{path}: {status} without a reason")
        if status != 200:
            raise ValueError(content["error"])
        return content

    async def _post(self, path: str, kind: bytes, body: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        parts = [body[at : at + 1000] for at in range(0, len(body), 1000)] or [b""]
        waiting = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
        waiting[-1]["more_body"] = False
        sent: list[Any] = []

        async def receive() -> Any:
            return waiting.pop(0) if waiting else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"host", HOST), (b"content-type", kind), (b"content-length", str(len(body)).encode())]
        whole = f"/{TOKEN}/{path}"
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": whole,
            "raw_path": whole.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": headers,
            "server": ("127.0.0.1", 8000),
            "client": ("127.0.0.1", 4000),
        }
        await asyncio.wait_for(self.application(scope, receive, send), 120)
        return sent[0]["status"], sent[0]["headers"], b"".join(one.get("body", b"") for one in sent[1:])

    def speak(self, data: bytes) -> bytes:
        """What comes back for bytes as they are, which come in pieces."""
        return self.loop.run_until_complete(self._speak(data))

    async def _speak(self, data: bytes) -> bytes:
        state = self.server.server_state
        connection = self.protocol(self.server.config, state, {}, self.loop)
        transport = Transport()
        connection.connection_made(transport)
        step = 1 + data[-1] * 7 if data else 1
        for at in range(0, len(data), step):
            if not transport.closed:
                connection.data_received(data[at : at + step])
        for _ in range(ROUNDS):
            await asyncio.sleep(0)
            if not state.tasks:
                break
        connection.eof_received()
        connection.connection_lost(None)
        for _ in range(ROUNDS):
            await asyncio.sleep(0)
            if not state.tasks:
                break
        if state.tasks or state.connections:
            raise Found(
                f"{len(state.tasks)} requests and {len(state.connections)} connections are left by one that is closed"
            )
        return bytes(transport.sent)


def kinds(folder: Path) -> dict[str, Kind]:
    """Each kind by its name; `folder` is where their files may be."""
    made = folder / "server"
    made.mkdir()
    served = Served(qavit.load(write_qavit(made / "model", blocks=3, first=1, image_size=21, width=8)))
    asked = {
        "picture": served.picture,
        "questions": ["where is the red car?"],
        "method": "class",
        "block": 2,
        "heads": "mean",
    }
    more = {
        "picture": served.picture,
        "questions": ["a", "b c"],
        "method": None,
        "block": [1, 2],
        "fit": "pad",
        "words": True,
    }
    body = json.dumps(asked).encode()

    def read_asked(path: Path) -> None:
        content = served.post("ask", b"application/json", path.read_bytes())
        values = np.frombuffer(app_maps(content), "<f4")
        assert np.isfinite(values).all()

    def read_given(path: Path) -> None:
        content = served.post("picture", b"application/octet-stream", path.read_bytes())
        assert content["content"]["blank"]

    def read_bytes(path: Path) -> None:
        check_answers(served.speak(path.read_bytes()))

    return {
        "asked": Kind([body, json.dumps(more).encode()], made / "asked.json", read_asked, named=False),
        "given": Kind([png(), jpeg()], made / "given.bin", read_given, named=False),
        "http": Kind(small_requests(body), made / "http.bin", read_bytes, named=False),
    }


def app_maps(content: Any) -> bytes:
    return base64.b64decode(content["maps"]["data"])


def small_requests(body: bytes) -> list[bytes]:
    def request(first: str, *headers: str, body: bytes = b"") -> bytes:
        return "\r\n".join([first, "Host: 127.0.0.1:8000", *headers, "", ""]).encode() + body

    length = f"Content-Length: {len(body)}"
    origin = "Origin: http://127.0.0.1:8000"
    chunked = b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
    return [
        request(f"GET /{TOKEN}/ HTTP/1.1", "Sec-Fetch-Site: none", "Connection: keep-alive"),
        request(f"POST /{TOKEN}/ask HTTP/1.1", "Content-Type: application/json", length, origin, body=body),
        request(f"POST /{TOKEN}/ask HTTP/1.1", "Content-Type: application/json", "Transfer-Encoding: chunked", body=chunked),
        request(f"POST /{TOKEN}/picture HTTP/1.1", "Content-Type: image/png", f"Content-Length: {len(png())}", body=png()),
        request(f"GET /{TOKEN}/model HTTP/1.1", "Expect: 100-continue") + request(f"GET /{TOKEN}/style.css HTTP/1.0"),
        request(f"GET /{TOKEN}/model?x=1#y HTTP/1.1", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Key: x"),
        request("GET /wrong/ HTTP/1.1", "Origin: http://elsewhere.example", "Sec-Fetch-Site: cross-site"),
    ]


def check_answers(sent: bytes) -> None:
    """Whole answers, none of which says that something went wrong in here."""
    at = 0
    while at < len(sent):
        head, end, _ = sent[at:].partition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        if not end or (status != 100 and status not in EXPECTED):
            raise Found(f"{head[:300]!r}: {sent[at + len(head) :][:300]!r}")
        lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if not lengths and status not in (100, 499) and b"chunked" not in head.lower():
            break  # ends with the connection
        if b"chunked" in head.lower():
            break
        at += len(head) + 4 + (int(lengths[0]) if lengths else 0)
        if status != 100 and b"HTTP/1.1" not in sent[at : at + 8] and at < len(sent):
            raise Found(f"after an answer: {sent[at : at + 100]!r}")
