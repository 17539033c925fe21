"""Methods that read gradients, and rollout: exact to the public code's maps, through the models' own face."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from reference import close
from torch_tower import Tower

import qavit
from qavit.checkpoints._weights import float_array
from qavit.heatmaps import to_distribution
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
    result = clip.heatmaps(GOLDEN["pixel_values"][0], TEXTS, method="grad_eclip", heads="single", block=(6, 7))
    close(result.raw, GOLDEN["grad_eclip_notebook_2blocks"][0], TOLERANCE)


def test_a_share_among_one_text_is_refused(clip: qavit.Model) -> None:
    with pytest.raises(ValueError, match="of one always 1; give several"):
        clip.heatmaps(GOLDEN["pixel_values"][0], TEXTS[0], method="gradcam", score="softmax")


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
        every = clip.heatmaps(pixels, TEXTS, method=method, block=6).head_maps
        close(every, to_distribution(np.stack(one, axis=1), axes=2), 1e-6)
        close(clip.heatmaps(pixels, TEXTS, method=method, block=6).raw, np.mean(one, axis=0), 1e-6)
        close(clip.heatmaps(pixels, TEXTS, method=method, block=6, heads="max").raw, np.max(one, axis=0), 1e-6)
    for method in ("gae", "grad_eclip", "gradcam", "rollout"):
        with pytest.raises(ValueError, match=f"heads: method '{method}' does not take it"):
            clip.heatmaps(pixels, TEXTS, method=method, heads="max")
    assert clip.heatmaps(pixels, TEXTS, method="gae").head_maps is None


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


def test_pictures_that_are_not_square() -> None:
    model = qavit.load(CLIP, image_size=(48, 64))
    for picture in range(2):
        pixels = GOLDEN["wide_pixel_values"][picture]
        result = model.heatmaps(pixels, TEXTS, method="grad_eclip", heads="single")
        close(result.raw, GOLDEN["grad_eclip_notebook_wide"][picture], TOLERANCE)
        for method in (*OF_GRADIENT, "rollout"):
            assert model.heatmaps(pixels, None if method == "rollout" else TEXTS, method=method).raw.shape[1:] == (6, 8)


def test_pictures_that_are_larger() -> None:
    model = qavit.load(CLIP, image_size=64, config={"position_resize": "bicubic_antialias"})
    for picture in range(2):
        result = model.heatmaps(GOLDEN["high_pixel_values"][picture], TEXTS, method="legrad")
        close(result.raw, GOLDEN["legrad_last2_high"][picture], TOLERANCE)


# ---- the bundled model: the gradient of its best answer's log-probability ----


@pytest.fixture(scope="module")
def demo() -> qavit.Model:
    return qavit.load("demo")


@pytest.mark.parametrize("method", OF_GRADIENT)
def test_the_map_of_any_answer_of_a_list(demo: qavit.Model, method: str) -> None:
    scene = qavit.demo_scene()
    asked = scene.questions[1:]
    own = demo.heatmaps(scene.picture, asked, method=method)
    assert own.answers is not None
    best = [ranked[0][0] for ranked in own.answers]
    named = demo.heatmaps(scene.picture, asked, method=method, answer=best)
    close(named.raw, own.raw, 1e-4)
    other = demo.heatmaps(scene.picture, asked, method=method, answer="red")
    assert all(not np.allclose(one, two, atol=1e-3 * np.abs(two).max()) for one, two in zip(other.raw, own.raw))
    alone = demo.heatmaps(scene.picture, asked[1], method=method, answer="red")
    close(other.raw[1], alone.raw[0], 1e-3)
    for wrong, message in (("mauve", "'mauve' is none of the model's"), (["red"], "1 answers for 2 questions")):
        with pytest.raises(ValueError, match=message):
            demo.heatmaps(scene.picture, asked, method=method, answer=wrong)


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


# ---- QA-ViT: gradients of a text prompt, embedded by the CLIP that its tower was made from ----

LATE = DATA / "golden" / "qavit_official_late"
ASKED = ["is the man to the right of the red car?", "what color is the dog?"]


@pytest.fixture(scope="module")
def both_halves(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The golden's CLIP folder with a text half of its own, and that as transformers has it."""
    folder = tmp_path_factory.mktemp("clip")
    vision = transformers.CLIPVisionModel.from_pretrained(LATE / "clip")
    vocabulary = json.loads((CLIP / "config.json").read_text())["text_config"]["vocab_size"]
    text = {
        "vocab_size": vocabulary, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 32, "eos_token_id": vocabulary - 1,
    }  # fmt: skip
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision.config.to_dict(), projection_dim=12)
    model = transformers.CLIPModel(config)
    model.vision_model.load_state_dict(vision.state_dict())
    torch.nn.init.normal_(model.visual_projection.weight, std=0.2)
    torch.nn.init.normal_(model.text_projection.weight, std=0.2)
    model.eval().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(CLIP / name, folder / name)
    shutil.copy(LATE / "clip" / "preprocessor_config.json", folder)
    return folder, model


