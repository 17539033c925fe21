"""The text encoders of the core, against transformers, the public code's numbers, and bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from qavit import _core

GOLDEN = Path(__file__).parent / "data" / "golden"
# Of the largest state. The largest difference seen at random configurations is 6.1e-6: T5's scores are large, as they
# are not divided by sqrt(d), and so are the derivatives of their softmax.
TOLERANCE = 3e-5
FEW = settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.generate])


def as_weights(arrays: dict[str, np.ndarray], prefix: str = "text_model.") -> dict[str, tuple[Any, str, tuple, int]]:
    """A weights dict for the core from arrays under Hugging Face's names."""
    return {prefix + name: (np.ascontiguousarray(a), "float32", a.shape, 0) for name, a in arrays.items()}


def arrays_of(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}


def randomised(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """The model with weights large enough that every part of it moves the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if parameter.dim() == 1 else 1.5 * noise / parameter.shape[-1] ** 0.5)
    return model.eval()


def ragged(vocabulary: int, B: int, M: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random ids [B, M] and a mask whose rows have lengths from 1 to M, the first of them M."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, vocabulary, (B, M)).astype(np.int32)
    lengths = np.concatenate([[M], rng.integers(1, M + 1, B - 1)])
    return ids, (np.arange(M) < lengths[:, None]).astype(np.uint8)


def transformers_states(model: torch.nn.Module, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        output = model(
            input_ids=torch.tensor(ids, dtype=torch.long), attention_mask=torch.tensor(mask, dtype=torch.long)
        )
    return output.last_hidden_state.numpy() * mask[..., None]


def assert_states_match(encoder: Any, model: torch.nn.Module, ids: np.ndarray, mask: np.ndarray) -> None:
    states = encoder.encode(ids, mask)
    expected = transformers_states(model, ids, mask)
    assert states.dtype == np.float32
    assert states.shape == expected.shape
    assert np.abs(states - expected).max() <= TOLERANCE * np.abs(expected).max()
    assert not states[mask == 0].any()
    for b, length in enumerate(mask.sum(axis=1)):
        alone = encoder.encode(ids[b : b + 1, :length])
        # At most 1.1e-6 of the largest state: products over other numbers of rows round differently.
        assert np.abs(alone[0] - states[b, :length]).max() <= 4e-6 * np.abs(expected).max()


def t5_model(seed: int = 0, **config: Any) -> torch.nn.Module:
    sizes = {"vocab_size": 37, "d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 3}
    sizes["feed_forward_proj"] = "gated-gelu"
    return randomised(transformers.T5EncoderModel(transformers.T5Config(**{**sizes, **config})), seed)


def t5_encoder(model: torch.nn.Module, **options: Any) -> _core.T5Encoder:
    return _core.T5Encoder(model.config.to_dict(), as_weights(arrays_of(model)), **options)


@FEW
@given(
    d_model=st.sampled_from([7, 16, 17, 33]),
    d_kv=st.sampled_from([1, 3, 7, 8, 16, 17]),
    heads=st.integers(1, 5),
    d_ff=st.sampled_from([1, 15, 63, 64]),
    layers=st.integers(1, 3),
    projection=st.sampled_from(["gated-gelu", "relu", "gelu"]),
    buckets=st.sampled_from([4, 7, 8, 32]),
    reach=st.sampled_from([9, 16, 128]),
    tokens=st.integers(1, 65),
    seed=st.integers(0, 99),
)
def test_t5_matches_transformers(
    d_model: int, d_kv: int, heads: int, d_ff: int, layers: int, projection: str, buckets: int, reach: int, tokens: int,
    seed: int,
) -> None:  # fmt: skip
    model = t5_model(
        seed, d_model=d_model, d_kv=d_kv, num_heads=heads, d_ff=d_ff, num_layers=layers, feed_forward_proj=projection,
        relative_attention_num_buckets=buckets, relative_attention_max_distance=reach,
    )  # fmt: skip
    assert_states_match(t5_encoder(model), model, *ragged(37, 3, tokens, seed))


@pytest.mark.parametrize("tokens", [129, 512])
def test_t5_reaches_past_the_largest_distance(tokens: int) -> None:
    model = t5_model(3)
    assert_states_match(t5_encoder(model), model, *ragged(37, 2, tokens, 1))


def public_t5(case: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A golden case's T5: its config, and the question path's weights with LoRA merged."""
    folder = GOLDEN / case
    facts = json.loads((folder / "cases.json").read_text())
    scale = facts["lora_alpha"] / facts["lora_r"]
    checkpoint = torch.load(folder / "checkpoint.pth", map_location="cpu", weights_only=False)["model"]
    start = "base_model.model."
    tensors = {name[len(start) :]: tensor for name, tensor in checkpoint.items() if name.startswith(start)}
    weights = {}
    for name, tensor in tensors.items():
        if not name.startswith(("shared.weight", "encoder.")) or "lora" in name or "embed_tokens" in name:
            continue
        stem = name[: -len("weight")]
        if stem + "lora_A.default.weight" in tensors:
            tensor = tensor + scale * tensors[stem + "lora_B.default.weight"] @ tensors[stem + "lora_A.default.weight"]
        if stem + "lora_embedding_A.default" in tensors:
            merged = tensors[stem + "lora_embedding_B.default"] @ tensors[stem + "lora_embedding_A.default"]
            tensor = tensor + scale * merged.T
        weights[name] = tensor.float().numpy()
    return json.loads((folder / "t5" / "config.json").read_text()), weights


@pytest.mark.parametrize("case", ["qavit_official_late", "qavit_official_early"])
def test_t5_gives_the_public_codes_question_states(case: str) -> None:
    config, weights = public_t5(case)
    encoder = _core.T5Encoder(config, as_weights(weights))
    golden = np.load(GOLDEN / case / "golden.npz")
    for n in range(3):
        expected = golden[f"q{n}_instruct"]
        states = encoder.encode(golden[f"q{n}_ids"])
        # The largest difference is 5.1e-6 of the largest state.
        assert np.abs(states - expected).max() <= 2e-5 * np.abs(expected).max()
    mask = golden["batch_mask"]
    states, expected = encoder.encode(golden["batch_ids"], mask), golden["batch_instruct"] * mask[..., None]
    assert np.abs(states - expected).max() <= 2e-5 * np.abs(expected).max()
