"""BLIP-VQA against transformers' BlipForQuestionAnswering: states, answers, and the answer's gradient by autograd."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from reference import close
from test_blip import config_of, questions, weights_of

from qavit import _core

Array = Any
# Of the largest value.
STATES, MAPS = 1e-5, 1e-4
BFLOAT16 = 4e-2


def huggingface_model(vision: dict[str, int], text: dict[str, int], seed: int) -> Any:
    """A random model whose attention is far from uniform."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.BlipConfig(
        vision_config={"hidden_act": "gelu", "layer_norm_eps": 1e-6, **vision},
        text_config={
            "hidden_act": "gelu", "encoder_hidden_size": vision["hidden_size"], "max_position_embeddings": 40,
            "bos_token_id": 1, "sep_token_id": 2, "eos_token_id": 2, "pad_token_id": 0, **text,
        },
    )  # fmt: skip
    model = transformers.BlipForQuestionAnswering(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if re.search("norm", name, re.IGNORECASE):
                parameter.add_(0.1 * torch.randn(parameter.shape))
            else:
                fan = parameter.shape[-1] if parameter.dim() > 1 else 4 * parameter.numel()
                parameter.copy_(torch.randn(parameter.shape) * 1.2 * fan**-0.5)
    return model


# vision, text and picture sizes (the decoder reads questions as wide as pictures); question lengths
SIZES = [
    (
        {"hidden_size": 36, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3},
        {"hidden_size": 36, "intermediate_size": 44, "num_hidden_layers": 4, "num_attention_heads": 6, "vocab_size": 50},
        {"image_size": 32, "patch_size": 8},
        [3, 7, 4],
    ),
    (
        {"hidden_size": 21, "intermediate_size": 17, "num_hidden_layers": 1, "num_attention_heads": 7},
        {"hidden_size": 21, "intermediate_size": 9, "num_hidden_layers": 3, "num_attention_heads": 1, "vocab_size": 9},
        {"image_size": 15, "patch_size": 5},
        [35, 3],
    ),
    (
        {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 1},
        {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 2, "vocab_size": 300},
        {"image_size": 112, "patch_size": 16},
        [9, 12, 17, 33],
    ),
]
EACH_SIZE = pytest.mark.parametrize(("vision", "text", "image", "lengths"), SIZES, ids=["small", "odd", "wide"])


def random_pixels(size: int, count: int = 1) -> Array:
    return np.random.default_rng(2).standard_normal((count, 3, size, size), np.float32)


def encode(model: Any, pixels: Array, ids: Array, length: int) -> Any:
    """The question encoder of transformers on one question: its output, with attentions."""
    with torch.no_grad():
        images = model.vision_model(torch.from_numpy(pixels)[None].to(next(model.parameters()).dtype)).last_hidden_state
    return model.text_encoder(
        input_ids=torch.from_numpy(ids[None, :length]).long(),
        encoder_hidden_states=images,
        encoder_attention_mask=torch.ones(images.shape[:2]),
        output_attentions=True,
        return_dict=True,
    )


def token_maps(out: Any, block: int) -> Array:
    """[n, P]: mean over heads of A max(G, 0), without the class column."""
    probabilities = out.cross_attentions[block]
    found = (probabilities * probabilities.grad.clamp(min=0)).mean(dim=1)[0, :, 1:]
    return found.detach().double().numpy()


# ---- the question encoder ----


@pytest.mark.every_level
@EACH_SIZE
def test_question_states_and_their_gradient(
    vision: dict[str, int], text: dict[str, int], image: dict[str, int], lengths: list[int]
) -> None:
    model = huggingface_model({**vision, **image}, text, seed=len(lengths))
    core = _core.BlipQuestionEncoder(config_of(model), weights_of(model))
    model.double()
    ids, mask = questions(text["vocab_size"], lengths, seed=1)
    (pixels,) = random_pixels(image["image_size"])
    state = core.encode_image(pixels)
    states = core.encode_questions(state, ids, mask)
    d_states = np.random.default_rng(3).standard_normal(states.shape, np.float32)
    start = np.concatenate([[0], np.cumsum(lengths)])
    found = {block: core.gradcam(state, ids, mask, block, d_states) for block in range(text["num_hidden_layers"])}
    for i, length in enumerate(lengths):
        rows = slice(start[i], start[i + 1])
        out = encode(model, pixels, ids[i], length)
        close(states[rows], out.last_hidden_state[0].detach().numpy(), STATES)
        for probabilities in out.cross_attentions:
            probabilities.retain_grad()
        out.last_hidden_state.backward(torch.from_numpy(d_states[None, rows]).double())
        for block, (maps, logits, tokens) in found.items():
            expected = token_maps(out, block)
            assert logits is None
            close(tokens[rows], expected, MAPS / 2)
            close(maps[i], expected[1:-1].mean(axis=0), MAPS / 2)


# ---- the answer decoder ----


def decoder_of(model: Any, **options: Any) -> Any:
    text = model.config.text_config
    config = {
        "model_type": "bert", "num_attention_heads": text.num_attention_heads, "encoder_width": text.hidden_size,
    }  # fmt: skip
    return _core.Decoder(config, weights_of(model), prefix="text_decoder.", **options)


def teacher_forced(model: Any, states: Array, ids: Array) -> tuple[Array, Array]:
    """The log-probabilities of ids[1:] by transformers, and their sum's gradient with respect to the states."""
    read = torch.from_numpy(states[None]).double().requires_grad_()
    logits = model.text_decoder(
        input_ids=torch.from_numpy(ids[None, :-1]).long(),
        encoder_hidden_states=read,
        encoder_attention_mask=torch.ones(read.shape[:2]),
    ).logits[0]
    chosen = torch.log_softmax(logits, dim=1)[torch.arange(len(ids) - 1), torch.from_numpy(ids[1:]).long()]
    chosen.sum().backward()
    assert read.grad is not None
    return chosen.detach().numpy(), read.grad[0].numpy()


@pytest.mark.every_level
@EACH_SIZE
def test_gradient_of_the_states_that_a_decoder_reads(
    vision: dict[str, int], text: dict[str, int], image: dict[str, int], lengths: list[int]
) -> None:
    model = huggingface_model({**vision, **image}, text, seed=len(lengths))
    decoder = decoder_of(model)
    model.double()
    random = np.random.default_rng(4)
    states = random.standard_normal((sum(lengths), text["hidden_size"]), np.float32)
    ids_lengths = np.array([2, 39, 5, 3][: len(lengths)])
    ids = random.integers(0, text["vocab_size"], (len(lengths), int(ids_lengths.max())))
    found, gradient = decoder.gradient(states, lengths, ids, ids_lengths)
    parts = np.split(found, np.cumsum(ids_lengths - 1)[:-1])
    for part, own, rows, length, count in zip(
        parts, np.split(states, np.cumsum(lengths)[:-1]), np.split(gradient, np.cumsum(lengths)[:-1]), ids, ids_lengths
    ):
        log_probabilities, expected = teacher_forced(model, own, length[:count])
        close(part, log_probabilities, MAPS / 2)
        close(rows, expected, MAPS / 2)


def test_gradient_by_finite_differences() -> None:
    vision, text, image, _ = SIZES[0]
    decoder = decoder_of(huggingface_model({**vision, **image}, text, seed=3))
    random = np.random.default_rng(5)
    states = random.standard_normal((4, 36), np.float32)
    ids, count = np.array([[1, 7, 30, 2]]), np.array([4])
    _, gradient = decoder.gradient(states, [4], ids, count)
    direction = random.standard_normal(states.shape)
    direction /= np.abs(direction).max()
    step = 1e-2
    above, below = (
        decoder.gradient((states + sign * step * direction).astype(np.float32), [4], ids, count)[0].sum(dtype=np.float64)
        for sign in (1, -1)
    )
    assert (above - below) / (2 * step) == pytest.approx(float((gradient * direction).sum()), rel=2e-3)


def test_texts_do_not_depend_on_each_other() -> None:
    """More of them than go through the decoder together."""
    vision, text, image, _ = SIZES[0]
    decoder = decoder_of(huggingface_model({**vision, **image}, text, seed=3))
    random = np.random.default_rng(6)
    lengths, ids_lengths = random.integers(1, 9, 40), random.integers(2, 9, 40)
    states = random.standard_normal((int(lengths.sum()), 36), np.float32)
    ids = random.integers(0, 50, (40, 9))
    found, gradient = decoder.gradient(states, lengths, ids, ids_lengths)
    read, told = np.cumsum(lengths), np.cumsum(ids_lengths - 1)
    for i in (0, 7, 21, 39):
        rows, tokens = slice(read[i] - lengths[i], read[i]), slice(told[i] - ids_lengths[i] + 1, told[i])
        alone = decoder.gradient(states[rows], lengths[i : i + 1], ids[i : i + 1], ids_lengths[i : i + 1])
        close(found[tokens], alone[0], MAPS / 10)
        close(gradient[rows], alone[1], MAPS / 10)


def test_bad_gradients() -> None:
    vision, text, image, _ = SIZES[0]
    decoder = decoder_of(huggingface_model({**vision, **image}, text, seed=3))
    states, ids = np.zeros((3, 36), np.float32), np.ones((1, 4), np.int64)
    for arguments, message in (
        ((states[:, :35], [3], ids, [4]), r"states has shape \[3, 35\], expected \[S, 36\]"),
        ((states, [2], ids, [4]), "lengths: expected 1 numbers above 0, whose sum is the number of states"),
        ((states, [3, 0], ids, [4]), "lengths: expected 1 numbers above 0"),
        ((states, [3], ids, [0]), "ids_lengths: expected 1 numbers above 0"),
        ((states, [3], ids, [1]), "text 0 has 1 tokens, expected 2 to 4"),
        ((states, [3], ids, [5]), "text 0 has 5 tokens, expected 2 to 4"),
        ((states, [3], np.ones((1, 42), np.int64), [42]), "text 0 has 42 tokens, expected 2 to 41"),
        ((states, [3], ids * 50, [4]), "ids: text 0 holds 50 at position 0, expected 0 to 49"),
        ((states, [3], -ids, [4]), "ids: text 0 holds -1 at position 0"),
    ):
        with pytest.raises(ValueError, match=message):
            decoder.gradient(*arguments)
    found, gradient = decoder.gradient(states[:0], [], ids[:0], [])
    assert found.shape == (0,)
    assert gradient.shape == (0, 36)
