"""`qavit serve`: what it answers, and what it refuses."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving import TOKEN, Served

import qavit
import qavit.serve
from qavit.cli import main
from qavit.serve import _app, _guard
from qavit.serve._limits import Limits

PICTURE = Path(qavit.__file__).parent / "demo_model" / "scene.png"
QUESTION = "where is the star?"


@pytest.fixture(scope="module")
def model() -> qavit.Model:
    return qavit.load("demo")


@pytest.fixture(scope="module")
def served(model: qavit.Model) -> Iterator[Served]:
    one = Served(model, first=PICTURE.read_bytes(), questions=(QUESTION,))
    yield one
    one.close()


@pytest.fixture(scope="module")
def hurried(model: qavit.Model) -> Iterator[Served]:
    """A server that waits for nobody."""
    one = Served(model, Limits(head_seconds=0.3, body_seconds=0.3, send_seconds=0.3, upload_bytes=100_000, pixels=200_000))
    yield one
    one.close()


def asking(token: str, body: bytes) -> bytes:
    """A request as bytes."""
    lines = (f"POST /{token}/ask HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json")
    lines += (f"Content-Length: {len(body)}",)
    return "\r\n".join([*lines, "", ""]).encode() + body


def png(picture: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def maps_of(content: dict[str, Any]) -> Any:
    values = np.frombuffer(base64.b64decode(content["maps"]["data"]), "<f4")
    return values.reshape(-1, *content["grid"])


# ---- what it answers ----


def test_the_page_and_its_parts(served: Served) -> None:
    for path, kind in (
        ("", "text/html"),
        ("script.js", "text/javascript"),
        ("style.css", "text/css"),
        ("model", "application/json"),
    ):
        status, headers, body = served.request(path)
        assert (status, headers["content-type"].partition(";")[0]) == (200, kind)
        assert body
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers
    page = served.request("")[2].decode()
    assert "<script>" not in page
    assert "style=" not in page
    about = json.loads(served.request("model")[2])
    assert about["methods"]["class"]["blocks"] == list(range(12))
    assert about["methods"]["class"]["blind"] == list(range(7))
    assert about["methods"]["question"]["blocks"] == list(qavit.load("demo").question_blocks)
    assert about["questions"] == [QUESTION]


def test_maps_are_the_models_own(served: Served, model: qavit.Model) -> None:
    status, given = served.upload(PICTURE.read_bytes())
    assert status == 200
    assert given["content"]["blank"]
    questions = [QUESTION, "what color is the circle?"]
    status, content = served.ask(picture=given["id"], questions=questions, block=8, heads=1)
    assert status == 200
    expected = model.heatmaps(PICTURE, questions, block=8, heads=1)
    assert np.array_equal(maps_of(content), expected.maps)
    assert [one["text"] for one in content["questions"]] == questions
    assert content["questions"][1]["answers"][0][0] == expected.answers[1][0][0]
    assert content["block"] == 8
    assert "words" not in content
    assert content["has_words"]
    status, content = served.ask(picture=given["id"], questions=[QUESTION], words=True)
    assert content["questions"][0]["words"] == ["where", "is", "the", "star?"]
    assert content["words"]["bits"] == 32


def test_the_same_picture_is_kept_once_and_the_oldest_goes(model: qavit.Model) -> None:
    one = Served(model, Limits(pictures=2))
    try:
        ids = [one.upload(png(np.full((20, 20, 3), shade, np.uint8)))[1]["id"] for shade in (1, 2, 1, 3)]
        assert ids[0] == ids[2]
        assert one.ask(picture=ids[0], questions=[QUESTION])[0] == 200
        status, said = one.ask(picture=ids[1], questions=[QUESTION])
        assert (status, said["error"]) == (410, "this picture is not kept any more; give it again")
    finally:
        one.close()


def test_notes_and_wrong_wishes_are_said(served: Served) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    _, given = served.upload(png(noise))
    _, content = served.ask(picture=given["id"], questions=["where is the unicorn?"])
    assert any("bundled model" in note for note in content["notes"])
    assert any("unicorn" in note for note in content["questions"][0]["notes"])
    status, said = served.ask(picture=given["id"], questions=[QUESTION], block=40)
    assert (status, said["error"]) == (400, "block: block 40 does not exist; this model has blocks 0 to 11")


# ---- who may ask ----


@pytest.mark.parametrize(
    "path", ["", "/", f"/{TOKEN}", f"/{TOKEN}x/", f"/{TOKEN[:-1]}/", f"/x/{TOKEN}/", "/model", f"//{TOKEN}/", "/é/"]
)
def test_without_the_token_there_is_nothing(served: Served, path: str) -> None:
    sent = f"GET {path or '/'} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode("latin-1")
    answer = served.raw(sent)
    assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400"))
    assert TOKEN.encode() not in answer
    assert b"qavitViewer" not in answer


def test_tokens_are_compared_in_constant_time(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    monkeypatch.setattr(_guard.secrets, "compare_digest", lambda a, b: bool(compared.append((a, b))))
    assert served.request("model")[0] == 404
    assert compared == [(TOKEN.encode(), TOKEN.encode())]


def test_every_server_has_a_token_of_its_own(model: qavit.Model) -> None:
    said: list[str] = []
    for _ in range(2):
        with pytest.raises(InterruptedError):
            qavit.serve.serve(model, said=lambda line: (said.append(line), (_ for _ in ()).throw(InterruptedError()))[0])
    tokens = [line.split("/")[3] for line in said]
    assert len(set(tokens)) == 2
    assert min(map(len, tokens)) >= 32


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "evil.example:80@127.0.0.1", "0.0.0.0",
     "127.0.0.1:", "127.0.0.1:123456", "[::2]", "", "127.0.0.1, evil.example"],
)  # fmt: skip
def test_other_names_of_this_machine_are_refused(served: Served, host: str) -> None:
    status, _, body = served.request("model", Host=host)
    assert status == 421
    assert b"methods" not in body


def test_its_own_names_are_taken_through_a_tunnel_too(served: Served) -> None:
    for host in ("127.0.0.1", "localhost", "LOCALHOST:9000", "[::1]:80", f"127.0.0.1:{served.port}"):
        assert served.request("model", Host=host)[0] == 200
        assert served.request("model", Host=host, Origin=f"http://{host}")[0] == 200


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "http://evil.example",
        "https://localhost",
        "http://localhost:1",
        "http://127.0.0.1",
        "http://localhost.evil.example",
        "",
    ],
)
def test_pages_of_other_origins_are_refused(served: Served, origin: str) -> None:
    for path, body in (("model", None), ("ask", b"{}"), ("picture", PICTURE.read_bytes())):
        status, headers, _ = served.request(path, body, Host="localhost", Origin=origin, Content_Type="application/json")
        assert status == (200 if origin == "http://localhost" else 403)
        assert "access-control-allow-origin" not in headers


def test_other_sites_may_link_to_the_page_alone(served: Served) -> None:
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    assert served.request("", **link)[0] == 200
    assert served.request("model", **link)[0] == 403
    assert served.request("", **{**link, "Sec_Fetch_Dest": "iframe"})[0] == 403
    assert served.request("script.js", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors")[0] == 403
    assert served.request("script.js", Sec_Fetch_Site="same-origin")[0] == 200
    status, headers, _ = served.request("ask", b"", method="OPTIONS", Origin="http://evil.example")
    assert status == 403
    assert not any(name.startswith("access-control") for name in headers)


@pytest.mark.parametrize(
    "path",
    ["../", "../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "..%2fetc%2fpasswd", "page.js", "serve.html", "_app.py",
     "script.js/", "script.js%00", "%00", "model/../script.js", "static/..", "x" * 4000, "%ff%fe",
     "//", "\\..\\", "picture/0", "~root"],
)  # fmt: skip
def test_there_are_no_paths_but_its_own(served: Served, path: str) -> None:
    status, _, body = served.request(path)
    assert status in (400, 404)
    assert b"root:" not in body
    assert b"import" not in body


def test_methods(served: Served) -> None:
    for path, method in (
        ("", "POST"),
        ("model", "DELETE"),
        ("ask", "GET"),
        ("picture", "PUT"),
        ("picture", "GET"),
        ("", "TRACE"),
    ):
        assert served.request(path, b"{}" if method != "GET" else None, method=method)[0] == 405
    tunnel = b"CONNECT 127.0.0.1:80 HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    assert served.raw(tunnel).startswith(b"HTTP/1.1 40")


# ---- what may be sent ----


def test_uploads_are_bounded_whatever_they_say(hurried: Served) -> None:
    large = bytes(100_001)
    assert hurried.upload(large)[0] == 413
    # Without a length: counted while it comes.
    head = f"POST /{TOKEN}/picture HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in [large[:50_000]] * 3) + b"0\r\n\r\n"
    assert hurried.raw(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + chunks).startswith(b"HTTP/1.1 413")
    # Promised and not sent: nothing is waited for.
    assert hurried.raw(head.encode() + b"Content-Length: 99999999999999\r\n\r\n").startswith(b"HTTP/1.1 413")
    for length in (b"-1", b"1e3", b"0x10", b"1, 2", b"9" * 30, b"\xb2"):
        answer = hurried.raw(head.encode() + b"Content-Length: " + length + b"\r\n\r\n")
        assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 413")), length
    smuggled = b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    assert not hurried.raw(head.encode() + smuggled).startswith(b"HTTP/1.1 200")
    status, said = hurried.upload(b"")
    assert (status, said["error"]) == (400, "the file is empty")


def png_of(width: int, height: int) -> bytes:
    """The head of a PNG that promises so many pixels, and almost none of them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(1_000_000, 1_000_000), (500, 401), (1, 200_001), (2**31 - 1, 1), (0, 0)])
