"""Methods that read gradients, and rollout: exact to the public code's maps, through the models' own face."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import close

import qavit
from qavit.methods._registry import all_methods

SCENE = Path(qavit.__file__).parent / "demo_model" / "scene.png"
DATA = Path(__file__).parent / "data"
CLIP, SIGLIP = DATA / "golden" / "methods_clip", DATA / "golden" / "methods_siglip"
GOLDEN, SIGLIP_GOLDEN = np.load(CLIP / "golden.npz"), np.load(SIGLIP / "golden.npz")
TEXTS = ["a dog", "the cat's ear", "a photo of a red car on the left"]
# Of the largest value. Observed: 4e-6.
TOLERANCE = 2e-5
OF_GRADIENT = ("gae", "grad_eclip", "gradcam", "gradcam_attention", "legrad")
# What the public code gave, and what asks for it.
CLIP_MAPS: dict[str, dict[str, Any]] = {
    "gae_last": {"method": "gae"},
    "gae_from2": {"method": "gae", "block": range(2, 8)},
    "gae_all": {"method": "gae", "block": range(8)},
    "gradcam_cosine_last": {"method": "gradcam"},
    "gradcam_cosine_second_last": {"method": "gradcam", "block": -2},
    "gradcam_softmax_last": {"method": "gradcam", "score": "softmax"},
    "gradcam_softmax_second_last": {"method": "gradcam", "score": "softmax", "block": 6},
    "own_grad_eclip_true_heads": {"method": "grad_eclip"},
    "grad_eclip_notebook": {"method": "grad_eclip", "heads": "single"},
    "legrad_last2": {},
    "legrad_last1": {"method": "legrad", "block": -1},
    "legrad_all": {"method": "legrad", "block": range(8)},
}
SIGLIP_MAPS: dict[str, dict[str, Any]] = {
    "legrad_last2": {"method": "legrad", "corrected": False},
    "legrad_all": {"method": "legrad", "corrected": False, "block": range(5)},
    "gradcam_cosine_last": {"method": "gradcam"},
    "own_pooler_gradcam": {"method": "gradcam_attention"},
}


@pytest.fixture(scope="module")
def clip() -> qavit.Model:
    return qavit.load(CLIP)


@pytest.fixture(scope="module")
def siglip() -> qavit.Model:
    return qavit.load(SIGLIP)


@pytest.mark.parametrize("name", CLIP_MAPS)
def test_clip_against_public_code(clip: qavit.Model, name: str) -> None:
    for picture in range(2):
        result = clip.heatmaps(GOLDEN["pixel_values"][picture], TEXTS, **CLIP_MAPS[name])
        close(result.raw, GOLDEN[name][picture], TOLERANCE)
        close(result.scores, GOLDEN["cosine"][picture], 1e-5)


def test_rollout_against_public_code(clip: qavit.Model) -> None:
    pixels = GOLDEN["pixel_values"]
    for picture in range(2):
        close(clip.heatmaps(pixels[picture], method="rollout").raw[0], GOLDEN["rollout_start0"][picture], TOLERANCE)
        later = clip.heatmaps(pixels[picture], method="rollout", block=range(1, 8))
        close(later.raw[0], GOLDEN["rollout_start1"][picture], TOLERANCE)
    result = clip.heatmaps(pixels[0], method="rollout")
    for block in (0, 7):
        close(result.block_raw[block], clip.heatmaps(pixels[0], method="rollout", block=block).raw, 1e-5)
    with pytest.warns(qavit.QuestionBlindWarning, match="rollout' knows no text"):
        assert (clip.heatmaps(pixels[0], TEXTS, method="rollout").raw == result.raw).all()


def test_more_blocks_with_a_single_head(clip: qavit.Model) -> None:
    """The public code adds up what is averaged here."""
    result = clip.heatmaps(GOLDEN["pixel_values"][0], TEXTS, method="grad_eclip", heads="single", block=(6, 7))
    close(2 * result.raw, GOLDEN["grad_eclip_notebook_2blocks"][0], TOLERANCE)


def test_gradcam_of_attention_is_one_step_of_gae(clip: qavit.Model) -> None:
    pixels, scale = GOLDEN["pixel_values"][1], float(GOLDEN["logit_scale_exp"])
    of_attention = clip.heatmaps(pixels, TEXTS, method="gradcam_attention")
    close(scale * of_attention.raw, GOLDEN["gae_last"][1], TOLERANCE)
    for block in (0, 5):
        one = clip.heatmaps(pixels, TEXTS, method="gradcam_attention", block=block).raw
        close(scale * one, clip.heatmaps(pixels, TEXTS, method="gae", block=block).raw, 1e-5)


@pytest.mark.parametrize("name", SIGLIP_MAPS)
def test_siglip_against_public_code(siglip: qavit.Model, name: str) -> None:
    for picture in range(2):
        result = siglip.heatmaps(
            SIGLIP_GOLDEN["pixel_values"][picture], SIGLIP_GOLDEN["text_embeddings"], **SIGLIP_MAPS[name]
        )
        close(result.raw, SIGLIP_GOLDEN[name][picture], TOLERANCE)


def between_extremes(maps: np.ndarray) -> np.ndarray:
    least = maps.min(axis=(-2, -1), keepdims=True)
    return np.asarray((maps - least) / (maps.max(axis=(-2, -1), keepdims=True) - least))


@pytest.mark.parametrize(("name", "blocks"), [("legrad_last2", None), ("legrad_all", range(5))])
def test_siglips_correction(siglip: qavit.Model, name: str, blocks: Any) -> None:
    options = {"method": "legrad", "block": blocks, "empty": SIGLIP_GOLDEN["empty_text_embedding"]}
    for picture in range(2):
        pixels = SIGLIP_GOLDEN["pixel_values"][picture]
        result = siglip.heatmaps(pixels, SIGLIP_GOLDEN["text_embeddings"], **options)
        close(between_extremes(result.raw), SIGLIP_GOLDEN[f"{name}_corrected_normalised"][picture], TOLERANCE)
        plain = siglip.heatmaps(pixels, SIGLIP_GOLDEN["text_embeddings"], **options, corrected=False)
        assert ((result.raw == 0) | (np.abs(result.raw - plain.raw) < 1e-6)).all()
        assert (result.raw == 0).any()


def test_texts_do_not_change_each_other_and_share_a_pass(clip: qavit.Model) -> None:
    pixels = GOLDEN["pixel_values"][0]
    for method in OF_GRADIENT:
        together = clip.heatmaps(pixels, TEXTS, method=method)
        for number, text in enumerate(TEXTS):
            close(together.raw[number], clip.heatmaps(pixels, text, method=method).raw[0], 1e-5)


@pytest.mark.parametrize("method", OF_GRADIENT)
def test_every_block_by_itself(clip: qavit.Model, method: str) -> None:
    pixels = GOLDEN["pixel_values"][0]
    result = clip.heatmaps(pixels, TEXTS, method=method)
    for block in (0, 3, 7):
        close(result.block_raw[block], clip.heatmaps(pixels, TEXTS, method=method, block=block).raw, 1e-5)


def test_heads(clip: qavit.Model) -> None:
    pixels = GOLDEN["pixel_values"][0]
    for method in ("legrad", "gradcam_attention"):
        one = [clip.heatmaps(pixels, TEXTS, method=method, block=6, heads=head).raw for head in range(4)]
        close(clip.heatmaps(pixels, TEXTS, method=method, block=6).raw, np.mean(one, axis=0), 1e-6)
        close(clip.heatmaps(pixels, TEXTS, method=method, block=6, heads="max").raw, np.max(one, axis=0), 1e-6)
    for method in ("gae", "grad_eclip", "gradcam", "rollout"):
        with pytest.raises(ValueError, match=f"heads: method '{method}' does not take it"):
            clip.heatmaps(pixels, TEXTS, method=method, heads="max")


def test_blocks_that_a_method_does_not_have(clip: qavit.Model, siglip: qavit.Model) -> None:
    with pytest.raises(ValueError, match="goes from a block to the last one, 7; expected one block, or all from it on"):
        clip.heatmaps(GOLDEN["pixel_values"][0], TEXTS, method="gae", block=(2, 4))
    with pytest.raises(ValueError, match="is of the pooling head behind block 4 here"):
        siglip.heatmaps(
            SIGLIP_GOLDEN["pixel_values"][0], SIGLIP_GOLDEN["text_embeddings"], method="gradcam_attention", block=1
        )
    assert {"gae", "grad_eclip"}.isdisjoint(siglip.methods)


def test_options_are_refused_by_name(clip: qavit.Model) -> None:
    for method, option in (("legrad", {"corrected": False}), ("gae", {"score": "softmax"}), ("rollout", {"empty": "a"})):
        name = next(iter(option))
        with pytest.raises(ValueError, match=f"{name}: method '{method}' does not take it"):
            clip.heatmaps(GOLDEN["pixel_values"][0], TEXTS, method=method, **option)


def test_bfloat16_is_near() -> None:
    model = qavit.load(CLIP, precision="bfloat16")
    for method, name in {
        "gae": "gae_last", "grad_eclip": "own_grad_eclip_true_heads", "gradcam": "gradcam_cosine_last",
        "legrad": "legrad_last2",
    }.items():  # fmt: skip
        found = model.heatmaps(GOLDEN["pixel_values"][0], TEXTS, method=method).raw
        close(found, GOLDEN[name][0], 5e-2)  # 1.2e-2


# ---- the bundled model: the gradient of its best answer's log-probability ----


@pytest.fixture(scope="module")
def demo() -> qavit.Model:
    return qavit.load("demo")


def test_the_bundled_model_has_gradients_of_its_answer(demo: qavit.Model) -> None:
    assert set(OF_GRADIENT) | {"rollout"} <= set(demo.methods)
    scene = SCENE
    asked = ["where is the red star?", "what color is the circle?"]
    for method in OF_GRADIENT:
        result = demo.heatmaps(scene, asked, method=method)
        assert result.raw.shape == (2, *demo.grid)
        assert result.raw.any(axis=(1, 2)).all()
        alone = demo.heatmaps(scene, asked[1], method=method)
        close(result.raw[1], alone.raw[0], 1e-4)
        # Another question in front, longer than this one, changes which tokens are padding.
        close(demo.heatmaps(scene, ["what is the colour of the star on the left?", asked[1]], method=method).raw[1],
              alone.raw[0], 1e-4)  # fmt: skip
    with pytest.raises(ValueError, match="score: method 'gradcam' does not take it"):
        demo.heatmaps(scene, asked, method="gradcam", score="softmax")


def test_the_gradient_of_an_answer_by_differences(demo: Any) -> None:
    """The log-probability of the best answer changes with the patches as gradients say it does."""
    look = demo._look(demo._see(SCENE).pixels, ["where is the red star?"])
    first = demo.num_blocks - 2
    found = look.gradients(first, [("hidden_gradient", first)])
    states = demo._run(look._pixels, *look._encoded[:2], [], hidden=(first,), pair_image=look._pair_image)["hidden"][first]
    best = np.log(look.answers()[0][0][1])
    assert abs(found["scores"][0, 0] - best) < 1e-4
    from qavit.models._tower_look import _in_front

    way = np.random.default_rng(0).standard_normal(states.shape).astype(np.float32)
    step = 0.01
    high, low = (
        demo._vit.gradients(states + sign * step * way, first, **_in_front(*look._encoded[:2]))["scores"][0, 0]
        for sign in (1, -1)
    )
    gradient = found["hidden_gradient"][first]
    assert abs((float(high) - float(low)) / (2 * step) - float((gradient * way).sum())) < 1e-2 * np.linalg.norm(gradient)


def test_every_method_says_what_it_is() -> None:
    for name in (*OF_GRADIENT, "rollout"):
        method = all_methods()[name]
        assert method.name == name
        assert type(method).__doc__
