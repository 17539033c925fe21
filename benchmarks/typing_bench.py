"""From a key to the picture it changes: the page of `qavit serve` in a headless browser, while somebody types.

    python -m benchmarks.typing_bench                       # CLIP and QA-ViT, B/16@224 and L/14@336
    python -m benchmarks.typing_bench --models demo --keys 3    # the bundled model: what is not the model

Full sizes, random weights; the server in this process, the browser (Chromium) on the same machine. Every key makes a new
question about a picture that was asked about before: lone keys, and the last of five, 150 ms apart. Times are of the wall,
from the key's event to the frame that shows the new map, with all that the page waits for; "model" is the part in which maps
and answers are computed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import qavit

from .quiet import be_quiet, hushed
from .table import Row, write_rows

GAP, REST, MOST = 0.15, 0.6, 24  # seconds between keys in a row, and before the next; the most keys that count
CLIP_TEXT = {"num_hidden_layers": 12, "max_position_embeddings": 77}
#: Name: sizes of the vision tower, as benchmarks.sizes has them, and of CLIP's text tower (None: QA-ViT, late, with T5).
MODELS: dict[str, tuple[str, dict[str, int] | None]] = {
    "CLIP B/16@224": ("B/16@224", {**CLIP_TEXT, "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}),
    "QA-ViT B/16@224": ("B/16@224", None),
    "CLIP L/14@336": ("L/14@336", {**CLIP_TEXT, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}),
    "QA-ViT L/14@336": ("L/14@336", None),
}
#: Marks, on the page's own clock: a key, the question on its way, its answer, the pixels set, the frame shown.
MARKS = """
(() => {
  window.marks = {};
  const now = () => performance.now(), last = window.fetch, put = CanvasRenderingContext2D.prototype.putImageData;
  const field = document.getElementById("question");
  field.addEventListener("keydown", (event) => { window.marks = { key: event.timeStamp }; }, true);
  window.fetch = async (path, options) => {
    const mine = window.marks, body = options && options.body ? JSON.parse(options.body) : {};
    const counts = path === "ask" && !body.words;
    if (counts) mine.sent ??= now();
    const reply = await last(path, options);
    if (!counts) return reply;
    const text = await reply.text();
    mine.answered = now();
    mine.bytes = text.length;
    return new Response(text, { status: reply.status, headers: reply.headers });
  };
  CanvasRenderingContext2D.prototype.putImageData = function (...given) {
    put.apply(this, given);
    const mine = window.marks;
    if (this.canvas.id !== "view" || !mine.answered) return;
    mine.draws = (mine.draws || 0) + 1;
    if (mine.draws > 1) return;
    mine.put = now();
    const channel = new MessageChannel();
    channel.port1.onmessage = () => { mine.shown = now(); };
    requestAnimationFrame(() => channel.port2.postMessage(0));
  };
})()
"""


def make_clip(folder: Path, size: Any, text: dict[str, int]) -> dict[str, Any]:
    """A CLIP folder of real size, both towers, with the tokenizer of the stand-in weights."""
    from transformers import CLIPConfig, CLIPModel

    stand_in = Path(qavit.stand_in_weights("clip", folder)["path"])
    sizes = json.loads((stand_in / "config.json").read_text())
    words = {name: sizes["text_config"][name] for name in ("vocab_size", "eos_token_id")}
    model = CLIPModel(
        CLIPConfig(vision_config=size.config, text_config={**words, **text}, projection_dim=text["hidden_size"])
    )
    model.save_pretrained(folder / "clip-of-size")
    for name in ("vocab.json", "merges.txt"):
        (folder / "clip-of-size" / name).write_bytes((stand_in / name).read_bytes())
    return {"path": str(folder / "clip-of-size")}


@contextmanager
def loaded(name: str, precision: str) -> Iterator[Any]:
    """A model of the list, or the bundled one."""
    if name == "demo":
        yield qavit.load("demo")
        return
    from .memory_bench import TEXT, make_pair
    from .sizes import SIZES

    size, text = MODELS[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        vision = {"model_type": "clip_vision_model", **SIZES[size].config}
        with hushed():
            given = make_pair(folder, vision, TEXT) if text is None else make_clip(folder, SIZES[size], text)
            model = qavit.load(**given, precision=precision)
        yield model


def timed_by(watch: dict[str, float], name: str, act: Callable[..., Any]) -> Callable[..., Any]:
    """The same, and `watch[name]` the milliseconds of its last call."""

    def call(*given: Any) -> Any:
        start = time.perf_counter()
        try:
            return act(*given)
        finally:
            watch[name] = 1e3 * (time.perf_counter() - start)

    return call


def typed(browser: Any, start: str, letters: str, gap: float) -> dict[str, float]:
    """Type after a text that stands there already; marks of the last letter."""
    field = "document.getElementById('question')"
    browser.run(f"{field}.focus(); {field}.value = {json.dumps(start)}; {field}.setSelectionRange(99, 99)")
    for number, letter in enumerate(letters):
        if number:
            time.sleep(gap)
        browser.call("Input.dispatchKeyEvent", type="keyDown", key=letter, text=letter)
        browser.call("Input.dispatchKeyEvent", type="keyUp", key=letter)
    browser.wait("window.marks.shown !== undefined")
    found: dict[str, float] = browser.run("window.marks")
    return found


def measure(model: Any, browser: Any, keys: int, picture: bytes) -> tuple[list[dict[str, float]], list[float]]:
    """Milliseconds of a lone key's way to the picture, with its parts, and of the last of five in a row."""
    from qavit.serve import _app
    from tests.serving import Served

    watch: dict[str, float] = {}
    kept = _app.answers_of, _app.content_of
    _app.answers_of = timed_by(watch, "model", kept[0])
    _app.content_of = timed_by(watch, "content", kept[1])
    served = Served(model, first=picture)
    lone, last = [], []
    try:
        browser.visit(served.address)
        browser.run(MARKS)
        for number in range(keys + 2):
            start = f"where is the {chr(97 + number)}"
            marks = typed(browser, start, "s", GAP)
            own = dict(watch)
            time.sleep(REST)
            browser.run("fetch('model').then(() => 1)")  # its turn comes when the maps of words are done
            row = typed(browser, start, " kite", GAP)
            time.sleep(REST)
            browser.run("fetch('model').then(() => 1)")
            if number < 2:
                continue
            last.append(row["shown"] - row["key"])
            lone.append({
                "all": marks["shown"] - marks["key"], "waited": marks["sent"] - marks["key"],
                "answer": marks["answered"] - marks["sent"], **own, "drawn": marks["put"] - marks["answered"],
                "frame": marks["shown"] - marks["put"], "bytes": marks["bytes"],
            })  # fmt: skip
    finally:
        served.close()
        _app.answers_of, _app.content_of = kept
    return lone, last


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["demo", *MODELS], default=["demo", *MODELS])
    parser.add_argument("--keys", type=int, default=9, help=f"keys that count, 1 to {MOST} (default: 9)")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16", "int8", "int8_mixed"])
    parser.add_argument("--rows", type=Path, help="write rows for the table of all benchmarks there")
    options = parser.parse_args(given)
    if not 1 <= options.keys <= MOST:
        parser.error(f"--keys: {options.keys}, expected 1 to {MOST}")
    be_quiet()
    from tests.browser import PROGRAM, Browser

    if PROGRAM is None:
        print("left out: from key to picture, for want of chromium")
        write_rows(options.rows, [], ["left out: from key to picture, for want of chromium"])
        return
    picture, rows = (Path(qavit.__file__).parent / "demo_model" / "scene.png").read_bytes(), []
    browser = Browser()
    try:
        for name in options.models:
            with loaded(name, options.precision) as model:
                found, last = measure(model, browser, options.keys, picture)
                middle = {part: statistics.median(one[part] for one in found) for part in found[0]}
                rest = middle["all"] - middle["model"]
                print(
                    f"{name}, {model.precision}: {middle['all']:.1f} ms from key to picture (least "
                    f"{min(one['all'] for one in found):.1f}); model {middle['model']:.1f}, the rest {rest:.1f}: waited "
                    f"{middle['waited']:.1f}, page's numbers {middle['content']:.1f}, there and back "
                    f"{middle['answer'] - middle['model'] - middle['content']:.1f}, drawn {middle['drawn']:.1f}, frame "
                    f"{middle['frame']:.1f}; {middle['bytes'] / 1e3:.1f} kB. Last of five keys: "
                    f"{statistics.median(last):.1f}",
                    flush=True,
                )
                rows.append(Row(f"from key to picture, {name}", model.precision, middle["all"]))
                rows.append(Row(f"the same, the model's part, {name}", model.precision, middle["model"]))
                rows.append(Row(f"the same, the last of five keys, {name}", model.precision, statistics.median(last)))
    finally:
        browser.close()
    write_rows(options.rows, rows)


if __name__ == "__main__":
    main()
