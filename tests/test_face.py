"""The one face of every model: what it says of itself, one signature, streams, and what is told with maps."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpu_levels import LEVELS

import qavit
from qavit import methods
from qavit.images import Preprocessing, load_image, preprocess

GOLDEN = Path(__file__).parent / "data" / "golden"
SCENE = Path(qavit.__file__).parent / "demo_model" / "scene.png"


@pytest.fixture(scope="module")
def demo() -> qavit.Model:
    return qavit.load("demo")


@pytest.fixture(scope="module")
def clip() -> qavit.Model:
    return qavit.load(vision=GOLDEN / "qavit_official_late" / "clip")


@pytest.fixture(scope="module")
def blip() -> qavit.Model:
    import json

    cases = json.loads((GOLDEN / "blip_itm" / "cases.json").read_text())
    return qavit.load(
        checkpoint=GOLDEN / "blip_itm" / "checkpoint.pth",
        tokenizer=GOLDEN / "blip_itm" / "vocab.txt",
        config={"text": cases["med_config"], "vision": cases["vit"]},
    )


DEMO_METHODS = ("class", "gae", "grad_eclip", "gradcam", "gradcam_attention", "legrad", "question", "rollout")


def test_every_kind_says_what_it_is(demo: qavit.Model, clip: qavit.Model, blip: qavit.Model) -> None:
    said = [(m.kind, m.takes_questions, m.methods, m.default_method) for m in (demo, clip, blip)]
    assert said == [
        ("qavit", True, DEMO_METHODS, "class"),
        ("clip", False, ("class", "rollout"), "class"),
        ("blip_itm", True, ("gradcam",), "gradcam"),
    ]
    for model in (demo, clip, blip):
        assert isinstance(model, qavit.Model)
        assert model.default_block in model.usable_blocks
        assert all(0 <= block < model.num_blocks for block in model.usable_blocks)
        assert model.precision == model.requested_precision == "float32"
        assert model.grid[0] * model.patch_size == model.image_size
        assert model.num_heads >= 1
    assert demo.usable_blocks == tuple(range(7, 12))
    assert clip.usable_blocks == tuple(range(clip.num_blocks))
    assert demo.answer_names is not None
    assert blip.answer_names is None


def test_what_a_kind_lacks_is_named_with_who_has_it(demo: qavit.Model, clip: qavit.Model, blip: qavit.Model) -> None:
    values = np.zeros((1, 3, 8, 8), np.float32)
    calls: dict[str, Any] = {
        "itm": lambda m: m.itm(values, "a"),
        "itc": lambda m: m.itc(values, "a"),
        "gradcam_tokens": lambda m: m.gradcam_tokens(values, "a"),
        "extract_attention": lambda m: m.extract_attention(values, "a"),
        "vision": lambda m: m.vision(values),
        "encode_questions": lambda m: m.encode_questions("a"),
        "answer": lambda m: m.answer(values, "a"),
    }
    lacks = {demo: ("itm", "itc", "gradcam_tokens"), blip: ("extract_attention", "vision", "encode_questions", "answer")}
    for model, names in lacks.items():
        for name in names:
            with pytest.raises(TypeError, match=f"{name}: a model of kind '{model.kind}' has none; a .* ha(s|ve) it"):
                calls[name](model)


def test_options_that_a_method_does_not_take_are_refused_by_name(demo: qavit.Model, blip: qavit.Model) -> None:
    picture = load_image(SCENE)
    with pytest.raises(ValueError, match="heads: method 'gradcam' does not take it"):
        blip.heatmaps(picture, "a bus", heads="max")
    with pytest.raises(ValueError, match=r"method: got 'class'; this model has 'gradcam'$"):
        blip.heatmaps(picture, "a bus", method="class")
    with pytest.raises(ValueError, match="method: len needs what this model does not give"):
        blip.heatmaps(picture, "a bus", method=len)
    with pytest.raises(ValueError, match="fit: expected 'crop', 'stretch' or 'pad', got 'zoom'"):
        demo.heatmaps(picture, "where is the star?", fit="zoom")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="fit: pixel values are taken as they are"):
        demo.heatmaps(preprocess(picture, demo.preprocessing)[0], "where is the star?", fit="pad")


def test_several_blocks_are_their_mean(demo: qavit.Model, blip: qavit.Model) -> None:
    for model, asked in ((demo, "where is the red star?"), (blip, "a red bus")):
        alone = [model.heatmaps(SCENE, asked, block=block).raw for block in (model.default_block - 1, model.default_block)]
        both = model.heatmaps(SCENE, asked, block=range(model.default_block - 1, model.default_block + 1))
        assert both.block == (model.default_block - 1, model.default_block) == both.block_numbers
        np.testing.assert_allclose(both.raw, (alone[0] + alone[1]) / 2, rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(both.maps.sum(axis=(1, 2)), 1.0, atol=1e-5)
    with pytest.raises(ValueError, match="block: expected at least one block"):
        demo.heatmaps(SCENE, "where is the red star?", block=[])


def test_a_result_is_read_again_at_another_block(demo: qavit.Model) -> None:
    result = demo.heatmaps(SCENE, ["where is the red star?", "what color is the circle?"])
    for block in (7, -1):
        there, again = result.at(block), demo.heatmaps(SCENE, result.questions, block=block)
        np.testing.assert_allclose(there.maps, again.maps, atol=1e-7)
        np.testing.assert_allclose(there.raw, again.raw, atol=1e-7)
        assert (there.block, there.words, there.answers) == (again.block, result.words, result.answers)
    asked = demo.heatmaps(SCENE, "where is the red star?", method="question")
    assert asked.blocks == (6, 7, 8, 9, 10, 11)
    with pytest.raises(ValueError, match=r"no map of block 2 by 'question'; there are \[6, 7, 8, 9, 10, 11\]"):
        asked.at(2)


def test_a_method_is_one_file(tmp_path: Path) -> None:
    code = '''
from qavit.methods import Method
import numpy as np

class Centre(Method):
    name = "centre"
    takes_heads = False

    def suits(self, model): return "attention" in model.reads
    def blocks(self, model): return tuple(range(model.num_blocks))
    def by_block(self, look, blocks, heads):
        count = len(look.question_mask)
        return np.tile(np.arange(look.grid[0] * look.grid[1], dtype=np.float32) - 7, (count, len(blocks), 1))

METHOD = Centre()
'''
    (tmp_path / "centre.py").write_text(code)
    script = (
        "import sys, qavit.methods as room\n"
        f"room.__path__.append({str(tmp_path)!r})\n"
        "import qavit, numpy as np\n"
        "model = qavit.load('demo')\n"
        f"assert model.methods == {('centre', *DEMO_METHODS)}, model.methods\n"
        f"result = model.heatmaps({str(SCENE)!r}, 'where is the star?', method='centre')\n"
        "assert result.method == 'centre' and result.raw.min() == -7 and result.maps.min() == 0, result\n"
        "assert abs(result.maps.sum() - 1) < 1e-5\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_method_of_ones_own_is_an_object(demo: qavit.Model) -> None:
    class Last(methods.Method):
        name = "last"

        def suits(self, model: methods.Readable) -> bool:
            return "attention" in model.reads

        def blocks(self, model: methods.Readable) -> tuple[int, ...]:
            return (3,)

        def by_block(self, look: methods.Look, blocks: Any, heads: Any) -> Any:
            attention = look.attention(blocks)
            return np.stack([attention[block][:, 0, 0, -144:] for block in blocks], axis=1)

    result = demo.heatmaps(SCENE, "where is the star?", method=Last())
    assert (result.method, result.block, result.maps.shape) == ("last", 3, (1, 12, 12))


def test_a_method_chooses_its_blocks_and_says_which_options_it_takes(demo: qavit.Model) -> None:
    class Largest(methods.Method):
        name = "largest"
        own_heads = frozenset({"single"})

        def suits(self, model: methods.Readable) -> bool:
            return True

        def options(self, model: methods.Readable) -> frozenset[str]:
            return frozenset({"score"})

        def blocks(self, model: methods.Readable) -> tuple[int, ...]:
            return (3, 5)

        def default(self, model: methods.Readable) -> tuple[int, ...]:
            return (5, 3)

        def by_block(self, look: methods.Look, blocks: Any, heads: Any) -> Any:
            told = {"cosine": 1, "softmax": 2}[look.options.score] + (heads == "single")
            one = np.arange(144, dtype=np.float32) * told
            return np.stack([one * block for block in blocks], axis=0)[None]

        def read(self, look: methods.Look, blocks: Any, heads: Any) -> Any:
            return self.by_block(look, blocks, heads).max(axis=1)

    asked: dict[str, Any] = {"questions": "where is the star?", "method": Largest()}
    result = demo.heatmaps(SCENE, **asked)
    assert (result.block, result.raw.max()) == ((5, 3), 143 * 5)
    assert demo.heatmaps(SCENE, block=3, **asked).raw.max() == 143 * 3
    assert demo.heatmaps(SCENE, block=3, score="softmax", heads="single", **asked).raw.max() == 143 * 9
    assert next(demo.stream([SCENE], score="softmax", **asked)).raw.max() == 143 * 10
    for options, message in (
        ({"corrected": False}, "corrected: method 'largest' does not take it"),
        ({"empty": np.zeros((1, 4), np.float32)}, "empty: method 'largest' does not take it"),
        ({"score": "logit"}, "score: 'logit' is unknown; expected 'cosine' or 'softmax'"),
        ({"score": "softmax", "method": "class"}, "score: method 'class' does not take it"),
        ({"heads": "single", "method": "class"}, "heads: method 'class' does not take 'single'"),
    ):
        with pytest.raises(ValueError, match=message):
            demo.heatmaps(SCENE, **{**asked, **options})


# ---- streams ----


def test_a_stream_gives_what_single_calls_give(demo: qavit.Model) -> None:
    picture = load_image(SCENE)
    pictures: list[Any] = [SCENE, picture, picture[:, ::-1].copy()]
    asked = ["where is the red star?", "what color is the circle?"]
    expected = [demo.heatmaps(one, asked, method="question", block=8).maps for one in pictures]
    for given in (pictures, iter(pictures), ((one, asked) for one in pictures)):
        paired = not isinstance(given, list) and not hasattr(given, "__length_hint__")
        found = demo.stream(given, None if paired else asked, method="question", block=8)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one.maps, other)


def test_a_stream_reads_little_ahead_and_says_which_picture_failed(demo: qavit.Model, tmp_path: Path) -> None:
    taken = []

    def pictures() -> Iterator[Any]:
        for number in range(100):
            taken.append(number)
            yield SCENE if number != 5 else tmp_path / "missing.png"

    going = demo.stream(pictures(), "where is the star?")
    next(going)
    assert len(taken) <= 4
    with pytest.raises(FileNotFoundError, match=r"^pictures\[5\]: .*missing\.png"):
        list(going)
    assert len(taken) <= 9
    with pytest.raises(ValueError, match=r"pictures\[1\]: questions: '' has no words"):
        list(demo.stream([(SCENE, "a star"), (SCENE, "")]))
    with pytest.raises(ValueError, match=r"pictures\[0\]: questions of its own"):
        list(demo.stream([(SCENE, "a star")], "a star"))
    for single in (str(SCENE), b"x", 3):
        with pytest.raises(TypeError, match="pictures: expected several"):
            demo.stream(single, "a star")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="block 99"):
        demo.stream([SCENE], "a star", block=99)


# ---- what is told ----


def told(model: qavit.Model, image: Any, questions: Any, **options: Any) -> list[tuple[str, int | None]]:
    """The notes of a result, each of which was a warning of its class, at this file's line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = model.heatmaps(image, questions, **options)
    named = [(one.category.__name__, str(one.message), one.filename) for one in caught]
    kinds = {"".join(part.title() for part in note.kind.split("_")) + "Warning" for note in result.notes}
    assert {name for name, _, _ in named} == kinds
    assert [text for _, text, _ in named] == [note.text for note in result.notes]
    assert all(issubclass(one.category, qavit.QavitWarning) and one.filename == __file__ for one in caught)
    assert result.to_dict()["notes"] == [note._asdict() | {} for note in result.notes]
    return [(note.kind, note.question) for note in result.notes]


