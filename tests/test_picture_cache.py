"""What a model keeps of pictures: the same bits as without, by content, bounded, from many threads and after a fork."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seen_pictures import ASKED, TEXTS, alike, answering_place, matcher, picture, text_model, told
from small_models import write_qavit

import qavit
from qavit.models._cached_tower import CachedTower
from qavit.models._picture_cache import DEFAULT_LIMIT, PictureCache, digest_of

GOLDEN = Path(__file__).parent / "data" / "golden"
SCENE = qavit.demo_scene()
PRECISIONS = ("float32", "bfloat16", "int8")

__all__ = ["answering_place"]

pytestmark = pytest.mark.filterwarnings("ignore::qavit.QavitWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qavit(tmp_path_factory.mktemp("cache") / "model", blocks=6)


# ---- the tower ----


def ask_at_random(vit: Any, random: np.random.Generator, pairs: Any) -> dict[str, Any]:
    """A request, of whatever a pass can be asked for."""
    kinds = ("class", "raw", "mean")
    blocks = [i for i in range(vit.blocks) if random.random() < 0.2]
    levels = [i for i in range(vit.blocks + 1) if random.random() < 0.2]
    outputs = [name for name in ("last", "normed", "pooled") if random.random() < 0.15]
    first = vit.integrated[0] if vit.integrated else vit.blocks
    if pairs is None:
        blocks, levels = [i for i in blocks if i < first], [i for i in levels if i <= first]
        outputs = outputs if first == vit.blocks else []
    wanted = {"attention": [(i, str(random.choice(kinds))) for i in blocks], "hidden": levels, "outputs": outputs}
    return wanted if any(wanted.values()) else {"attention": [], "hidden": [1], "outputs": []}


@pytest.mark.every_level
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["qavit", "clip", "siglip", "tiny"])
def test_any_passes_in_any_order_have_the_same_bits(folder: Path, tmp_path: Path, name: str, precision: Any) -> None:
    places = {"qavit": folder, "clip": GOLDEN / "methods_clip", "siglip": GOLDEN / "methods_siglip"}
    if name == "tiny":  # fewer rows than a product's tile
        places[name] = write_qavit(tmp_path / "tiny", blocks=4, image_size=14, patch=7, width=8)
    vit = qavit.load(places[name], precision=precision)._vit
    random = np.random.default_rng(len(name))
    pictures = random.standard_normal((2, 1, 3, vit.image_size, vit.image_width), np.float32)
    tower = CachedTower(vit, PictureCache(DEFAULT_LIMIT))
    for number in range(150):
        pairs = None
        if vit.integrated and random.random() < 0.7:
            count = int(random.integers(1, 4))
            states = random.standard_normal((count, 5, vit.instruction_dim), np.float32)
            pairs = np.zeros(count, np.int32), states, random.integers(1, 6, count).astype(np.int32)
        wanted = ask_at_random(vit, random, pairs)
        seen = pictures[int(random.integers(2))]
        if number % 40 == 39:
            tower.cache.clear()
        alike(tower.forward(seen, pairs, **wanted), vit.forward(seen, *(pairs or ()), **wanted))
    info = tower.cache.info()
    assert info.hits > 0
    assert info.misses > 0


def test_states_stand_for_the_blocks_before_them(folder: Path) -> None:
    vit = qavit.load(folder)._vit
    random = np.random.default_rng(1)
    pixels = random.standard_normal((3, 3, 42, 42), np.float32)
    pairs = (np.array([0, 0, 2], np.int32), random.standard_normal((3, 4, 12), np.float32), np.array([4, 1, 3], np.int32))
    wanted = {"attention": [(4, "class"), (5, "raw")], "hidden": [6], "outputs": ["pooled", "last"]}
    whole = vit.forward(pixels, *pairs, **wanted)
    hidden = vit.forward(pixels, hidden=[1, 3])["hidden"]
    for first, states in hidden.items():
        alike(vit.forward(None, *pairs, **wanted, states=states, first=first), whole)


@pytest.mark.every_level
@pytest.mark.parametrize("precision", PRECISIONS)
def test_queries_keys_and_values_stand_for_their_product(folder: Path, precision: Any) -> None:
    vit = qavit.load(folder, precision=precision)._vit
    random = np.random.default_rng(1)
    pixels = random.standard_normal((3, 3, 42, 42), np.float32)
    pairs = (np.array([0, 0, 2], np.int32), random.standard_normal((3, 4, 12), np.float32), np.array([4, 1, 3], np.int32))
    wanted = {"attention": [(3, "raw"), (5, "class")], "hidden": [4], "outputs": ["pooled"]}
    whole = vit.forward(pixels, *pairs, **wanted)
    made = vit.forward(pixels, *pairs, attention=[(4, "class")], hidden=[3], outputs=["qkv"])
    states, qkv = made["hidden"][3], made["qkv"]
    assert qkv.shape == (3, 37, 48)
    alike(vit.forward(None, *pairs, **wanted, states=states, first=3, qkv=qkv), whole)
    alike(vit.forward(None, *pairs, outputs=["qkv"], attention=[(3, "mean")], states=states, first=3)["qkv"], qkv)


STATES = np.zeros((1, 37, 16), np.float32)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"states": STATES, "first": 4}, "states enter block 4, expected at most 3"),
        ({"states": STATES, "first": -1}, "first: block -1 does not exist"),
        ({"states": np.zeros((1, 36, 16), np.float32), "first": 1}, r"states has shape \[1, 36, 16\], expected"),
        ({"states": np.zeros((37, 16), np.float32), "first": 1}, "states"),
        ({"states": STATES, "first": 2, "hidden": [1]}, "lies before block 2"),
        ({"states": STATES, "first": 2, "attention": [(1, "raw")]}, "lies before block 2"),
        ({"states": STATES, "first": 2, "hidden": [0]}, "lies before block 2"),
        ({"states": STATES, "first": 2, "qkv": np.zeros((1, 37, 48), np.float32)}, "of block 3, but"),
        ({"states": np.zeros((2, 37, 16), np.float32), "first": 3, "qkv": np.zeros((1, 37, 48), np.float32)}, "as many as"),
        ({"states": STATES, "first": 3, "qkv": STATES}, "qkv has shape"),
        ({"states": STATES, "first": 2, "outputs": ["qkv"]}, "the pass ends before it"),
        ({"first": 2}, "expected pixel_values, or states"),
        ({}, "expected pixel_values, or states"),
    ],
)
def test_states_that_no_pass_begins_with(folder: Path, given: dict[str, Any], said: str) -> None:
    vit = qavit.load(folder)._vit
    with pytest.raises(ValueError, match=said):
        vit.forward(None, **{"hidden": [3], **given})
    with pytest.raises(ValueError, match="expected pixel_values, or states"):
        vit.forward(np.zeros((1, 3, 42, 42), np.float32), states=np.zeros((1, 37, 16), np.float32), first=1)


# ---- models ----

MODELS: dict[str, Callable[[Path], Any]] = {
    "demo": lambda folder: "demo",
    "qavit": lambda folder: folder,
    "clip": lambda folder: GOLDEN / "methods_clip",
    "siglip": lambda folder: GOLDEN / "methods_siglip",
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
def test_maps_by_every_method_have_the_same_bits(folder: Path, name: str, precision: Any) -> None:
    place = MODELS[name](folder)
    without = qavit.load(place, precision=precision, cache=0)
    model = qavit.load(place, precision=precision)
    options: dict[str, Any] = {}
    asked: Any = SCENE.questions if name == "demo" else TEXTS
    if name == "siglip":
        arrays = np.load(GOLDEN / "methods_siglip" / "golden.npz")
        asked, options = arrays["text_embeddings"], {"empty": arrays["empty_text_embedding"]}
    for method in model.methods:
        own = options if method == "legrad" else {}
        for image, questions in ((picture(1), asked[0]), (picture(2), asked[:2]), (picture(1), asked[1:])):
            found, wanted = (one.heatmaps(image, questions, method=method, **own) for one in (model, without))
            alike(told(found), told(wanted))
    info = model.cache_info()
    assert info.hits > 0
    assert info.misses > 0
    assert info.entries > 0
    assert 0 < info.bytes <= info.limit == DEFAULT_LIMIT
    assert without.cache_info()[:5] == (0, 0, 0, 0, 0)


def test_the_other_doors_have_the_same_bits(folder: Path) -> None:
    without, model = qavit.load(folder, cache=0), qavit.load(folder)
    states = model.encode_questions(["where is the dog?", "what is red"])
    pixels = np.random.default_rng(0).standard_normal((1, 3, 42, 42), np.float32)
    for _ in range(2):
        for door in (
            lambda one: one.vision(pixels, states.states[:1], states.mask[:1], True, True),
            lambda one: one.vision(np.repeat(pixels, 2, axis=0), states, output_hidden_states=True),
            lambda one: one.extract_attention(pixels, TEXTS, heads=None),
            lambda one: one.extract_attention(pixels, TEXTS, method="question"),
            lambda one: one.forward_itm({"image": pixels, "text_input": ["a dog"]}, block_num=5),
        ):
            alike(door(model), door(without))
    clip, plain = qavit.load(GOLDEN / "methods_clip"), qavit.load(GOLDEN / "methods_clip", cache=0)
    for _ in range(2):
        for number in (1, 2):
            alike(clip.similarity(picture(number), TEXTS), plain.similarity(picture(number), TEXTS))
            alike(clip.encode_image(picture(number)), plain.encode_image(picture(number)))
    assert clip.cache_info()[:2] == (6, 2)


def test_what_is_given_out_is_the_callers_own() -> None:
    model, size = qavit.load(GOLDEN / "methods_clip"), (1, 3, 48, 48)
    side = model.image_size
    pixels = np.random.default_rng(0).standard_normal((1, 3, side, side), np.float32)
    assert size[1] == pixels.shape[1]
    wanted = copy.deepcopy(model.vision(pixels, output_attentions=True, output_hidden_states=True))
    for _ in range(3):
        found = model.vision(pixels, output_attentions=True, output_hidden_states=True)
        alike(found, wanted)
        for array in (found.last_hidden_state, found.pooler_output, *found.attentions, *found.hidden_states):
            array[...] = 7  # of what was kept, nothing


def test_a_question_more_runs_no_block_before_the_question(folder: Path) -> None:
    model = qavit.load(folder)
    asked: list[Any] = []
    vit = model._vit

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(vit, name)

        def forward(self, *arguments: Any, **options: Any) -> Any:
            begun = "picture" if arguments[0] is not None else "states" if arguments[10] is None else "qkv"
            asked.append((begun, 0 if begun == "picture" else arguments[9]))
            return vit.forward(*arguments, **options)

    model._vit = Watched()
    for question in TEXTS:
        model.heatmaps(picture(), question)
    assert asked == [("picture", 0), ("qkv", 3), ("qkv", 3)]
    model.heatmaps(picture(1), TEXTS[0])
    model.heatmaps(picture(), TEXTS[0])  # queries, keys and values are of the last picture alone
    model.heatmaps(picture(), TEXTS[1])
    assert asked[3:] == [("picture", 0), ("states", 3), ("qkv", 3)]
    model._picture_cache.limit = 20_000  # less than eight times what they take
    model.cache_clear()
    for question in TEXTS[:2]:
        model.heatmaps(picture(), question)
    assert asked[6:] == [("picture", 0), ("states", 3)]


def test_legrad_of_another_text_runs_no_block() -> None:
    model, begun = qavit.load(GOLDEN / "methods_clip"), []
    vit = model._vit

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(vit, name)

        def gradients(self, states: Any, *arguments: Any, **options: Any) -> Any:
            begun.append(states is None)
            return vit.gradients(states, *arguments, **options)

    model._vit = Watched()
    for number, text in ((1, TEXTS[0]), (1, TEXTS[1]), (2, TEXTS[1]), (1, TEXTS[0])):
        model.heatmaps(picture(number), text, method="legrad")
    model.heatmaps(picture(1), TEXTS[0], method="legrad", block=-1)
    assert begun == [False, True, False, True, False]
    model.cache_clear()
    model.heatmaps(picture(1), TEXTS[0], method="legrad")
    assert not begun[-1]


@pytest.mark.parametrize("method", ["gae", "legrad", "grad_eclip", "gradcam"])
def test_a_map_of_a_gradient_and_the_answer_beside_it_are_of_one_pass(method: str) -> None:
    model, passes = qavit.load("demo", cache=0), []
    vit = model._vit

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(vit, name)

        def forward(self, *arguments: Any, **options: Any) -> Any:
            passes.append(arguments)
            return vit.forward(*arguments, **options)

    model._vit = Watched()
    result = model.heatmaps(SCENE.picture, SCENE.questions, method=method)
    assert result.answers is not None
    assert len(passes) == 1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_blip_keeps_pictures_with_the_same_bits(precision: Any) -> None:
    without, model = (text_model("blip_itm", precision=precision, cache=limit) for limit in (0, "9MB"))
    for _ in range(2):
        for seed in (1, 2):
            alike(told(model.heatmaps(picture(seed), TEXTS)), told(without.heatmaps(picture(seed), TEXTS)))
            alike(model.itm(picture(seed), TEXTS), without.itm(picture(seed), TEXTS))
    pixels = np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)
    for _ in range(2):
        samples = {"image": pixels, "text_input": TEXTS[:2]}
        alike(model.forward_itm(samples, 0), without.forward_itm(samples, 0))
    info = model.cache_info()
    assert (info.misses, info.entries) == (4, 4)
    size = model._core.image_tokens * 4 * (model._core.image_width + 2 * model._core.width * model.num_blocks)
    assert info.bytes == 4 * (size + 512)
    assert info.hits > 0
    model.cache_clear()
    alike(model.itm(picture(1), TEXTS), without.itm(picture(1), TEXTS))
    assert model.cache_info()[:3] == (0, 1, 1)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_captioner_keeps_pictures_with_the_same_bits(precision: Any) -> None:
    without, model = (text_model("blip_caption", precision=precision, cache=limit) for limit in (0, "9MB"))
    for _ in range(2):
        for seed in (1, 2):
            found, wanted = (
                one.generate(picture(seed), num_captions=2, do_sample=True, max_length=9, return_logits=True)
                for one in (model, without)
            )
            alike([one.ids for one in found], [one.ids for one in wanted])
            alike([one.logits for one in found], [one.logits for one in wanted])
            alike(model.score(picture(seed), TEXTS), without.score(picture(seed), TEXTS))
            alike(told(model.heatmaps(picture(seed), TEXTS)), told(without.heatmaps(picture(seed), TEXTS)))
    pixels = np.random.default_rng(0).standard_normal((1, 3, 32, 32), np.float32)
    for _ in range(2):
        alike(model.image_states(pixels), without.image_states(pixels))
    info = model.cache_info()
    assert info.misses == 3
    assert info.entries == 5
    assert info.hits > 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("name", ["albef_itm", "blip2_itm"])
def test_matchers_keep_pictures_with_the_same_bits(name: str, precision: Any) -> None:
    without, model = (matcher(name, precision=precision, cache=limit) for limit in (0, "9MB"))
    for _ in range(2):
        for seed in (1, 2):
            alike(told(model.heatmaps(picture(seed), TEXTS)), told(without.heatmaps(picture(seed), TEXTS)))
            alike(model.itm(picture(seed), TEXTS), without.itm(picture(seed), TEXTS))
            alike(model.itc(picture(seed), TEXTS), without.itc(picture(seed), TEXTS))
    info = model.cache_info()
    assert (info.misses, info.entries) == (2, 2)
    assert info.hits == 10


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_blip_vqa_keeps_pictures_with_the_same_bits(answering_place: Path, precision: Any) -> None:
    without, model = (qavit.load(answering_place, precision=precision, cache=limit) for limit in (0, "9MB"))
    for _ in range(2):
        for seed in (1, 2):
            alike(told(model.heatmaps(picture(seed), ASKED)), told(without.heatmaps(picture(seed), ASKED)))
            found, wanted = (one.answer(picture(seed), ASKED) for one in (model, without))
            alike([one.ids for one in found], [one.ids for one in wanted])
    info = model.cache_info()
    assert (info.misses, info.entries) == (2, 2)
    assert info.hits > 0


# ---- content ----


def test_pictures_are_told_apart_by_content(folder: Path, tmp_path: Path) -> None:
    model, without = qavit.load(folder), qavit.load(folder, cache=0)
    one = picture()
    other = one.copy()
    other[30, 25, 1] ^= 1
    for image in (one, other, one[:, ::-1], one.copy()):
        alike(model.heatmaps(image, TEXTS).raw, without.heatmaps(image, TEXTS).raw)
    for fit in ("crop", "stretch", "pad", None):
        alike(model.heatmaps(one, TEXTS, fit=fit).raw, without.heatmaps(one, TEXTS, fit=fit).raw)
    # Pixel values that differ by the least there is.
    pixels = np.random.default_rng(0).standard_normal((3, 42, 42), np.float32)
    near = pixels.copy()
    near[0, 0, 0] = np.nextafter(near[0, 0, 0], np.float32(9))
    before = model.cache_info().misses
    for values in (pixels, near, pixels, near):
        alike(model.heatmaps(values, TEXTS).raw, without.heatmaps(values, TEXTS).raw)
    assert model.cache_info().misses == before + 2


def test_what_becomes_of_an_array_later_does_not_show(folder: Path) -> None:
    model, without = qavit.load(folder), qavit.load(folder, cache=0)
    pixels = np.random.default_rng(0).standard_normal((3, 42, 42), np.float32)
    first = pixels.copy()
    result, wanted = model.heatmaps(pixels, TEXTS), without.heatmaps(first, TEXTS)
    pixels[...] = 0.5
    alike(result.block_raw, wanted.block_raw)  # computed only now
    alike(model.heatmaps(pixels, TEXTS).raw, without.heatmaps(pixels, TEXTS).raw)
    alike(model.heatmaps(first, TEXTS).raw, wanted.raw)


# ---- bounds ----


def test_no_more_is_kept_than_the_limit(folder: Path) -> None:
    state = 37 * 16 * 4
    model = qavit.load(folder, cache=4 * (state + 512) + 100)
    for seed in range(12):
        model.heatmaps(picture(seed), TEXTS[0])
        assert model.cache_info().bytes <= model.cache_info().limit
    assert model.cache_info().entries == 4
    before = model.cache_info()
    model.heatmaps(picture(11), TEXTS[1])  # one of the last four
    model.heatmaps(picture(0), TEXTS[1])
    after = model.cache_info()
    assert (after.hits - before.hits, after.misses - before.misses) == (1, 1)


def test_the_least_lately_used_goes_first() -> None:
    cache = PictureCache(3 * 1512)
    for key in "abc":
        cache.put(key, key, 1000)
    assert cache.get("a") == "a"
    cache.put("d", "d", 1000)
    assert [key for key in "abcd" if key in cache] == ["a", "c", "d"]
    cache.put("d", "e", 2000)  # replaced, and larger
    assert cache.get("d") == "e"
    assert cache.info().bytes == 2512 + 1512
    cache.put("f", "f", 9000)  # larger than all of it
    assert "f" not in cache
    assert cache.info().entries == 2
    cache.limit = 2000
    assert cache.info().bytes <= 2000
    cache.limit = 0
    assert cache.info()[2:5] == (0, 0, 0)


@pytest.mark.parametrize("limit", [0, "0", "0MB"])
def test_nothing_is_kept_where_nothing_may_be(folder: Path, limit: Any) -> None:
    model = qavit.load(folder, cache=limit)
    for _ in range(2):
        model.heatmaps(picture(), TEXTS)
    assert model.cache_info()[:5] == (0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("limit", "number"), [("256MB", 256_000_000), ("1.5 GiB", 3 << 29), ("12kb", 12_000), (" 7 ", 7), (5, 5)]
)
def test_a_limit_may_be_said_with_its_unit(folder: Path, limit: Any, number: int) -> None:
    assert qavit.load(folder, cache=limit).cache_info().limit == number


@pytest.mark.parametrize(
    ("limit", "error"),
    [(-1, ValueError), ("lots", ValueError), ("5 TB", ValueError), ("-1MB", ValueError), ("", ValueError), (1.5, TypeError),
     (None, TypeError), (True, TypeError)],
)  # fmt: skip
def test_what_is_no_limit_is_refused(folder: Path, limit: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="cache: "):
        qavit.load(folder, cache=limit)


def test_clearing_lets_go_of_all(folder: Path) -> None:
    model = qavit.load(folder)
    model.heatmaps(picture(), TEXTS)
    model.heatmaps(picture(), TEXTS)
    info = model.cache_info()
    assert (info.hits, info.misses, info.entries, info.limit) == (1, 1, 2, DEFAULT_LIMIT)  # states; queries, keys, values
    assert isinstance(info, tuple)
    assert info._fields[:5] == ("hits", "misses", "entries", "bytes", "limit")
    assert info._fields[5:] == ("disk_hits", "disk_entries", "disk_bytes", "disk_limit")
    model.cache_clear()
    assert model.cache_info() == (0, 0, 0, 0, DEFAULT_LIMIT, 0, 0, 0, 0)


def test_what_is_kept_does_not_travel(folder: Path) -> None:
    model = qavit.load(folder, cache="1MB")
    model.heatmaps(picture(), TEXTS)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert other.cache_info()[:5] == (0, 0, 0, 0, 1_000_000)
    assert len(pickle.dumps(model)) < 4000


# ---- threads and processes ----


def test_many_threads_share_one_model(folder: Path) -> None:
    """While pictures push each other out, and the whole is cleared now and then."""
    model, without = qavit.load(folder, cache=3 * 2900), qavit.load(folder, cache=0)
    wanted = {(seed, text): without.heatmaps(picture(seed), text).raw for seed in range(5) for text in TEXTS}
    wrong: list[Any] = []

    def work(number: int) -> None:
        random = np.random.default_rng(number)
        try:
            for _ in range(25):
                seed, text = int(random.integers(5)), TEXTS[int(random.integers(3))]
                alike(model.heatmaps(picture(seed), text).raw, wanted[seed, text])
                if random.random() < 0.1:
                    model.cache_clear()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    info = model.cache_info()
    assert info.bytes <= info.limit
    assert info.entries <= 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_goes_on_with_what_is_kept(folder: Path) -> None:
    model = qavit.load(folder)
    wanted = model.heatmaps(picture(), TEXTS).raw
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    model._picture_cache._lock.acquire()  # as if another thread were in the middle of something
    child = multiprocessing.get_context("fork").Process(
        target=lambda: theirs.send([model.heatmaps(picture(), TEXTS).raw.tobytes() for _ in range(2)])
    )
    child.start()
    model._picture_cache._lock.release()
    assert ours.poll(60)
    assert ours.recv() == [wanted.tobytes()] * 2
    child.join()
    assert child.exitcode == 0


def test_a_digest_is_of_all_that_the_core_takes() -> None:
    values = np.zeros((1, 3, 4, 6), np.float32)
    assert digest_of(values) == digest_of(values.copy())
    assert digest_of(values) != digest_of(values.reshape(1, 3, 6, 4))
    assert digest_of(values[..., ::-1]) == digest_of(values)  # not contiguous