def test_huge_dimensions_are_refused_before_they_are_decoded(hurried: Served, width: int, height: int) -> None:
    status, said = hurried.upload(png_of(width, height))
    assert status == 400
    assert said["error"]
    assert hurried.upload(png(np.zeros((400, 500, 3), np.uint8)))[0] == 200


@pytest.mark.parametrize(
    "data",
    [b"hello", b"\x89PNG\r\n\x1a\n", PICTURE.read_bytes()[:500], b"GIF89a", b"%PDF-1.7", b"<svg xmlns='http://www.w3.org/2000/svg'/>",
     b"\xff\xd8\xff\xe0" + bytes(100), bytes(2000), b"/etc/passwd", b"data:image/png;base64,AAAA"],
)  # fmt: skip
def test_what_is_no_picture_is_said_to_be_none(hurried: Served, data: bytes) -> None:
    status, said = hurried.upload(data)
    assert status == 400
    assert 0 < len(said["error"]) < 300


def test_types(served: Served) -> None:
    form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="../../a.png"\r\n\r\nx\r\n--x--\r\n'
    for kind in (
        "multipart/form-data; boundary=x",
        "multipart/form-data",
        "text/plain",
        "application/x-www-form-urlencoded",
        "",
    ):
        assert served.request("picture", form, Content_Type=kind)[0] == 415
        assert served.request("ask", b"{}", Content_Type=kind)[0] == 415
    assert served.request("ask", b"{}", Content_Type="text/plain; application/json")[0] == 415


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"1", b'"x"', b"\xff\xfe", b"[" * 60_000, b'{"a":' * 10_000,
     b'{"picture": "a", "picture": "b"}', b'{"questions": "x"}', b'{"questions": []}', b'{"questions": [1]}',
     b'{"questions": ["a","b","c"]}',
     b'{"questions": ["' + b"x" * 1001 + b'"]}', b'{"method": 3}', b'{"block": 1.5}', b'{"block": true}', b'{"block": []}',
     b'{"block": [1, "2"]}', b'{"heads": null}', b'{"fit": "../x"}', b'{"fit": []}', b'{"words": 1}', b'{"__class__": 1}',
     b'{"block": ' + b"9" * 5000 + b"}", b'{"\\ud800": 1}'],
)  # fmt: skip
def test_what_is_asked_is_checked(served: Served, body: bytes) -> None:
    status, headers, said = served.request("ask", body, Content_Type="application/json")
    assert status == 400
    assert len(json.loads(said)["error"]) < 500
    assert headers["content-type"] == "application/json"