def test_pixels_that_nobody_normalised(demo: qavit.Model, clip: qavit.Model) -> None:
    picture = load_image(SCENE)
    side = demo.image_size
    small = preprocess(picture, Preprocessing(side, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))[0]
    for values in (small, small * 255, small[None].astype(np.float64)):
        assert ("pixels_not_normalized", None) in told(demo, values, "where is the star?")
    with pytest.warns(qavit.PixelsNotNormalizedWarning, match="between 0 and 1") as caught:
        demo.extract_attention(small[None], "where is the star?", blocks=[9])
    assert caught[0].filename == __file__
    with pytest.warns(qavit.PixelsNotNormalizedWarning):
        demo.forward_itm({"image": small[None], "text_input": ["where is the star?"]}, 9)
    rng = np.random.default_rng(0)
    side = clip.image_size
    for low, high in ((0, 256), (150, 151), (125, 190), (130, 180)):
        given = rng.integers(low, high, (side, side, 3)).astype(np.uint8)
        assert told(clip, preprocess(given, clip.preprocessing)[0], None) == []


def test_pictures_that_are_cropped(clip: qavit.Model) -> None:
    for (height, width), seen in (((100, 100), 1.0), ((100, 120), 1.0), ((100, 200), 0.5), ((300, 100), 1 / 3)):
        picture = np.full((height, width, 3), 90, np.uint8)
        expected = [] if seen == 1.0 else [("picture_cropped", None)]
        assert told(clip, picture, None) == expected
        assert told(clip, picture, None, fit="pad") == told(clip, picture, None, fit="stretch") == []
        if expected:
            with pytest.warns(qavit.PictureCroppedWarning, match=f"the middle {seen:.0%} of the picture"):
                clip.heatmaps(picture)


