"""QA-ViT in PyTorch on top of Hugging Face's CLIP, written from the paper's equations: an oracle for the core."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel


def integrated_blocks(point: str, blocks: int) -> list[int]:
    rules = {
        "all": lambda i: True,
        "early": lambda i: i < blocks // 2,
        "late": lambda i: i >= blocks // 2,
        "late2": lambda i: i >= 3 * blocks // 4,
        "late3": lambda i: i >= blocks // 4,
        "sparse": lambda i: i % 2 == 0,
    }
    return [i for i in range(blocks) if rules[point](i)]


def random_model(config: dict[str, Any], point: str | None, instruction_dim: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """The state of a CLIP vision model and of the question's layers, names with the prefix vision_model."""
    torch.manual_seed(seed)
    model = CLIPVisionModel(CLIPVisionConfig(**config))
    state = {
        (name if name.startswith("vision_model.") else "vision_model." + name): tensor.detach().clone()
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
    }
    # Hugging Face's initial biases are zero and its norms one: random ones show a forgotten bias.
    for name, tensor in state.items():
        if name.endswith("bias") or "norm" in name:
            tensor += 0.1 * torch.randn_like(tensor)
    width = config["hidden_size"]
    for i in integrated_blocks(point, config["num_hidden_layers"]) if point else []:
        block = f"vision_model.encoder.layers.{i}."
        hidden = (instruction_dim + width) // 2
        state[block + "instruct_dim_reduce.0.weight"] = 1 + 0.1 * torch.randn(instruction_dim)
        state[block + "instruct_dim_reduce.0.bias"] = 0.1 * torch.randn(instruction_dim)
        state[block + "instruct_dim_reduce.1.weight"] = torch.randn(hidden, instruction_dim) * instruction_dim**-0.5
        state[block + "instruct_dim_reduce.3.weight"] = torch.randn(width, hidden) * hidden**-0.5
        state[block + "self_attn.instruction_out_proj.weight"] = torch.randn(width, width) * width**-0.5
        state[block + "self_attn.instruction_out_proj.bias"] = 0.1 * torch.randn(width)
        state[block + "self_attn.instruction_proj_gate"] = torch.tensor([0.7])
    return state


ACTIVATIONS = {
    "gelu": torch.nn.functional.gelu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu_new": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "relu": torch.relu,
}


def forward(
    state: dict[str, torch.Tensor], config: dict[str, Any], images: torch.Tensor, instruct: torch.Tensor | None
) -> dict[str, Any]:
    """Hidden states, attentions and pooled output of images [B, 3, S, S], each with its question [B, M, Dt] (no padding)."""

    def get(name: str) -> torch.Tensor:
        return state["vision_model." + name]

    def norm(x: torch.Tensor, name: str, eps: float) -> torch.Tensor:
        return torch.nn.functional.layer_norm(x, x.shape[-1:], get(name + ".weight"), get(name + ".bias"), eps)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return torch.nn.functional.linear(x, get(name + ".weight"), state.get(f"vision_model.{name}.bias"))

    eps, heads = config.get("layer_norm_eps", 1e-5), config["num_attention_heads"]
    act = ACTIVATIONS[config["hidden_act"]]
    patches = torch.nn.functional.conv2d(images, get("embeddings.patch_embedding.weight"), stride=config["patch_size"])
    x = torch.cat(
        [get("embeddings.class_embedding").expand(len(images), 1, -1), patches.flatten(2).transpose(1, 2)], dim=1
    )
    x = norm(x + get("embeddings.position_embedding.weight"), "pre_layrnorm", eps)

    def split(y: torch.Tensor) -> torch.Tensor:
        return y.unflatten(-1, (heads, -1)).transpose(1, 2)

    hidden, attentions = [x], []
    for i in range(config["num_hidden_layers"]):
        block = f"encoder.layers.{i}."
        normed = norm(x, block + "layer_norm1", eps)
        keys = normed
        integrated = f"vision_model.{block}self_attn.instruction_proj_gate" in state
        if integrated:
            assert instruct is not None
            z = norm(instruct, block + "instruct_dim_reduce.0", 1e-5)
            z = torch.nn.functional.gelu(linear(z, block + "instruct_dim_reduce.1"))
            keys = torch.cat([linear(z, block + "instruct_dim_reduce.3"), normed], dim=1)
        q = split(linear(normed, block + "self_attn.q_proj"))
        k, v = (split(linear(keys, f"{block}self_attn.{kind}_proj")) for kind in "kv")
        probabilities = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)
        o = (probabilities @ v).transpose(1, 2).flatten(2)
        out = linear(o, block + "self_attn.out_proj")
        if integrated:
            gate = torch.tanh(get(block + "self_attn.instruction_proj_gate"))
            out = out + gate * linear(o, block + "self_attn.instruction_out_proj")
        x = x + out
        x = x + linear(act(linear(norm(x, block + "layer_norm2", eps), block + "mlp.fc1")), block + "mlp.fc2")
        hidden.append(x)
        attentions.append(probabilities)
    return {"hidden": hidden, "attentions": attentions, "pooled": norm(x[:, 0], "post_layernorm", eps)}
