"""The page of `qavit serve` in a real browser."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser
from serving import Served
from test_serve import PICTURE, png

import qavit
from qavit.serve import _app
from qavit.serve._limits import Limits

FIRST, SECOND = "where is the star?", "what color is the circle?"
ABOUT = "document.querySelector('#about').textContent"
WRONG = "document.querySelector('#wrong').textContent"
ANSWER = "document.querySelector('.answer')?.textContent ?? ''"
SHOWN = "document.querySelector('main').classList.contains('blank') ? '' : document.querySelector('#said').textContent"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    one = Served(qavit.load("demo"), Limits(pictures=2), first=PICTURE.read_bytes())
    yield one
    one.close()


def visit(browser: Browser, served: Served, width: int = 1280, height: int = 900, dark: bool = False) -> None:
    browser.visit(served.address, width, height, dark)
    browser.wait("document.querySelector('#about').textContent.includes('picture 384 x 384')")


def write(browser: Browser, text: str, field: str = "question") -> None:
    browser.run(f"document.getElementById('{field}').select()")
    browser.run(f"document.getElementById('{field}').focus()")
    for letter in text:
        browser.press(letter)


def choose(browser: Browser, select: str, value: Any) -> None:
    text = json.dumps(json.dumps(value))
    browser.run(f"(s => {{ s.value = {text}; s.dispatchEvent(new Event('input')); }})(document.querySelector('#{select}'))")


def give(browser: Browser, data: bytes, way: str) -> None:
    """A picture, as a person gives one."""
    browser.run(
        f"""(bytes => {{
          const carried = new DataTransfer();
          carried.items.add(new File([Uint8Array.from(bytes)], "a.png", {{type: "image/png"}}));
          const target = document.querySelector("#question");
          if ("{way}" === "drop") target.dispatchEvent(new DragEvent("drop", {{dataTransfer: carried, bubbles: true, cancelable: true}}));
          if ("{way}" === "paste") target.dispatchEvent(new ClipboardEvent("paste", {{clipboardData: carried, bubbles: true, cancelable: true}}));
          if ("{way}" === "choose") {{
            const file = document.querySelector("#file");
            file.files = carried.files;
            file.dispatchEvent(new Event("change"));
          }}
        }})({list(data)})"""  # noqa: E501
    )


def problems(browser: Browser) -> list[Any]:
    return [e["params"] for e in browser.events if e["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]


def test_map_and_answer_follow_what_is_typed(browser: Browser, served: Served) -> None:
    visit(browser, served)
    assert browser.run("document.querySelector('main').classList.contains('blank')")
    plain = browser.canvas()
    write(browser, FIRST)
    browser.wait(f"{SHOWN} === '{FIRST}: middle right, 88%.' || {SHOWN}.startsWith('{FIRST}: ')")
    drawn = browser.canvas()
    assert np.abs(drawn - plain).max() > 60
    expected = served.model.heatmaps(PICTURE, [FIRST])
    assert browser.run("document.querySelector('.answer span').textContent") == expected.answers[0][0][0]
    y, x = np.unravel_index(np.abs(drawn - plain).sum(-1).argmax(), drawn.shape[:2])
    patch = expected.top_patches(1)[0][0]
    assert (y * 12 // drawn.shape[0], x * 12 // drawn.shape[1]) == (patch.row, patch.column)
    assert browser.run(ABOUT) == "demo · Where the class token looks · block 9 · 12 x 12 patches · picture 384 x 384"
    # Maps of its words come a little later.
    browser.wait("document.querySelectorAll('#words button').length === 4")
    browser.point("#words button:nth-child(4)")
    assert np.abs(browser.canvas() - drawn).max() > 30
    # Without a question there is no map.
    write(browser, " ")
    browser.wait("document.querySelector('main').classList.contains('blank')")
    browser.settle()
    assert np.array_equal(browser.canvas(), plain)
    assert problems(browser) == []


def test_two_questions_side_by_side(browser: Browser, served: Served) -> None:
    visit(browser, served)
    write(browser, FIRST)
    write(browser, SECOND, "question2")
    browser.wait(f"document.querySelector('#name2').textContent === '{SECOND}' && !document.querySelector('#stage2').hidden")
    browser.settle()
    assert np.abs(browser.canvas("#view") - browser.canvas("#view2")).max() > 60
    headings = [browser.run(f"document.querySelector('#{name}').textContent") for name in ("answersof", "answersof2")]
    assert headings == [f"Answers to “{FIRST}”", f"Answers to “{SECOND}”"]
    assert browser.run("document.querySelector('#answers2 .answer span').textContent") == "orange"
    boxes = browser.run(
        "['view', 'view2'].map(i => document.getElementById(i).getBoundingClientRect()).map(b => [b.left, b.top])"
    )
    assert abs(boxes[0][1] - boxes[1][1]) < 1
    assert boxes[0][0] < boxes[1][0]
    browser.run("document.querySelector('#view2').focus()")
    assert "; beside it " in browser.run("document.querySelector('#reading').textContent")
    write(browser, " ", "question2")
    browser.wait("document.querySelector('#stage2').hidden")


def test_method_block_heads_and_how_it_is_seen(browser: Browser, served: Served) -> None:
    visit(browser, served)
    write(browser, FIRST)
    browser.wait(f"{SHOWN}.startsWith('{FIRST}')")
    for select, value, about in (
        ("ownblock", 8, "block 8"),
        ("heads", 2, "block 8"),
        ("method", "question", "Which patches look at the question · block 8"),
        ("method", "rollout", "Read by rollout"),
        ("fit", "pad", "Read by rollout"),
    ):
        before = browser.canvas()
        choose(browser, select, value)
        browser.wait(f"{ABOUT}.includes('{about}')")
        if select == "heads":
            expected = served.model.heatmaps(PICTURE, [FIRST], block=8, heads=2)
            hot = expected.top_patches(1)[0][0]
            share = f"{100 * float(expected.maps.max()):.3g}"
            browser.point("#view", (hot.column + 0.5) / 12, (hot.row + 0.5) / 12)
            said = f"Row {hot.row + 1}, column {hot.column + 1}: {share}"
            browser.wait(f"document.querySelector('#reading').textContent.startsWith('{said}')")
        elif select != "fit":
            assert np.abs(browser.canvas() - before).max() > 10
    choose(browser, "method", "class")
    choose(browser, "ownblock", None)
    browser.wait(f"{ABOUT}.includes('block 9')")
    browser.run("document.querySelector('#view').focus()")
    browser.press("]")
    browser.wait(f"{ABOUT}.includes('block 10')")
    choose(browser, "ownblock", 2)
    browser.wait("[...document.querySelectorAll('#notes p')].some(p => p.textContent.includes('has not seen the question'))")
    assert problems(browser) == []


def test_what_was_asked_before_can_be_asked_again(browser: Browser, served: Served) -> None:
    visit(browser, served)
    for text in (FIRST, SECOND):
        write(browser, text)
        browser.wait(f"{SHOWN}.startsWith('{text}')")
        browser.press("Enter")
    listed = "[...document.querySelectorAll('#history button')].map(b => b.textContent)"
    assert browser.run(listed) == [SECOND, FIRST]
    browser.point("#history button:nth-child(2)", click=True)
    browser.wait(f"{SHOWN}.startsWith('{FIRST}')")
    assert browser.run("document.querySelector('#question').value") == FIRST


@pytest.mark.parametrize("way", ["drop", "paste", "choose"])
def test_pictures_are_given(browser: Browser, served: Served, way: str) -> None:
    visit(browser, served)
    write(browser, FIRST)
    noise = np.random.default_rng(len(way)).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    give(browser, png(noise), way)
    browser.wait(f"{ABOUT}.includes('picture 90 x 60') && {SHOWN}.startsWith('{FIRST}')")
    notes = browser.run("[...document.querySelectorAll('#notes p')].map(p => p.textContent)")
    assert notes[0].startswith("The model saw the middle 67%")
    assert notes[1].startswith("The bundled model knows drawn shapes alone")
    assert notes[-1] == "Grey: not seen by the model."
    assert browser.run("document.querySelector('#view').width") == 640
    # Others took its place on the server, and the page gives it once more.
    for shade in (1, 2):
        served.upload(png(np.full((20, 20, 3), shade, np.uint8)))
    write(browser, SECOND)
    browser.wait(f"{SHOWN}.startsWith('{SECOND}')")
    assert browser.run(WRONG) == ""


def test_a_picture_and_what_is_said_of_it_change_together(browser: Browser, served: Served) -> None:
    visit(browser, served)
    before = browser.canvas()
    browser.run(
        "{ const decode = HTMLImageElement.prototype.decode;"
        "  const gate = new Promise(open => { window.go = open; });"
        "  HTMLImageElement.prototype.decode = async function () {"
        "    window.held = true; await gate; return decode.call(this); }; }"
    )
    shade = np.full((60, 90, 3), (250, 0, 120), np.uint8)
    give(browser, png(shade), "drop")
    browser.wait("window.held === true")
    write(browser, FIRST)
    assert "picture 384 x 384" in browser.run(ABOUT)
    assert np.array_equal(browser.canvas(), before)
    browser.run("window.go()")
    browser.wait(f"{ABOUT}.includes('picture 90 x 60') && {SHOWN}.startsWith('{FIRST}')")
    drawn = browser.canvas()
    assert drawn.shape[:2] == (427, 640)
    assert np.abs(drawn[:, :60] - (0.4 * np.array([250, 0, 120]) + 77)).max() < 3  # grey, where it was not seen


def test_errors_are_said_and_no_old_map_stays(browser: Browser, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    visit(browser, served)
    give(browser, b"no picture", "drop")
    browser.wait(f"{WRONG} === 'image: no image format that is known' || {WRONG} === 'no image format that is known'")
    assert browser.run("document.querySelector('#wrong').getAttribute('role')") == "alert"
    monkeypatch.setattr(_app, "answers_of", lambda *_: (_ for _ in ()).throw(ValueError("<b>broken</b>")))
    write(browser, FIRST)  # which takes the complaint about the picture away
    browser.wait(f"{WRONG} === '<b>broken</b>'")
    assert browser.run("document.querySelector('main').classList.contains('blank')")
    monkeypatch.undo()
    write(browser, SECOND)
    browser.wait(f"{SHOWN}.startsWith('{SECOND}')")
    assert browser.run("document.querySelector('#wrong').hidden")


def test_only_what_was_typed_last_is_asked_and_shown(
    browser: Browser, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    visit(browser, served)
    computing, go_on, asked = threading.Event(), threading.Event(), []
    answers_of = _app.answers_of

    def slow(model: Any, seen: Any, wish: Any) -> Any:
        asked.append(wish.questions[0])
        if len(asked) == 1:
            computing.set()
            assert go_on.wait(120)
        return answers_of(model, seen, wish)

    monkeypatch.setattr(_app, "answers_of", slow)
    write(browser, "w")
    assert computing.wait(120)
    browser.run(
        "(new MutationObserver(() => { (window.seen ??= []).push(document.querySelector('#about').textContent); }))"
        ".observe(document.querySelector('#answers'), {childList: true})"
    )
    write(browser, FIRST)
    go_on.set()
    browser.wait(f"{SHOWN}.startsWith('{FIRST}')")
    assert asked[0] == "w"
    assert asked[1:3] in ([FIRST], [FIRST, FIRST])  # again for the maps of its words


def test_hostile_texts_do_nothing(browser: Browser, served: Served) -> None:
    visit(browser, served)
    text = "</script><img src=x onerror='window.broken=1'>"
    write(browser, text)
    browser.wait("document.querySelectorAll('#notes p').length > 0")
    browser.press("Enter")
    browser.wait("document.querySelectorAll('#history button').length > 0")
    browser.settle()
    assert browser.run("document.querySelector('#history button').textContent") == text
    assert browser.run("window.broken === undefined && document.querySelectorAll('img').length === 0")
    loaded = {e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"}
    assert all(url.startswith((served.address, "data:", "blob:")) for url in loaded)
    assert problems(browser) == []


def test_everything_is_reached_by_the_keyboard(browser: Browser, served: Served) -> None:
    visit(browser, served)
    write(browser, FIRST)
    browser.wait("document.querySelectorAll('#words button').length === 4")
    browser.press("Enter")
    browser.point("h1", click=True)
    reached, named = [], []
    for _ in range(60):
        browser.tab()
        name, outline, label = browser.run(
            "(e => [e === document.body ? '' : e.id || e.textContent, getComputedStyle(e).outlineStyle, "
            "(e.labels && e.labels[0] && e.labels[0].textContent) || e.getAttribute('aria-label') || e.textContent])"
            "(document.activeElement)"
        )
        if not name or name in reached:
            break
        assert outline != "none", name
        reached.append(name)
        named.append(label)
    wanted = [
        "view",
        "choose",
        "question",
        "question2",
        "where",
        "is",
        "the",
        "star?",
        "method",
        "ownblock",
        "heads",
        "fit",
        FIRST,
    ]
    wanted += ["opacity", "cmap", "fade", "smooth", "grid", "shared", "download", "downloadjson"]
    assert reached[: len(wanted)] == wanted
    assert all(label.strip() for label in named[: len(wanted)])
    browser.run("document.querySelector('#view').focus()")
    browser.press("ArrowDown")
    assert browser.run("document.querySelector('#reading').textContent").startswith("Row ")


def test_what_is_drawn_and_its_numbers_are_downloaded(browser: Browser, served: Served, tmp_path: Path) -> None:
    visit(browser, served)
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    write(browser, FIRST)
    write(browser, SECOND, "question2")
    browser.wait(f"{SHOWN}.includes('{SECOND}')")
    browser.wait("document.querySelectorAll('#words button').length === 4")  # after which nothing moves any more
    stem = "where-is-the-star-block-9"
    files = [tmp_path / f"{stem}.{ending}" for ending in ("png", "json")]
    # The first press takes the focus from a question, and what that changes must not move the button away.
    for button, file in zip(("#download", "#downloadjson"), files):
        browser.point(button, click=True)
        browser.wait(lambda file=file: file.exists() and file.stat().st_size > 0)
    assert files[0].read_bytes().startswith(b"\x89PNG")
    numbers = json.loads(files[1].read_text())
    expected = served.model.heatmaps(PICTURE, [FIRST, SECOND])
    assert numbers["model"] == "demo"
    assert np.array_equal(np.array([one["map"] for one in numbers["questions"]], np.float32), expected.maps.reshape(2, -1))
    assert [one["question"] for one in numbers["questions"]] == [FIRST, SECOND]


def test_phone_and_dark(browser: Browser, served: Served) -> None:
    visit(browser, served, 360, 740, dark=True)
    write(browser, FIRST)
    write(browser, SECOND, "question2")
    browser.wait("!document.querySelector('#stage2').hidden")
    assert browser.run("document.documentElement.scrollWidth") <= 360
    assert browser.screenshot()[-1, 2].max() < 60
    heights = "[...document.querySelectorAll('button, select, input[type=text]')].map(b => b.getBoundingClientRect().height)"
    assert min(height for height in browser.run(heights) if height) >= 35


def test_a_server_that_has_ended_is_said_to(browser: Browser) -> None:
    one = Served(qavit.load("demo"), first=PICTURE.read_bytes())
    visit(browser, one)
    one.close()
    write(browser, "x")
    browser.wait(f"{WRONG}.startsWith('The server does not answer')")


def test_models_that_take_no_questions_are_asked_nothing(browser: Browser) -> None:
    model = qavit.load(vision=Path(__file__).parent / "data" / "golden" / "qavit_official_late" / "clip")
    one = Served(model, first=PICTURE.read_bytes())
    try:
        visit(browser, one)
        browser.wait("!document.querySelector('main').classList.contains('blank')")
        assert browser.run("document.querySelector('#question').disabled")
        assert browser.run("document.querySelector('#question').placeholder") == "this model takes no questions"
    finally:
        one.close()
