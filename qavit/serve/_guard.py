"""What stands before every request: who may ask at all."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Optional

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

#: Names of this machine alone: a name of somebody's own that was made to point here (DNS rebinding) is none of them.
HOST = re.compile(rb"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data: blob:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]


class Guard:
    """An ASGI application that lets through only requests for this server by its own pages.

    What is let through is asked for below the token; answers get the headers that keep other pages out. A reader who takes
    longer than `send_seconds` for a part of an answer loses the connection.
    """

    def __init__(self, inner: Application, token: str, send_seconds: float) -> None:
        self._inner = inner
        self._token = token.encode("ascii")
        self._send_seconds = send_seconds

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
            await asyncio.wait_for(send(message), self._send_seconds)

        path, refused = self._path(scope)
        if refused is not None:
            status, said = refused
            return await refuse(guarded, status, said)
        await self._inner({**scope, "path": path, "raw_path": path.encode("utf-8"), "root_path": ""}, receive, guarded)

    def _path(self, scope: Message) -> tuple[str, Optional[tuple[int, str]]]:
        """What is asked for behind the token; or with which status, and why, it is refused."""
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value)
        hosts = headers.get(b"host", [])
        if len(hosts) != 1 or HOST.fullmatch(hosts[0]) is None:
            return "", (421, "this server answers to 127.0.0.1 and localhost alone")
        asked: str = scope["path"]
        _, _, below = asked.partition("/")
        token, slash, rest = below.partition("/")
        if not secrets.compare_digest(token.encode("utf-8", "surrogateescape"), self._token):
            return "", (404, "there is nothing here: open the address that qavit serve says, whole")
        path = f"/{rest}" if slash else ""
        origins = headers.get(b"origin", [])
        if origins and (len(origins) != 1 or origins[0].lower() != b"http://" + hosts[0].lower()):
            return "", (403, "asked by a page of another origin")
        # A link elsewhere may lead to the page itself, for those who have its address.
        allowed = {b"same-origin", b"none"} | (
            {b"cross-site", b"same-site"} if self._opens_the_page(scope, path, headers) else set()
        )
        if any(site not in allowed for site in headers.get(b"sec-fetch-site", [])):
            return "", (403, "asked by a page of another site")
        return path, None

    @staticmethod
    def _opens_the_page(scope: Message, path: str, headers: dict[bytes, list[bytes]]) -> bool:
        whole = headers.get(b"sec-fetch-mode") == [b"navigate"] and headers.get(b"sec-fetch-dest") == [b"document"]
        return scope["method"] == "GET" and path == "/" and whole


async def refuse(send: Send, status: int, said: str) -> None:
    """An answer that says why there is none, behind which the connection closes: its body was not read."""
    body = json.dumps({"error": said}).encode()
    headers = [
        (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close"),
    ]  # fmt: skip
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