def test_which_part_of_a_picture_is_seen(demo: qavit.Model) -> None:
    picture = np.full((60, 240, 3), 235, np.uint8)
    picture[20:40, 190:210] = 20, 60, 220
    ask = "where is the blue square?"
    crop = demo.heatmaps(picture, ask, fit="crop")
    stretch, pad = demo.heatmaps(picture, ask, fit="stretch"), demo.heatmaps(picture, ask, fit="pad")
    corners = [(r.seen.left, r.seen.top, r.seen.right, r.seen.bottom) for r in (crop, stretch, pad)]
    assert corners == [(90, 0, 150, 60), (0, 0, 240, 60), (0, -90, 240, 150)]
    for result in (stretch, pad):
        best = max(result.boxes()[0], key=lambda box: box.share)
        assert best.left < 210
        assert best.right > 190
        assert all(0 <= box.left < box.right <= 240 and 0 <= box.top < box.bottom <= 60 for box in result.boxes()[0])
        spread = result.upsample()[0]
        assert spread.shape == (60, 240)
        _, column = np.unravel_index(spread.argmax(), spread.shape)
        assert 170 <= column <= 230
    assert pad.patch(0, 0).bottom < 0


def test_the_bundled_model_knows_drawn_scenes_from_photographs() -> None:
    from qavit.models._notes import _looks_drawn
    from training.scenes import draw_scene

    how = qavit.load("demo").preprocessing

    def drawn(picture: Any) -> bool:
        return _looks_drawn(qavit.images.preprocess(picture, how)[0], how)

    assert all(drawn(draw_scene(seed).image) for seed in range(200))
    assert np.mean([drawn(draw_scene(seed, 384).image) for seed in range(60)]) > 0.98
    smooth = np.random.default_rng(0).normal(size=(12, 12, 3)).cumsum(axis=0).cumsum(axis=1)
    smooth = (255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)
    noisy = np.random.default_rng(1).integers(-9, 10, (240, 240, 3)) + np.kron(smooth, np.ones((20, 20, 1), np.int64))
    photographs = [np.clip(noisy, 0, 255).astype(np.uint8)]
    skimage = pytest.importorskip("skimage.data")
    photographs += [skimage.astronaut(), skimage.coffee(), skimage.chelsea(), skimage.rocket()]
    assert not any(drawn(photograph) for photograph in photographs)


