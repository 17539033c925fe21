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
