"""The requests of the page, and what answers them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Optional

from .._base.arguments import one_line
from .._base.extras import require
from .._base.small_files import parse_json
from ..models._asking import Wish, answers_of, blank_of, content_of, description_of
from ..models._model import Model
from ..plots._page import file_text, filled, viewer_markup
from ._guard import Application, Guard
from ._limits import Limits
from ._pictures import Pictures
from ._worker import Worker

logger = logging.getLogger(__name__)
TITLE = "Where the model looks"


class Refusal(Exception):
    """A request that is answered by a status and a sentence."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status = status


class Asking:
    """One model, the pictures that were given, and one computation at a time."""

    def __init__(
        self, model: Model, limits: Limits, worker: Worker, first: Optional[bytes], questions: Sequence[str]
    ) -> None:
        self._model, self._limits, self._worker = model, limits, worker
        self._pictures = Pictures(limits)
        self._turn, self._uploading = asyncio.Lock(), asyncio.Semaphore(limits.uploads)
        self._waiting = 0
        self._first, self._questions = first, list(questions)
        self._description: Optional[dict[str, Any]] = None

    async def describe(self, request: Any) -> Any:
        """GET model."""
        return await self._computed(request, self._describe)

    def _describe(self) -> dict[str, Any]:
        if self._description is None:
            self._description = description_of(self._model)
        first = None if self._first is None else self._add(self._first)
        limits = {"max_bytes": self._limits.upload_bytes}
        return {**self._description, **limits, "first": first, "questions": self._questions}

    async def upload(self, request: Any) -> Any:
        """POST picture: a file's bytes, as they are."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/octet-stream" and not kind.startswith("image/"):
            raise Refusal(415, "send the file's bytes as they are, as application/octet-stream")
        async with self._queued(self._uploading):
            data = await self._body(request, self._limits.upload_bytes)
            return await self._computed(request, lambda: self._add(data))

    def _add(self, data: bytes) -> dict[str, Any]:
        name, seen = self._pictures.add(data)
        return {"id": name, "content": blank_of(self._model, seen)}

    async def ask(self, request: Any) -> Any:
        """POST ask: what is asked, as JSON."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refusal(415, "send what is asked as application/json")
        asked = parse_json(await self._body(request, self._limits.ask_bytes), "asked")
        if not isinstance(asked, dict):
            raise ValueError("asked: expected a JSON object")
        name = asked.pop("picture", None)
        wish = Wish.of(asked)

        def answer() -> dict[str, Any]:
            seen = self._pictures.get(name) if isinstance(name, str) else None
            if seen is None:
                raise Refusal(410, "this picture is not kept any more; give it again")
            return content_of(answers_of(self._model, seen, wish), wish.words)

        return await self._computed(request, answer)

    async def _computed(self, request: Any, job: Callable[[], dict[str, Any]]) -> Any:
        """What a job gives, as JSON; nothing for somebody who has gone meanwhile."""
        responses = require("starlette.responses", "serve")
        async with self._queued(self._turn):
            if await request.is_disconnected():
                return responses.Response(status_code=499)
            text = await self._worker.run(lambda: json.dumps(job(), separators=(",", ":"), allow_nan=False))
        return responses.Response(text, media_type="application/json")

    @contextlib.asynccontextmanager
    async def _queued(self, turn: Any) -> AsyncIterator[None]:
        """A turn, one after the other; a request that finds too many waiting is refused."""
        if turn.locked() and self._waiting >= self._limits.waiting:
            raise Refusal(503, "too many ask at once; try again")
        self._waiting += 1
        try:
            await turn.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            turn.release()

    async def _body(self, request: Any, most: int) -> bytes:
        """A request's body, of a bounded size, within a bounded time."""
        too_large = Refusal(413, f"larger than {most / (1 << 20):g} MiB")
        announced = request.headers.get("content-length", "0")
        if not announced.isdecimal() or len(announced) > 18 or int(announced) > most:
            raise too_large

        async def read() -> bytes:
            data = bytearray()
            async for part in request.stream():
                data += part
                if len(data) > most:
                    raise too_large
            return bytes(data)

        try:
            return await asyncio.wait_for(read(), self._limits.body_seconds)
        except asyncio.TimeoutError:
            raise Refusal(408, f"the request did not come whole within {self._limits.body_seconds:g} s") from None


def make_application(
    model: Model, token: str, limits: Limits, worker: Worker, first: Optional[bytes] = None, questions: Sequence[str] = ()
) -> Application:
    """The ASGI application."""
    applications = require("starlette.applications", "serve")
    responses = require("starlette.responses", "serve")
    routing = require("starlette.routing", "serve")
    asking = Asking(model, limits, worker, first, questions)
    own = Path(__file__).parent
    parts = {"@TITLE@": TITLE, "@VIEWER@": viewer_markup(TITLE, asks=True)}
    page = filled((own / "serve.html").read_text(encoding="utf-8"), parts)
    script = "\n".join([file_text("page.js"), file_text("ask.js"), (own / "serve.js").read_text(encoding="utf-8")])
    texts = {
        "/": (page, "text/html"),
        "/script.js": (script, "text/javascript"),
        "/style.css": (file_text("page.css"), "text/css"),
    }

    def text_route(path: str, text: str, kind: str) -> Any:
        async def give(request: Any) -> Any:
            return responses.Response(text, media_type=kind)

        return routing.Route(path, give, methods=["GET"])

    def route(path: str, method: str, act: Callable[[Any], Awaitable[Any]]) -> Any:
        return routing.Route(path, _explained(act, responses), methods=[method])

    routes = [
        *(text_route(path, *about) for path, about in texts.items()),
        route("/model", "GET", asking.describe),
        route("/picture", "POST", asking.upload),
        route("/ask", "POST", asking.ask),
    ]
    inner = applications.Starlette(routes=routes)
    inner.router.redirect_slashes = False
    return Guard(inner, token, limits.send_seconds)


def _explained(act: Callable[[Any], Awaitable[Any]], responses: Any) -> Callable[[Any], Awaitable[Any]]:
    """A request whose errors are answers; the page shows their sentence."""
    disconnected = require("starlette.requests", "serve").ClientDisconnect

    def answer(status: int, said: str) -> Any:
        # Its body may not have been read: what comes behind it is no request.
        headers = {"connection": "close", **({"retry-after": "1"} if status == 503 else {})}
        # In ASCII: what was asked may hold half letters, which cannot be sent otherwise.
        text = json.dumps({"error": said})
        return responses.Response(text, status_code=status, headers=headers, media_type="application/json")

    async def explained(request: Any) -> Any:
        try:
            return await act(request)
        except Refusal as refusal:
            return answer(refusal.status, str(refusal))
        except disconnected:
            return responses.Response(status_code=499)
        except (ValueError, TypeError, OSError) as error:
            return answer(400, one_line(error))
        except MemoryError:
            return answer(503, "not enough memory; try a smaller picture")
        except Exception as error:
            logger.exception("%s", request.url.path)
            return answer(500, f"something went wrong in qavit: {one_line(error)}")

    return explained
