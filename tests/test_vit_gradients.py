"""Gradients through a vision tower: against autograd in float64, differences, and themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Optional

import numpy as np
import pytest
import torch
from reference import close, normal
from test_cuda import missing
from test_vit import as_weights
from torch_tower import Tower, random_tower

from qavit import _core

Array = Any
pytestmark = pytest.mark.every_level
# Of the largest value. Observed: 1e-5.
TOLERANCE = 4e-5
# Observed: 6e-2.
BFLOAT16 = 1e-1

BASE: dict[str, Any] = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 12,
    "patch_size": 4, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "projection_dim": 10, "instruction_dim": 0,
}  # fmt: skip
TOWERS: dict[str, dict[str, Any]] = {
    "clip": {},
    "answers": {"projection_dim": 0, "answers": 7, "hidden_act": "gelu"},
    "no projection": {"projection_dim": 0, "hidden_act": "relu"},
    "siglip": {"projection_dim": 0, "prefix": 0, "pooling": "map", "hidden_act": "gelu_new"},
    "mean": {"pooling": "mean", "prefix": 3, "hidden_act": "gelu"},
    "mean then norm": {"pooling": "mean_then_norm", "hidden_act": "gelu_new"},
    "gated, scaled, turned": {
        "gated": True, "scaled": True, "rope_theta": 100.0, "prefix": 3, "hidden_act": "silu", "num_attention_heads": 2,
    },
    "qavit": {"integrated": (1, 2), "instruction_dim": 13},
}  # fmt: skip


def settings(name: str) -> dict[str, Any]:
    return {**BASE, **TOWERS[name]}


def make(config: dict[str, Any], precision: str = "float32", device: str = "cpu") -> tuple[_core.Vit, dict[str, Any]]:
    reason = missing(device) if device != "cpu" else None
    if reason:
        pytest.skip(reason)
    state = random_tower(config)
    vit = _core.Vit(config, as_weights(state), precision, device=None if device == "cpu" else _core.Device(device))
    return vit, state


def asked(config: dict[str, Any], vit: _core.Vit, count: int = 2, questions: int = 3) -> dict[str, Any]:
    """What gradients takes: states of block 0, texts, and questions where blocks take them."""
    given: dict[str, Any] = {"states": normal(count, vit.tokens, vit.hidden_size, seed=3)}
    if not config.get("answers"):
        given["texts"] = normal(questions, config["projection_dim"] or vit.hidden_size, seed=4)
        given["texts"] /= np.linalg.norm(given["texts"], axis=1, keepdims=True)
    if config["instruction_dim"]:
        given["instruct"] = normal(count, 5, config["instruction_dim"], seed=5)
        given["instruct_length"] = np.array([5, 2, 4][:count], np.int32)
    return given


def everything(vit: _core.Vit, config: dict[str, Any]) -> list[tuple[str, int]]:
    names = ["legrad", "gradcam", "attention_gradient", "hidden_gradient"]
    if config.get("prefix", 1):
        names += ["class_attention", "class_gradient", "key_cosine"]
    wanted = [(name, block) for name in names for block in range(vit.blocks)]
    if config.get("pooling") == "map":
        wanted += [("class_attention", vit.blocks), ("class_gradient", vit.blocks)]
    return wanted


def by_autograd(
    config: dict[str, Any], state: dict[str, Any], given: dict[str, Any], softmax: bool, scale: float, paired: bool,
    single_head: Optional[int] = None,
) -> dict[Any, Array]:
    """What gradients gives for everything, and relevance from block 1 on, for each sequence and each of its texts."""
    tower = Tower(state, config, single_head)
    texts = None if "texts" not in given else torch.tensor(given["texts"], dtype=torch.float64)
    found: dict[Any, list[Any]] = {}
    for n, states in enumerate(given["states"]):
        x = torch.tensor(states, dtype=torch.float64, requires_grad=True)
        M, instruct = 0, None
        if "instruct" in given:
            M = given["instruct"].shape[1]
            instruct = torch.tensor(given["instruct"][n, : given["instruct_length"][n]], dtype=torch.float64)
        for name, block, value in of_sequence(tower, x, instruct, (texts, softmax, scale), n if paired else None):
            value = padded(value.detach(), len(x), M, block in config.get("integrated", ()))
            found.setdefault((name, block), []).append(value)
    return {key: np.stack([value.numpy() for value in values]) for key, values in found.items()}


def padded(value: torch.Tensor, tokens: int, M: int, integrated: bool) -> Any:
    """With columns of 0 for question tokens that do not count."""
    own = value.shape[-1] - tokens
    if not integrated or value.dim() < 2 or own < 0 or value.shape[0] == tokens:
        return value
    zeros = value.new_zeros(*value.shape[:-1], M - own)
    return torch.cat([value[..., :own], zeros, value[..., own:]], dim=-1)


def of_sequence(
    tower: Tower, x: torch.Tensor, instruct: Any, scoring: tuple[Any, bool, float], own_text: Optional[int]
) -> Iterator[tuple[str, int, torch.Tensor]]:
    prefix, blocks = tower.prefix, tower.run(x, 0, instruct)
    L = len(blocks)
    pooled, looks = tower.pooled(blocks[-1]["output"])
    scores = tower.scores(pooled, *scoring)
    for q in range(len(scores)) if own_text is None or scoring[0] is None else [own_text]:
        sources = [block[name] for block in blocks for name in ("attention", "normed", "input")]
        gradients = torch.autograd.grad(scores[q], sources, retain_graph=True)
        row = torch.eye(len(x), dtype=torch.float64)[0]
        for i in reversed(range(L)):
            G, d_normed, d_input = gradients[3 * i : 3 * i + 3]
            yield "attention_gradient", i, G
            yield "hidden_gradient", i, d_input
            yield "gradcam", i, blocks[i]["normed"][prefix:] @ d_normed[prefix:].mean(dim=0)
            yield "class_gradient", i, G[:, 0]
            if i >= 1:
                row = row + row @ (blocks[i]["attention"] * G.clamp(min=0)).mean(dim=0)[:, -len(x) :]
        yield "relevance", 1, row
        if looks is not None:
            yield "class_gradient", L, torch.autograd.grad(scores[q], looks, retain_graph=True)[0][:, 0]
        for i, block in enumerate(blocks):
            local, attention = legrad_scores(tower, block, scoring)
            G = torch.autograd.grad(local[q], attention, retain_graph=True)[0]
            yield "legrad", i, G.clamp(min=0).sum(dim=1)
    for i, block in enumerate(blocks):
        yield "class_attention", i, block["attention"][:, 0]
        yield "key_cosine", i, block["key_cosine"]
    if looks is not None:
        yield "class_attention", L, looks[:, 0]


def seen(values: Array, given: dict[str, Any]) -> Array:
    """Gradients of attention without those to question tokens that do not count: these have no weight."""
    lengths = given.get("instruct_length", ())
    if len(lengths) and values.ndim >= 3 and values.shape[-1] == 10 + given["instruct"].shape[1]:
        for item in range(len(values)):
            values[item, ..., lengths[item * len(lengths) // len(values)] : given["instruct"].shape[1]] = 0
    return values


def legrad_scores(
    tower: Tower, block: dict[str, torch.Tensor], scoring: tuple[Any, bool, float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """LeGrad's scores of a block's output, and the attention that they are differentiated for."""
    if tower.config.get("pooling") == "map":
        pooled, looks = tower.head(block["output"])
        return tower.scores(pooled, *scoring), looks
    pooled = tower.norm(block["output"].mean(dim=0), "post_layernorm")
    return tower.scores(pooled, *scoring), block["attention"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("device", ["cpu", "cuda-host"])
@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("name", TOWERS)
def test_against_autograd(name: str, softmax: bool, device: str, precision: str) -> None:
    config = settings(name)
    if precision == "bfloat16" and config["hidden_act"] == "relu":
        pytest.skip("a slope that jumps is another wherever rounding crosses 0")
    vit, state = make(config, precision, device)
    given = asked(config, vit)
    expected = by_autograd(config, state, given, softmax, 2.5, False)
    prefix = config.get("prefix", 1)
    found = vit.gradients(
        given.pop("states"), 0, score="softmax" if softmax else "cosine", scale=2.5, wanted=everything(vit, config),
        relevance=1 if prefix else None, **given,
    )  # fmt: skip
    if prefix:
        found["relevance"] = {1: found["relevance"]}
    for (what, block), value in expected.items():
        if prefix or (what not in ("relevance", "key_cosine") and (not what.startswith("class") or block == vit.blocks)):
            close(seen(found[what][block], given), value, TOLERANCE if precision == "float32" else BFLOAT16)


@pytest.mark.parametrize("name", ["clip", "gated, scaled, turned"])
@pytest.mark.parametrize("device", ["cpu", "cuda-host"])
@pytest.mark.parametrize("single_head", [0, 2])
def test_blocks_with_a_single_head(name: str, device: str, single_head: int) -> None:
    config = settings(name)
    vit, state = make(config, device=device)
    given = asked(config, vit)
    expected = by_autograd(config, state, given, False, 1.0, False, single_head)
    found = vit.gradients(given["states"], 0, given["texts"], wanted=everything(vit, config), single_head=single_head)
    assert found["class_gradient"][2].shape[1] == 1
    for (what, block), value in expected.items():
        if what != "relevance":
            close(found[what][block], value, TOLERANCE)


@pytest.mark.parametrize("name", ["clip", "siglip", "qavit"])
def test_a_text_each(name: str) -> None:
    config = settings(name)
    vit, state = make(config)
    given = asked(config, vit, count=3)
    expected = by_autograd(config, state, given, False, 1.0, True)
    found = vit.gradients(given.pop("states"), 0, paired=True, wanted=everything(vit, config), **given)
    assert found["scores"].shape == (3, 3)
    for what in ("legrad", "gradcam", "hidden_gradient"):
        close(seen(found[what][1], given), expected[what, 1], TOLERANCE)


@pytest.mark.parametrize("name", ["clip", "siglip", "answers"])
def test_scores_and_what_is_compared_are_those_of_the_forward_pass(name: str) -> None:
    config = settings(name)
    vit, _ = make(config)
    pixels = normal(2, 3, 12, 12)
    output = "projected" if config["projection_dim"] else "pooled"
    forward = vit.forward(pixels, hidden=[2], outputs=[output])
    given = asked(config, vit)
    found = vit.gradients(forward["hidden"][2], 2, given.get("texts"))
    if name != "answers":
        close(found["image"], forward[output], 1e-6)
        image = forward[output] / np.linalg.norm(forward[output], axis=1, keepdims=True)
        close(found["scores"], image @ given["texts"].T, 1e-5)
    else:
        logits = found["image"].astype(np.float64)
        best = logits.max(axis=1) - np.log(np.exp(logits).sum(axis=1))
        close(found["scores"][:, 0], best, 1e-5)


@pytest.mark.parametrize("name", ["clip", "siglip", "gated, scaled, turned", "qavit"])
def test_by_differences(name: str) -> None:
    config = settings(name)
    vit, _ = make(config)
    given = asked(config, vit, count=1, questions=1)
    states = given.pop("states")
    gradient = vit.gradients(states, 0, wanted=[("hidden_gradient", 0)], **given)["hidden_gradient"][0][0]
    for seed in range(3):
        way = normal(*states.shape, seed=seed)
        high, low = (vit.gradients(states + step * way, 0, **given)["scores"][0, 0] for step in (2e-3, -2e-3))
        # Observed: 6e-4 of the gradient's length.
        assert abs((float(high) - float(low)) / 4e-3 - (gradient * way[0]).sum()) < 2e-3 * np.linalg.norm(gradient)


@pytest.mark.parametrize("device", ["cpu", "cuda-host"])
def test_many_texts_go_in_turns(device: str) -> None:
    """More texts than one product takes, and than wait between blocks."""
    config = {**BASE, "image_size": 56, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    vit, _ = make(config, device=device)
    rows = 9600 if device == "cuda-host" else 1200
    count = 8 * (rows // vit.tokens) + 3 if device == "cpu" else 7
    states = normal(1, vit.tokens, 8)
    texts = normal(count, 10, seed=1)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    wanted = [("legrad", 1), ("gradcam", 0), ("gradcam", 2)]
    wanted += [("class_gradient", 1), ("class_attention", 1), ("key_cosine", 0)]
    together = vit.gradients(states, 0, texts, wanted=wanted, relevance=0)
    for i in (0, 5, 6, count - 3, count - 1):
        alone = vit.gradients(states, 0, texts[i : i + 1], wanted=wanted, relevance=0)
        close(together["scores"][:, i : i + 1], alone["scores"], 1e-6)
        close(together["relevance"][i : i + 1], alone["relevance"], 1e-5)
        for what, block in wanted:
            one = slice(None) if what in ("class_attention", "key_cosine") else slice(i, i + 1)
            close(together[what][block][one], alone[what][block], 1e-5)
    last = vit.gradients(states, 0, texts, wanted=[("class_gradient", 2)])["class_gradient"][2]
    close(last[4], vit.gradients(states, 0, texts[4:5], wanted=[("class_gradient", 2)])["class_gradient"][2][0], 1e-5)


def test_what_is_asked_for_does_not_change_the_rest() -> None:
    config = settings("clip")
    vit, _ = make(config)
    given = asked(config, vit)
    wanted = everything(vit, config)
    every = vit.gradients(given["states"], 0, given["texts"], wanted=wanted, relevance=0)
    for what, block in wanted:
        alone = vit.gradients(given["states"], 0, given["texts"], wanted=[(what, block)])
        assert set(alone) == {"scores", "image", what}
        close(alone[what][block], every[what][block], 1e-6)
    later = vit.forward(normal(2, 3, 12, 12), hidden=[0, 2])["hidden"]
    close(
        vit.gradients(later[2], 2, given["texts"], wanted=[("gradcam", 2)])["gradcam"][2],
        vit.gradients(later[0], 0, given["texts"], wanted=[("gradcam", 2)])["gradcam"][2], 1e-5,
    )  # fmt: skip


@pytest.mark.every_level
@pytest.mark.parametrize("device", ["cpu", "cuda-host"])
@pytest.mark.parametrize("name", [name for name in TOWERS if name != "qavit"])
def test_what_legrad_reads_of_a_picture_gives_the_same_bits_for_other_texts(name: str, device: str) -> None:
    config = settings(name)
    vit, _ = make(config, device=device)
    given = asked(config, vit)
    texts, wanted = given.get("texts"), [("legrad", 1), ("legrad", 2)]
    kept = vit.gradients(given["states"], 1, None if texts is None else texts[:1], wanted=wanted, keep=True)["kept"]
    assert kept.shape[0] == 2
    for own in (slice(None), slice(1, 2)):
        asked_now = None if texts is None else texts[own]
        whole = vit.gradients(given["states"], 1, asked_now, wanted=wanted)
        known = vit.gradients(None, 1, asked_now, wanted=wanted, kept=kept)
        assert set(whole) == set(known) == {"scores", "image", "legrad"}
        for what in ("scores", "image"):
            np.testing.assert_array_equal(known[what], whole[what])
        for block in (1, 2):
            np.testing.assert_array_equal(known["legrad"][block], whole["legrad"][block])
    one = vit.gradients(given["states"][1:], 1, texts, wanted=wanted, keep=True)["kept"]
    np.testing.assert_array_equal(one[0], kept[1])


def test_what_is_kept_is_for_legrad_of_the_same_blocks() -> None:
    vit, _ = make(settings("clip"))
    given = asked(settings("clip"), vit)
    states, texts, wanted = given["states"], given["texts"], [("legrad", 2)]
    kept = vit.gradients(states, 1, texts, wanted=wanted, keep=True)["kept"]
    assert "kept" not in vit.gradients(states, 1, texts[:0], wanted=wanted, keep=True)
    for arguments, options, message in (
        ((states, 1, texts), {"wanted": wanted, "kept": kept}, "states and kept are both given, expected one of them"),
        ((None, 1, texts), {"wanted": [("legrad", 1), *wanted], "kept": kept}, r"kept has shape \[2, \d+\], expected \[N, "),
        ((None, 1, texts), {"wanted": [("gradcam", 2), *wanted], "kept": kept}, "is for legrad alone, without a question"),
        ((states, 1, texts), {"wanted": wanted, "keep": True, "relevance": 1}, "is for legrad alone, without a question"),
        ((states, 1, texts), {"keep": True}, "is for legrad alone, without a question"),
    ):
        with pytest.raises(ValueError, match=message):
            vit.gradients(*arguments, **options)


def test_nothing_to_differentiate() -> None:
    config = settings("clip")
    vit, _ = make(config)
    given = asked(config, vit)
    none = vit.gradients(given["states"][:0], 0, given["texts"], wanted=[("legrad", 0)])
    assert none["legrad"][0].shape == (0, 3, 10)
    assert vit.gradients(given["states"], 0, given["texts"][:0])["scores"].shape == (2, 0)


def test_bad_input_is_refused() -> None:
    vit, _ = make(settings("clip"))
    given = asked(settings("clip"), vit)
    states, texts = given["states"], given["texts"]
    for arguments, options, message in (
        ((states[:, 1:], 0, texts), {}, r"states has shape \[2, 9, 24\], expected \[N, 10, 24\]"),
        ((states, 3, texts), {}, "first: block 3 does not exist; this model has blocks 0 to 2"),
        ((states, 0, texts[:, 1:]), {}, "texts are 9 wide, expected 10"),
        ((states, 0), {}, "no answers whose scores could be taken"),
        ((states, 0, texts), {"paired": True}, "3 texts for 2 pictures, expected one each"),
        ((states, 0, texts), {"score": "logit"}, "score: 'logit', expected cosine or softmax"),
        ((states, 1, texts), {"relevance": 0}, "relevance from block 0, but states are of block 1"),
        ((states, 1, texts), {"wanted": [("legrad", 0)]}, "wanted: legrad of block 0, expected a block from 1 to 2"),
        ((states, 0, texts), {"wanted": [("class_gradient", 3)]}, "block 3 would be the attention head's"),
        ((states, 0, texts), {"wanted": [("legrad", 0)] * 2}, "legrad of block 0 is asked for twice"),
        ((states, 0, texts), {"wanted": [("maps", 0)]}, "wanted: 'maps' is unknown"),
        ((states, 0, texts), {"single_head": 4}, "single_head: block 4 does not exist"),
        ((states, 0, texts), {"instruct": normal(2, 5, 3)}, r"instruct has shape \[2, 5, 3\], expected \[2, tokens, 0\]"),
    ):
        with pytest.raises(ValueError, match=message):
            vit.gradients(*arguments, **options)
    with pytest.raises(TypeError, match=r"wanted: expected \(name, block\) pairs"):
        vit.gradients(states, 0, texts, wanted=["legrad"])
    siglip, _ = make(settings("siglip"))
    given = asked(settings("siglip"), siglip)
    for options in ({"relevance": 0}, {"wanted": [("class_gradient", 0)]}):
        with pytest.raises(ValueError, match="no class token"):
            siglip.gradients(given["states"], 0, given["texts"], **options)
    qavit, _ = make(settings("qavit"))
    given = asked(settings("qavit"), qavit)
    with pytest.raises(ValueError, match="take a question, and none was given"):
        qavit.gradients(given["states"], 0, given["texts"])


def test_threads_do_not_change_the_result() -> None:
    config = settings("gated, scaled, turned")
    vit, _ = make(config)
    given = asked(config, vit)
    threads, results = _core.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            _core.set_num_threads(count)
            results.append(vit.gradients(given["states"], 0, given["texts"], wanted=everything(vit, config)))
    finally:
        _core.set_num_threads(threads)
    for other in results[1:]:
        for what, block in everything(vit, config):
            close(other[what][block], results[0][what][block], 1e-6)
