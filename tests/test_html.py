"""The page: what is in it, and what it does in a real browser."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser
from matplotlib import colormaps

from qavit import HeatmapResult
from qavit._base.warnings import Note
from qavit.images import Region
from qavit.plots import _page as html
from qavit.plots._look import Look

HOSTILE = "</script><script>window.broken=1</script><img src=x onerror='window.broken=1'>&amp;\u2028"

QUESTIONS = ["where is the star?", HOSTILE, "红色的圆在哪里？"]


def result(count: int = 3, grid: int = 6, blocks: int = 4, side: int = 120, **changes: Any) -> HeatmapResult:
    """A wide picture whose middle square was seen; question i's hot patch is patch i + 1 of the second row."""
    maps = np.full((count, grid, grid), 0.001, np.float32)
    for index in range(count):
        maps[index, 1, (index + 1) % grid] = 1.0
    maps /= maps.sum(axis=(1, 2), keepdims=True)
    every = np.stack([np.roll(maps, block - (blocks - 1), axis=1) for block in range(blocks)])
    rng = np.random.default_rng(0)
    parts: dict[str, Any] = {
        "maps": maps,
        "questions": [*QUESTIONS, *(f"question {i}?" for i in range(3, count))][:count],
        "picture": rng.integers(90, 160, (side, 2 * side, 3), dtype=np.uint8),
        "seen": Region(side / 2, 0, side * 1.5, side),
        "block": blocks - 1,
        "words": [["where", "star"], ["<b>", "x"], ["红色"]][:count] + [["w"]] * (count - 3),
        "answers": [[("yes", 0.75), (HOSTILE, 0.25)]] * count,
        "block_maps": lambda: every,
    }
    parts.update(changes)
    if "word_maps" not in parts:
        parts["word_maps"] = [
            np.stack([np.roll(maps[0], (2, word), (0, 1)) for word in range(len(words))]) for words in parts["words"]
        ]
    return HeatmapResult(**parts)


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found is not None
    return dict(json.loads(found.group(1)))


def test_the_page_is_one_small_file_that_loads_nothing(tmp_path: Path) -> None:
    one = result(count=10, grid=24, blocks=24, side=700)
    path = one.to_html(tmp_path / "a page.html", title="A <title>")
    page = path.read_text(encoding="utf-8")
    picture = data_of(page)["picture"]
    assert len(page.encode()) - len(picture) < 300_000
    assert "A &lt;title&gt;" in page
    assert not re.search(r"https?://", page)
    assert "default-src 'none'" in page
    assert page.count("<script") == 2


def test_values_come_back_to_the_stored_precision() -> None:
    one = result(count=2, words=None, word_maps=None)
    data = data_of(html.render(one))
    assert data["blocks"] == [0, 1, 2, 3]
    assert data["maps"]["bits"] == 16
    raw = np.frombuffer(base64.b64decode(data["maps"]["data"]), "<u2").reshape(4, 2, 6, 6)
    bounds = np.array(data["maps"]["bounds"]).reshape(4, 2, 2, 1, 1)
    maps = bounds[:, :, 0] + raw / 65535 * (bounds[:, :, 1] - bounds[:, :, 0])
    assert np.abs(maps - one.block_maps).max() < 1e-5 * one.maps.max() * 2


def test_a_page_without_blocks_words_and_answers() -> None:
    bare = result(words=None, word_maps=None, answers=None, block_maps=None)
    data = data_of(html.render(bare))
    assert data["blocks"] == [3]
    assert "words" not in data


def test_a_colormap_that_is_no_name() -> None:
    magma = colormaps["magma"]
    assert data_of(html.render(result(), look=Look(cmap=magma))) == data_of(html.render(result(), look=Look(cmap="magma")))


def test_texts_stay_data() -> None:
    page = html.render(result(), title=HOSTILE)
    assert "onerror='window" not in re.sub(r"<script.*?</script>", "", page, flags=re.S).replace("&#x27;", "")
    assert page.count("</script>") == 2
    assert data_of(page)["questions"][1]["text"] == HOSTILE
    html.render(result(questions=["\udc80", "@DATA@ @SCRIPT@", "c"])).encode("utf-8")


def hot(pixels: Any) -> tuple[float, float]:
    """Centre of what is much redder than the picture, as parts of (width, height)."""
    red = pixels[..., 0] - pixels[..., 2] > 90
    y, x = np.nonzero(red)
    return float(x.mean() / pixels.shape[1]), float(y.mean() / pixels.shape[0])