def test_pictures_are_named_by_what_the_server_gave(served: Served) -> None:
    for name in (None, 3, "", "x", "../../etc/passwd", ["a"], {"a": 1}):
        assert served.ask(picture=name, questions=[QUESTION])[0] == 410
    status, _, _ = served.request("ask", bytes(65 << 10), Content_Type="application/json")
    assert status == 413


def test_texts_of_every_kind_are_asked(served: Served) -> None:
    name = served.upload(PICTURE.read_bytes())[1]["id"]
    for text in ("\x00", "\ud800", "</script>", "🟥?", "где?", " ", "a" * 1000, "\u202e"):
        status, content = served.ask(picture=name, questions=[text])
        assert status in (200, 400), text
        if status == 200:
            assert content["questions"][0]["text"] == text


# ---- the protocol ----


def test_old_and_odd_requests(served: Served) -> None:
    assert served.raw(b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 421")  # no Host: a name of nobody's
    old = served.raw(f"GET /{TOKEN}/style.css HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".encode())
    assert old.startswith(b"HTTP/1.1 200")
    for sent in (
        b"GET / HTTP/9.9\r\n\r\n", b"GET /\r\n\r\n", b"\r\n" * 3000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"y" * 20_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX\x00: y\r\n\r\n",
    ):  # fmt: skip
        assert served.raw(sent).startswith(b"HTTP/1.1 4"), sent[:60]
    upgrade = f"GET /{TOKEN}/ HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n"
    assert served.raw(upgrade.encode()).startswith((b"HTTP/1.1 200", b"HTTP/1.1 4"))
    absolute = f"GET http://evil.example/{TOKEN}/model HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    assert not served.raw(absolute.encode()).startswith(b"HTTP/1.1 200")
    assert served.request("model")[0] == 200


def test_slow_clients_lose_their_connections(hurried: Served) -> None:
    assert hurried.raw(b"") == b""
    assert hurried.raw(b"GET / HTTP/1.1\r\nHost: 127.") == b""
    head = f"POST /{TOKEN}/picture HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\n"
    assert hurried.raw(head.encode() + b"x").startswith(b"HTTP/1.1 408")
    # The second request on a connection that was quick once.
    quick = f"GET /{TOKEN}/style.css HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /"
    answer = hurried.raw(quick.encode())
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"HTTP/1.1") == 1


