"""`model.explore`: the notebook's widget, its script in a browser, with a test in place of the notebook's channel."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser

import qavit
from qavit.plots import _widget

PICTURE = Path(qavit.__file__).parent / "demo_model" / "scene.png"
FIRST, SECOND = "where is the star?", "what color is the circle?"
pytest.importorskip("anywidget")


@pytest.fixture(scope="module")
def model() -> qavit.Model:
    return qavit.load("demo")


def answers(widget: Any, *messages: Any) -> list[Any]:
    """What the widget sends for messages of its view."""
    sent: list[Any] = []
    widget.send = sent.append
    for message in messages:
        widget._handle_custom_msg(message, [])
    return sent


def test_closed_it_leaves_nothing_behind(model: qavit.Model) -> None:
    """ipywidgets keeps each layout that it makes; and one that somebody else gave is theirs."""
    registry = pytest.importorskip("ipywidgets.widgets.widget")._instances
    before, shared = dict(registry), model.explore(PICTURE)
    widget = model.explore(PICTURE, FIRST)
    widget.layout = shared.layout
    widget.close()
    widget.close()
    assert shared.layout.comm is not None
    shared.close()
    assert dict(registry) == before


def test_it_answers_by_the_notebooks_channel(model: qavit.Model) -> None:
    widget = model.explore(PICTURE, FIRST)
    assert widget.start["questions"] == [FIRST]
    assert widget.start["content"]["blank"]
    right, wrong = answers(
        widget,
        {"id": "a 1", "asked": {"questions": [FIRST], "block": 8}},
        {"id": "a 2", "asked": {"block": 99}},
        None,
        {"id": 3},
    )
    assert right["id"] == "a 1"
    assert right["content"]["questions"][0]["text"] == FIRST
    assert right["content"]["block"] == 8
    assert wrong == {"id": "a 2", "error": "block: block 99 does not exist; this model has blocks 0 to 11"}
    json.dumps(right)


def test_maps_of_words_cost_no_second_look(model: qavit.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    widget = model.explore(PICTURE)
    looks: list[Any] = []
    look = type(model)._look
    monkeypatch.setattr(type(model), "_look", lambda self, *given: looks.append(given) or look(self, *given))
    asked = {"questions": [FIRST]}
    first, words, again = answers(
        widget, *({"id": str(number), "asked": {**asked, "words": number > 0}} for number in range(3))
    )
    assert len(looks) == 2  # words that were asked for before are computed with their map
    assert "words" not in first["content"]
    assert words["content"] == again["content"]
    assert len(words["content"]["words"]["bounds"]) == len(words["content"]["questions"][0]["words"]) > 0
    assert first["content"]["maps"] == words["content"]["maps"]


def test_without_the_extra_its_name_is_said(model: qavit.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    _widget._kind.cache_clear()
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(ImportError, match=r'pip install "qavit\[widget\]"'):
        model.explore(PICTURE)


def test_wrong_arguments_are_said(model: qavit.Model) -> None:
    with pytest.raises(ValueError, match="questions: 3 of them, expected at most 2"):
        model.explore(PICTURE, ["a", "b", "c"])
    with pytest.raises(TypeError, match="image"):
        model.explore(3)
    with pytest.raises(FileNotFoundError):
        model.explore("no.png")


def test_in_a_browser_two_of_them_do_not_meet(model: qavit.Model, browser: Browser, tmp_path: Path) -> None:
    widgets = [model.explore(PICTURE, FIRST), model.explore(PICTURE)]
    page = tmp_path / "page.html"
    page.write_text(
        '<!doctype html><html data-ready="true"><body><div id="data">of another</div>'
        '<div class="cell"></div><div class="cell"></div>'
    )
    browser.open(page)
    start = [dict(widget.start) for widget in widgets]
    browser.run(
        f"""(async () => {{
          const script = URL.createObjectURL(new Blob([{json.dumps(str(widgets[0]._esm))}], {{type: "text/javascript"}}));
          const {{default: {{render}}}} = await import(script);
          window.sent = [];
          window.receivers = [];
          {json.dumps(start)}.forEach((start, index) => render({{
            el: document.querySelectorAll(".cell")[index],
            model: {{get: () => start, send: (message) => sent.push([index, message]), on: (_, act) => {{ receivers[index] = act; }}, off: () => {{}}}},
          }}));
        }})()"""  # noqa: E501
    )

    def serve_until(condition: str) -> None:
        end = time.monotonic() + 120
        while not browser.run(condition):
            assert time.monotonic() < end, condition
            for index, message in browser.run("sent.splice(0)"):
                for reply in answers(widgets[index], message):
                    browser.run(f"receivers[{index}]({json.dumps(reply)})")

    def inside(index: int, what: str) -> str:
        return f"document.querySelectorAll('.cell > div')[{index}].shadowRoot.querySelector('{what}')"

    serve_until(f"{inside(0, '#said')}.textContent.startsWith('{FIRST}')")
    assert browser.run(f"{inside(1, 'main')}.classList.contains('blank')")
    browser.run(f"{inside(1, '#question')}.focus()")
    for letter in SECOND:
        browser.press(letter)
    serve_until(f"{inside(1, '#said')}.textContent === '{SECOND}: orange, 99%.'")
    assert browser.run(f"{inside(0, '#about')}.textContent.startsWith('demo · Where the class token looks')")
    urls = [browser.run(f"{inside(index, '#view')}.toDataURL()") for index in (0, 1)]
    assert urls[0] != urls[1]
    assert browser.run("document.getElementById('data').textContent") == "of another"
    # JupyterLab's theme, when it is another one, too.
    papers = []
    for light in ("false", "true"):
        browser.run(f"document.body.dataset.jpThemeLight = {light!r}")
        browser.settle()
        papers.append(browser.run(f"getComputedStyle({inside(1, '.qavit')}).backgroundColor"))
    assert papers == ["rgb(22, 22, 24)", "rgb(255, 255, 255)"]
    shot = browser.screenshot()
    assert np.ptp(shot) > 200
    problems = [e for e in browser.events if e["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
    assert problems == []