def test_the_bundled_model_says_so_on_a_photograph(demo: qavit.Model, clip: qavit.Model) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    assert told(demo, noise, "where is the star?") == [("bundled_model", None)]
    assert told(demo, SCENE, "where is the star?") == []
    assert told(clip, noise, None) == []


def test_words_of_blip(blip: qavit.Model) -> None:
    def of_words(questions: list[str]) -> list[tuple[str, int | None]]:
        return [note for note in told(blip, SCENE, questions) if note[0] != "low_score"]  # the weights are random

    assert of_words(["a red bus", "?", "where is it?"]) == []
    assert of_words(["a red 星 bus", "a red bus " * 20]) == [("unknown_words", 0), ("question_cut", 1)]


def test_precision_is_what_computes() -> None:
    script = (
        "import warnings, qavit\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    model = qavit.load('demo', precision='bfloat16')\n"
        "print(model.precision, model.requested_precision, [w.category.__name__ for w in caught],"
        " all(w.filename == '<string>' for w in caught), 'bfloat16' in repr(model))\n"
    )
    env = {**os.environ, "QAVIT_CPU": LEVELS[1]}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == "float32 bfloat16 ['PrecisionWarning'] True False"


def test_default_blocks_of_extract_attention(demo: qavit.Model, clip: qavit.Model) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        maps = demo.extract_attention(SCENE, "where is the star?")
        assert np.array_equal(maps, demo.extract_attention(SCENE, "where is the star?", blocks=(7, 8, 10, 11)))
    asked = demo.extract_attention(SCENE, "where is the star?", method="question")
    assert np.array_equal(asked, demo.extract_attention(SCENE, "where is the star?", [6, 8, 9, 11], method="question"))
    assert clip.extract_attention(SCENE).shape == (1, 4, 25)