def test_slow_readers_lose_their_answer() -> None:
    async def never(_: Any) -> None:
        await asyncio.Event().wait()

    async def page(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    guard = _guard.Guard(page, TOKEN, 0.05)
    scope = {"type": "http", "method": "GET", "path": f"/{TOKEN}/", "headers": [(b"host", b"127.0.0.1")]}
    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(guard(scope, never, never))


def test_a_full_queue_says_so_and_goes_on(model: qavit.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    computing, go_on = threading.Event(), threading.Event()
    answers_of = _app.answers_of

    def slow(*arguments: Any) -> Any:
        computing.set()
        assert go_on.wait(60)
        return answers_of(*arguments)

    one = Served(model, Limits(waiting=1))
    try:
        name = one.upload(PICTURE.read_bytes())[1]["id"]
        monkeypatch.setattr(_app, "answers_of", slow)
        answers: list[int] = []
        threads = [
            threading.Thread(target=lambda: answers.append(one.ask(picture=name, questions=[QUESTION])[0])) for _ in range(4)
        ]
        threads[0].start()
        assert computing.wait(60)
        for thread in threads[1:]:
            thread.start()
        while len(answers) < 2:  # one computes, one waits, two were told to come again
            threads[-1].join(0.01)
        assert answers == [503, 503]
        assert one.request("style.css")[0] == 200  # pages are given meanwhile
        go_on.set()
        for thread in threads:
            thread.join()
        assert answers == [503, 503, 200, 200]
    finally:
        go_on.set()
        one.close()


def test_what_nobody_waits_for_is_not_computed(model: qavit.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    computing, go_on, computed = threading.Event(), threading.Event(), []

    def slow(_: Any, __: Any, wish: Any) -> Any:
        computed.append(wish.questions)
        computing.set()
        assert go_on.wait(60)
        raise ValueError("done")

    one = Served(model)
    try:
        name = one.upload(PICTURE.read_bytes())[1]["id"]
        monkeypatch.setattr(_app, "answers_of", slow)
        first = threading.Thread(target=one.ask, kwargs={"picture": name, "questions": ["first"]})
        first.start()
        assert computing.wait(60)
        body = json.dumps({"picture": name, "questions": ["gone"]}).encode()
        with socket.create_connection(("127.0.0.1", one.port)) as connection:
            connection.sendall(asking(TOKEN, body))
            while len(one.server.server_state.tasks) < 2:
                first.join(0.01)
        while len(one.server.server_state.connections) > 1:
            first.join(0.01)
        go_on.set()
        first.join()
        assert one.ask(picture=name, questions=["last"])[1]["error"] == "done"
        assert computed == [["first"], ["last"]]
    finally:
        go_on.set()
        one.close()


def test_what_goes_wrong_within_is_an_answer(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    name = served.upload(PICTURE.read_bytes())[1]["id"]
    for error, status in ((KeyError("x"), 500), (MemoryError(), 503), (OSError("gone"), 400)):
        monkeypatch.setattr(_app, "answers_of", lambda *_, error=error: (_ for _ in ()).throw(error))
        assert served.ask(picture=name, questions=[QUESTION])[0] == status
    monkeypatch.undo()
    assert served.ask(picture=name, questions=[QUESTION])[0] == 200


# ---- processes ----


class Process:
    """`qavit serve` as a command."""

    def __init__(self, folder: Path, *words: str, before: str = "") -> None:
        # Where this process was told to pass over SIGHUP, as under nohup, its children would be, too.
        heard = "import signal; signal.signal(getattr(signal, 'SIGHUP', signal.SIGINT), signal.SIG_DFL)"
        script = f"import sys\n{heard}\n{before}\nfrom qavit.cli import main\nsys.exit(main(['serve', *sys.argv[1:]]))"
        paths = os.pathsep.join([str(Path(qavit.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder,
            env={**os.environ, "PYTHONPATH": paths, "TMPDIR": str(folder)}, start_new_session=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        assert self.address.startswith("http://127.0.0.1:"), self.process.communicate()[1]
        self.port, self.token = int(self.address.split(":")[2].split("/")[0]), self.address.split("/")[3]

    def memory(self, name: str) -> int:
        """In bytes, of /proc."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(f"{name}:"))

    def request(self, path: str, body: bytes | None = None, kind: str = "application/json") -> tuple[int, bytes]:
        import http.client

        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            headers = {} if body is None else {"Content-Type": kind}
            connection.request("GET" if body is None else "POST", f"/{self.token}/{path}", body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=120)
        return self.process.returncode, said


STUCK = """
import threading, qavit.serve._app as app
def stuck(*_):
    print("computing", file=sys.stderr, flush=True)
    threading.Event().wait(600)
app.answers_of = stuck
"""


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", 1)])
def test_it_ends_with_the_terminal_whatever_goes_on(tmp_path: Path, number: int) -> None:
    one = Process(tmp_path, before=STUCK)
    slow = [socket.create_connection(("127.0.0.1", one.port)) for _ in range(3)]  # one says nothing at all
    slow[1].sendall(b"GET / HT")
    body = (
        f"POST /{one.token}/picture HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\n"
    )
    slow[2].sendall(body.encode() + b"x")
    name = json.loads(one.request("picture", PICTURE.read_bytes(), "image/png")[1])["id"]
    asked = json.dumps({"picture": name, "questions": [QUESTION]}).encode()
    slow.append(socket.create_connection(("127.0.0.1", one.port)))  # one of before may have been slow for too long by now
    slow[-1].sendall(asking(one.token, asked))
    assert one.process.stderr is not None
    assert one.process.stderr.readline() == "computing\n"
    assert one.end(number) == (0, "")
    for connection in slow:
        connection.close()
    assert list(tmp_path.iterdir()) == []  # nothing was written


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_fifty_clients_at_once_in_bounded_memory(tmp_path: Path) -> None:
    one = Process(tmp_path)
    try:
        small = json.loads(one.request("picture", PICTURE.read_bytes(), "image/png")[1])["id"]
        one.request("ask", json.dumps({"picture": small, "questions": [QUESTION]}).encode())
        before = one.memory("VmRSS")
        side = 1500
        statuses: list[int] = []

        def client(shade: int) -> None:
            data = png(np.full((side, side, 3), (shade, 9, 200), np.uint8))
            status, said = one.request("picture", data, "image/png")
            statuses.append(status)
            if status == 200:
                name = json.loads(said)["id"]
                for question in (QUESTION,):
                    statuses.append(one.request("ask", json.dumps({"picture": name, "questions": [question]}).encode())[0])

        threads = [threading.Thread(target=client, args=(shade,)) for shade in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(statuses) <= {200, 410, 503}
        assert statuses.count(200) >= 20
        # Fifty such pictures are 340 MB, eight of them 54, and as much again passes through.
        assert one.memory("VmHWM") - before < 250e6
        assert one.request("model")[0] == 200
    finally:
        assert one.end() == (0, "")


# ---- the command ----


def test_without_the_extra_its_name_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for missing in ("uvicorn", "starlette"):
        monkeypatch.setitem(sys.modules, missing, None)
        assert main(["serve"]) == 1
        assert 'pip install "qavit[serve]"' in capsys.readouterr().err
        monkeypatch.undo()


def test_wrong_use(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for words, code, said in (
            (["--port", str(port)], 1, f"--port: {port} is taken by another program; 0 takes a free one"),
            (["--port", "70000"], 2, "--port: 70000, expected 0 to 65535"),
            (["--max-mb", "0"], 2, "--max-mb, --max-pixels: expected at least 1"),
            (["-q", "a", "-q", "b", "-q", "c"], 2, "--question: 3 of them, expected at most 2"),
            ([str(tmp_path / "no.png")], 1, "no such file"),
        ):
            assert main(["serve", *words]) == code
            assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"port": -1}, ValueError, "port: got -1, expected 0 to 65535"),
        ({"port": "80"}, TypeError, "port: expected a whole number, got str"),
        ({"max_bytes": 0}, ValueError, "max_bytes: got 0, expected at least 1"),
        ({"max_pixels": 0.5}, TypeError, "max_pixels: expected a whole number, got float"),
        ({"questions": ["a", "b", "c"]}, ValueError, "questions: 3 of them, expected at most 2"),
        ({"questions": [1]}, TypeError, "questions"),
        ({"image": 3}, TypeError, "image"),
    ],
)
def test_arguments_are_checked(model: qavit.Model, arguments: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        qavit.serve.serve(model, **arguments)


def test_what_is_served_is_a_model() -> None:
    with pytest.raises(TypeError, match=r"expected what qavit\.load gives, got str"):
        qavit.serve.serve("demo")  # type: ignore[arg-type]