def test_in_a_browser_clicks_move_the_map(browser: Browser, tmp_path: Path) -> None:
    browser.open(result().to_html(tmp_path / "page.html", cmap="jet"))
    first, screen = browser.canvas(), browser.screenshot()
    # The hot patch is (1, 1) of 6 x 6 over the middle half of the width.
    assert hot(first) == pytest.approx((0.25 + 0.5 * 1.5 / 6, 1.5 / 6), abs=0.02)
    assert browser.run("document.querySelectorAll('#questions button').length") == 3
    browser.point("#questions button:nth-child(3)", click=True)
    assert hot(browser.canvas()) == pytest.approx((0.25 + 0.5 * 3.5 / 6, 1.5 / 6), abs=0.02)
    assert np.abs(browser.screenshot() - screen).max() > 60
    assert browser.run("document.querySelector('#questions [aria-pressed=true]').textContent") == "红色的圆在哪里？"
    browser.press("1")
    browser.press("[")
    assert browser.run("document.querySelector('#blockname').textContent") == "2"
    assert hot(browser.canvas()) == pytest.approx((0.25 + 0.5 * 1.5 / 6, 0.5 / 6), abs=0.02)
    browser.press("]")
    assert browser.run("document.querySelector('#blind').hidden")
    browser.point("#words button:nth-child(2)")
    assert hot(browser.canvas()) == pytest.approx((0.25 + 0.5 * 2.5 / 6, 3.5 / 6), abs=0.02)
    browser.point("#view", 0.25 + 0.5 * 1.5 / 6, 1.5 / 6)
    reading = "document.querySelector('#reading').textContent"
    assert browser.run(reading) == "Row 2, column 2: 96.6% of the attention, number 1 of 36"
    browser.run("document.querySelector('#view').focus()")
    browser.press("ArrowRight")
    assert browser.run(reading).startswith("Row 2, column 3")
    before = browser.canvas()
    browser.run("(s => { s.value = 'viridis'; s.dispatchEvent(new Event('input')); })(document.querySelector('#cmap'))")
    browser.settle()
    assert np.abs(browser.canvas() - before).max() > 60
    browser.run("(s => { s.value = 0; s.dispatchEvent(new Event('input')); })(document.querySelector('#opacity'))")
    browser.settle()
    assert hot_is_gone(browser.canvas())


def test_in_a_browser_a_block_that_knows_no_question_is_said_to(browser: Browser, tmp_path: Path) -> None:
    one = result()
    every = one.block_maps.copy()
    every[1] = every[1, :1]
    browser.open(result(block_maps=lambda: every).to_html(tmp_path / "page.html"))
    hidden = "document.querySelector('#blind').hidden"
    said = [browser.run(hidden)]
    for _ in range(3):
        browser.press("[")
        said.append(browser.run(hidden))
    assert said == [True, True, False, True]
    about = "document.querySelector('#about').textContent"
    assert browser.run(about) == "Where the class token looks · block 3 · 6 x 6 patches · picture 240 x 120"
    browser.open(result(model="<b>clip</b>", block=(2, 3)).to_html(tmp_path / "named.html"))
    assert browser.run(about).startswith("<b>clip</b> · Where the class token looks · blocks 2, 3 · ")


def test_in_a_browser_small_shares_are_read_as_numbers(browser: Browser, tmp_path: Path) -> None:
    maps = np.full((1, 6, 6), 1e-12, np.float32)
    maps[0, 0, 0] = 1
    one = HeatmapResult(maps, ["q"], np.zeros((60, 60, 3), np.uint8), answers=[[("yes", 0.999), ("no", 0.001)]])
    browser.open(one.to_html(tmp_path / "page.html"))
    assert browser.run("document.querySelector('#low').textContent") == "0%"
    assert browser.run("document.querySelectorAll('.answer').length") == 1


def test_in_a_browser_notes_and_units_are_said(browser: Browser, tmp_path: Path) -> None:
    notes = (Note("question_cut", "The end was left out: <b>", 1), Note("bundled_model", "Drawn shapes alone.", None))
    browser.open(result(notes=notes).to_html(tmp_path / "page.html"))
    said = "[...document.querySelectorAll('#notes p')].map(p => p.textContent)"
    assert browser.run(said) == ["Drawn shapes alone.", "Grey: not seen by the model."]
    browser.press("2")
    assert browser.run(said) == ["The end was left out: <b>", "Drawn shapes alone.", "Grey: not seen by the model."]
    assert browser.run("document.querySelector('#unit').textContent") == "Colours: how much of all attention one patch gets"
    heading = browser.run("document.querySelector('#answerbox h2').textContent")
    assert heading == "Answers, and how likely the model finds each"
    browser.open(result(answers=None, seen=None).to_html(tmp_path / "bare.html", vmin=0.1, vmax=0.5, shared=False))
    assert browser.run("document.querySelector('#answerbox').hidden")
    assert browser.run(said) == []
    assert not browser.run("document.querySelector('#shared').checked")
    ends = [browser.run(f"document.querySelector('#{end}').textContent") for end in ("low", "high")]
    assert ends == ["10%", "50%"]


def test_in_a_browser_the_cursor_stays_on_a_padded_picture(browser: Browser, tmp_path: Path) -> None:
    # 120 high and 240 wide, padded to a square: the first row of patches ends 20 pixels above the picture.
    browser.open(result(seen=Region(0, -60, 240, 180)).to_html(tmp_path / "page.html"))
    browser.run("document.querySelector('#view').focus()")
    browser.press("ArrowDown")
    place = "(s => [s.left, s.top, s.width, s.height].map(parseFloat))(document.querySelector('#cursor').style)"
    assert browser.run(place) == pytest.approx([100 / 6, 20 / 1.2, 100 / 6, 40 / 1.2], abs=0.01)
    browser.press("ArrowUp")
    assert browser.run(place) == pytest.approx([100 / 6, 0, 100 / 6, 20 / 1.2], abs=0.01)