def test_a_qavit_has_gradients_of_a_prompt(both_halves: Any) -> None:
    folder, torch_model = both_halves
    model: Any = qavit.load(checkpoint=LATE / "checkpoint.pth", vision=folder, text=LATE / "t5")
    assert set(OF_GRADIENT) <= set(model.methods)
    assert model.default_method == "class"
    pixels = np.load(LATE / "golden.npz")["image"][0]
    found = {name: model.heatmaps(pixels, ASKED, method=name) for name in OF_GRADIENT}
    longer = model.heatmaps(pixels, ASKED, method="gae", block=range(1, model.num_blocks))

    tokens = transformers.AutoTokenizer.from_pretrained(folder)(ASKED, padding=True, return_tensors="pt")
    output = torch_model.get_text_features(**tokens)
    texts = (output if isinstance(output, torch.Tensor) else output.pooler_output).detach().double()
    texts /= texts.norm(dim=1, keepdim=True)
    state = {name: torch.tensor(float_array(tensor)) for name, tensor in model._source.weights.items()}
    tower = Tower(state, {**model._vision, "prefix": 1})
    encoded = model.encode_questions(ASKED)
    scale = torch_model.logit_scale.detach().double().exp()
    for q in range(len(ASKED)):
        instruct = torch.tensor(encoded.states[q][encoded.mask[q] == 1], dtype=torch.float64)
        states = model._vit.forward(pixels[None], hidden=[0])["hidden"][0][0]
        x = torch.tensor(states, dtype=torch.float64, requires_grad=True)
        blocks = tower.run(x, 0, instruct)
        score = tower.scores(tower.pooled(blocks[-1]["output"])[0], texts, False, 1.0)[q]
        last, L = blocks[-1], len(blocks)
        G, d_normed = torch.autograd.grad(score, [last["attention"], last["normed"]], retain_graph=True)
        once = (last["attention"] * G.clamp(min=0)).mean(dim=0)
        patches = last["normed"][1:] @ d_normed[1:].mean(dim=0)
        row = torch.eye(len(x), dtype=torch.float64)[0]
        every = torch.autograd.grad(score, [block["attention"] for block in blocks], retain_graph=True)
        for block, gradient in zip(blocks[:0:-1], every[:0:-1]):
            row = row + row @ (block["attention"] * scale * gradient.clamp(min=0)).mean(dim=0)[:, -len(x) :]
        legrad = 0
        for block in blocks[-2:]:
            own = tower.norm(block["output"].mean(dim=0), "post_layernorm")
            local = tower.scores(own, texts, False, 1.0)[q]
            g = torch.autograd.grad(local, block["attention"], retain_graph=True)[0].clamp(min=0)
            legrad = legrad + g.mean(dim=(0, 1))[-len(x) + 1 :]
        expected = {
            "gae": scale * once[0, -len(x) + 1 :], "gradcam_attention": once[0, -len(x) + 1 :], "legrad": legrad,
            "gradcam": patches.clamp(min=0),
        }  # fmt: skip
        for name, value in expected.items():
            close(found[name].raw[q].reshape(-1), value.detach().numpy(), 5e-5)
            assert abs(found[name].scores[q] - score.item()) < 1e-5
        close(longer.raw[q].reshape(-1), row[1:].detach().numpy(), 5e-5)
        assert model.num_blocks == L


def test_a_qavit_without_the_texts_half_says_what_it_needs(both_halves: Any) -> None:
    model = qavit.load(checkpoint=LATE / "checkpoint.pth", vision=LATE / "clip", text=LATE / "t5")
    for method in ("gae", "gradcam", "legrad"):
        with pytest.raises(ValueError, match=rf"got '{method}'; this model has .*load the model with vision= a CLIP folder"):
            model.heatmaps(np.load(LATE / "golden.npz")["image"][0], ASKED, method=method)
