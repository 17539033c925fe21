"""The server: one page on this machine, until it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import secrets
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Optional

from .._base.arguments import question_list, whole_number
from .._base.extras import require
from .._base.pictures import load_image
from ..models._model import Model
from ._app import make_application
from ._limits import Limits
from ._worker import Worker

if TYPE_CHECKING:
    from .._base.types import ImageLike

HOST = "127.0.0.1"
ENDING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
LAST_SECONDS = 1  # for answers that are on their way when the server ends
BACKLOG = 128


def serve(
    model: Model,
    *,
    image: Optional[ImageLike] = None,
    questions: Sequence[str] = (),
    port: int = 0,
    open: bool = False,
    max_bytes: int = Limits._field_defaults["upload_bytes"],
    max_pixels: int = Limits._field_defaults["pixels"],
    said: Callable[[str], Any] = print,
) -> bool:
    """Serve a page on 127.0.0.1 where map and answer follow what is typed, until Ctrl-C (or a closing terminal) ends it.

    Needs the extra ``serve``. Nothing is written, pictures are kept in memory (the last eight, 512 MiB), and only who has
    the page's whole address, with the token in it, on this machine, is answered. One question is computed at a time.

    Parameters
    ----------
    model : Model
        As :func:`qavit.load` gives.
    image : path, PIL image, uint8 [H, W, 3] or what else `heatmaps` takes, optional
        The picture that the page opens with.
    questions : sequence of str
        Up to two questions that it opens with.
    port : int
        From 0 to 65535; 0: a free one.
    open : bool
        Open the page in the browser.
    max_bytes, max_pixels : int
        Of a picture that is given to the page; a larger one is refused before it is decoded.
    said : callable
        Called with the line that names the address.

    Returns
    -------
    bool
        Whether all work has ended; False where a question is still being computed, by a thread that ends with the process.

    Raises
    ------
    ImportError
        The extra is not installed.
    OSError
        The port is taken.
    ValueError, TypeError
        An argument is none, or the picture cannot be read.
    """
    if not isinstance(model, Model):
        raise TypeError(f"model: expected what qavit.load gives, got {type(model).__name__}")
    if not model.methods:
        raise ValueError(f"model: {model.name} gives no maps")
    if not 0 <= whole_number(port, "port") <= 65535:
        raise ValueError(f"port: got {port}, expected 0 to 65535")
    for name, value in (("max_bytes", max_bytes), ("max_pixels", max_pixels)):
        if whole_number(value, name) < 1:
            raise ValueError(f"{name}: got {value}, expected at least 1")
    asked = question_list(questions) if len(questions) else []
    if len(asked) > 2:
        raise ValueError(f"questions: {len(asked)} of them, expected at most 2")
    for module in ("uvicorn", "starlette"):
        require(module, "serve")
    limits = Limits(upload_bytes=max_bytes, pixels=max_pixels)
    first = None if image is None else _png(load_image(image, max_pixels=max_pixels))
    token, worker = secrets.token_urlsafe(24), Worker()
    try:
        with _listening(port) as listener:
            address = f"http://{HOST}:{listener.getsockname()[1]}/{token}/"
            application = make_application(model, token, limits, worker, first, asked)
            said(f"{address}\nthe page asks {model.name} while you type; Ctrl-C ends it")
            if open:
                # A browser of the terminal's would keep the server from answering it.
                threading.Thread(target=webbrowser.open, args=[address], daemon=True).start()
            server = make_server(application, limits)
            with _ending_by_signals(server):
                server.run(sockets=[listener])
    finally:
        ended = worker.end(0.05)
    return ended


def _png(picture: Any) -> bytes:
    """A picture's file, as if it had been given to the page."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@contextlib.contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
    """A socket that listens on this machine alone."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        if sys.platform != "win32":  # where it would let others listen on the same port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise OSError(f"port: {port} is taken by another program; 0 takes a free one") from error
            raise OSError(f"port: {port} cannot be used: {error.strerror}") from error
        listener.listen(BACKLOG)
        yield listener


def make_server(application: Any, limits: Limits) -> Any:
    """A uvicorn.Server within the limits, whose signals are this module's."""
    uvicorn = require("uvicorn", "serve")

    class Quiet(uvicorn.Server):  # type: ignore[misc, name-defined]
        def capture_signals(self) -> Any:
            return contextlib.nullcontext()

    return Quiet(
        uvicorn.Config(
            application, http=_bounded_protocol(limits), ws="none", lifespan="off", loop="asyncio", log_config=None,
            log_level="critical", access_log=False, server_header=False, date_header=False, proxy_headers=False,
            limit_concurrency=limits.connections, timeout_keep_alive=limits.idle_seconds,
            timeout_graceful_shutdown=LAST_SECONDS, h11_max_incomplete_event_size=limits.head_bytes, backlog=BACKLOG,
        )
    )  # fmt: skip


def _bounded_protocol(limits: Limits) -> Any:
    """A connection that is closed when a request's head does not come whole in time, or where there are too many."""
    protocols = require("uvicorn.protocols.http.h11_impl", "serve")

    class Bounded(protocols.H11Protocol):  # type: ignore[misc, name-defined]
        _watch: Optional[asyncio.TimerHandle] = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > 2 * limits.connections:
                transport.abort()
            else:
                self._watch = self.loop.call_later(limits.head_seconds, self._late)

        def data_received(self, data: bytes) -> None:
            if self._watch is None and self.cycle.response_complete:  # the first bytes of another request
                self._watch = self.loop.call_later(limits.head_seconds, self._late)
            super().data_received(data)

        def handle_events(self) -> None:
            super().handle_events()
            if self.cycle is not None and not self.cycle.response_complete:
                self._unwatch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.conn.trailing_data[0] and self.cycle.response_complete and self._watch is None:
                self._watch = self.loop.call_later(limits.head_seconds, self._late)  # a part of the next one came before

        def connection_lost(self, exc: Optional[Exception]) -> None:
            self._unwatch()
            super().connection_lost(exc)

        def _unwatch(self) -> None:
            if self._watch is not None:
                self._watch.cancel()
                self._watch = None

        def _late(self) -> None:
            self._watch = None
            self.transport.abort()

    return Bounded


@contextlib.contextmanager
def _ending_by_signals(server: Any) -> Iterator[None]:
    """Ctrl-C, a closing terminal and a polite kill end the server; in another thread than the main one nothing does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: Any) -> None:
        server.force_exit = server.should_exit  # the second one does not wait for anybody
        server.should_exit = True

    before = {}
    for name in ENDING:
        number = getattr(signal, name, None)
        # Started with nohup, it outlives the terminal.
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