def test_in_a_browser_a_flat_map_is_pale(browser: Browser, tmp_path: Path) -> None:
    maps = np.random.default_rng(0).uniform(0.99, 1.01, (1, 6, 6))
    one = HeatmapResult(maps / maps.sum(), ["q"], np.full((60, 60, 3), 128, np.uint8))
    browser.open(one.to_html(tmp_path / "page.html"))
    assert browser.run("document.querySelector('#low').textContent") == "0%"
    assert browser.run("document.querySelector('#high').textContent") == "8.33%"
    assert np.ptp(browser.canvas(), axis=(0, 1)).max() < 10


def hot_is_gone(pixels: Any) -> bool:
    return not (np.abs(pixels[..., 0] - pixels[..., 2]) > 90).any()


def test_in_a_browser_hostile_texts_do_nothing(browser: Browser, tmp_path: Path) -> None:
    browser.open(result().to_html(tmp_path / "page.html", title=HOSTILE))
    browser.point("#questions button:nth-child(2)", click=True)
    assert browser.run("window.broken === undefined")
    assert browser.run("document.querySelectorAll('img').length") == 0
    assert browser.run("document.querySelector('#words button').textContent") == "<b>"
    loaded = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert all(url.startswith(("file:", "data:", "blob:")) for url in loaded)
    problems = [e for e in browser.events if e["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
    assert problems == []


def test_in_a_browser_the_download_is_a_picture(browser: Browser, tmp_path: Path) -> None:
    browser.open(result().to_html(tmp_path / "page.html"))
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.point("#download", click=True)
    target = tmp_path / "where-is-the-star-block-3.png"
    browser.wait(lambda: target.exists() and target.stat().st_size > 0)
    assert target.read_bytes().startswith(b"\x89PNG")


def test_in_a_browser_phone_and_dark(browser: Browser, tmp_path: Path) -> None:
    path = result().to_html(tmp_path / "page.html")
    browser.open(path, width=360, height=740, dark=True)
    assert browser.run("document.documentElement.scrollWidth") <= 360
    seen = browser.screenshot()
    assert seen[-1, 2].max() < 60  # dark paper
    heights = browser.run("[...document.querySelectorAll('#questions button')].map(b => b.getBoundingClientRect().height)")
    assert min(heights) >= 40
    browser.open(path)
    assert browser.screenshot()[-1, 2].min() > 240


def with_heads(count: int = 3, heads: int = 2) -> HeatmapResult:
    """Head h's hot patch of question i is patch i of row h."""
    every = np.full((count, heads, 6, 6), 0.001, np.float32)
    for question in range(count):
        every[question, range(heads), range(heads), question] = 1.0
    return result(count, head_maps=every / every.sum(axis=(2, 3), keepdims=True))


def test_maps_of_heads_are_bounded(tmp_path: Path) -> None:
    page = with_heads().to_html(tmp_path / "page.html", heads=True).read_text(encoding="utf-8")
    assert len(data_of(page)["heads"]["bounds"]) == 3 * 2
    assert "heads" not in data_of(with_heads().to_html(tmp_path / "page.html").read_text(encoding="utf-8"))
    with pytest.raises(ValueError, match="heads: this result has no maps of single heads"):
        result().to_html(tmp_path / "none.html", heads=True)
    every = np.full((40, 16, 24, 24), 1 / 576, np.float32)
    large = result(40, grid=24, head_maps=every)
    with pytest.raises(ValueError, match=r"16 heads of 40 questions are 368,640 values, .* as result\[:32\]"):
        large.to_html(tmp_path / "none.html", heads=True)
    assert not (tmp_path / "none.html").exists()
    assert large[:32].to_html(tmp_path / "page.html", heads=True, blocks=False).stat().st_size < 700_000


def test_in_a_browser_heads_are_chosen_by_number(browser: Browser, tmp_path: Path) -> None:
    browser.open(with_heads().to_html(tmp_path / "page.html", heads=True))
    plain = browser.canvas()
    reading = "document.querySelector('#reading').textContent"
    for head in (1, 0):
        browser.run(f"(s => {{ s.value = {head}; s.dispatchEvent(new Event('input')); }})(document.querySelector('#head'))")
        browser.point("#view", 70 / 240, (head + 0.5) / 6)
        assert browser.run(reading).startswith(f"Row {head + 1}, column 1: 96.6% of the attention, number 1 of 36")
        assert np.abs(browser.canvas() - plain).max() > 60
    browser.press("]")  # another block, which is no head's
    assert browser.run("document.querySelector('#head').value") == "-1"
    browser.open(result().to_html(tmp_path / "page.html"))
    assert browser.run("document.querySelector('#headrow').hidden")
