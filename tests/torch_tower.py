"""A vision tower in PyTorch, from the equations of docs/MODEL.md, in float64: an oracle for its gradients."""

from __future__ import annotations

import math
from typing import Any, Optional

import torch
from torch_qavit import ACTIVATIONS as OF_CLIP

ACTIVATIONS = {**OF_CLIP, "silu": torch.nn.functional.silu}


def random_tower(config: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights by the core's names. What config says beyond the core's own: prefix (1 class token, and registers), gated,
    scaled, projection_dim, answers, integrated, instruction_dim."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: Optional[float] = None) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * (shape[-1] ** -0.5 if scale is None else scale)

    D, F, state = config["hidden_size"], config["intermediate_size"], {}

    def norm(name: str, width: int = D) -> None:
        state[name + ".weight"] = 1 + normal(width, scale=0.2)
        state[name + ".bias"] = normal(width, scale=0.2)

    def linear(name: str, columns: int, depth: int = D, bias: bool = True) -> None:
        state[name + ".weight"] = normal(columns, depth) * 1.5
        if bias:
            state[name + ".bias"] = normal(columns, scale=0.2)

    side, p = config["image_size"] // config["patch_size"], config["patch_size"]
    state["embeddings.patch_embedding.weight"] = normal(D, 3, p, p)
    if config.get("prefix", 1):
        state["embeddings.class_embedding"] = normal(D)
        if config.get("prefix", 1) > 1:
            state["embeddings.register_tokens"] = normal(config["prefix"] - 1, D)
    if not config.get("rope_theta"):
        classes = 1 if config.get("prefix", 1) else 0
        state["embeddings.position_embedding.weight"] = normal(classes + side * side, D)
    for i in range(config["num_hidden_layers"]):
        block = f"encoder.layers.{i}."
        norm(block + "layer_norm1")
        norm(block + "layer_norm2")
        for part in ("q", "k", "v", "out"):
            linear(f"{block}self_attn.{part}_proj", D)
        linear(block + "mlp.fc1", F)
        linear(block + "mlp.fc2", D, F)
        if config.get("gated"):
            linear(block + "mlp.gate", F)
        if config.get("scaled"):
            state[block + "layer_scale1"], state[block + "layer_scale2"] = 1 + normal(D), 1 + normal(D)
        if i in config.get("integrated", ()):
            Dt = config["instruction_dim"]
            norm(block + "instruct_dim_reduce.0", Dt)
            linear(block + "instruct_dim_reduce.1", Dt + 3, Dt, bias=False)
            linear(block + "instruct_dim_reduce.3", D, Dt + 3, bias=False)
            linear(block + "self_attn.instruction_out_proj", D)
            state[block + "self_attn.instruction_proj_gate"] = torch.tensor([0.7])
    norm("post_layernorm")
    if config.get("pooling") == "map":
        state["head.probe"] = normal(D, scale=1.0)
        for part in ("q", "k", "v", "out"):
            linear(f"head.attention.{part}_proj", D)
        norm("head.layernorm")
        linear("head.mlp.fc1", F)
        linear("head.mlp.fc2", D, F)
    state = {"vision_model." + name: tensor for name, tensor in state.items()}
    if config.get("projection_dim"):
        state["visual_projection.weight"] = normal(config["projection_dim"], D)
    if config.get("answers"):
        state["answer_head.weight"], state["answer_head.bias"] = normal(config["answers"], D) * 3, normal(config["answers"])
    return state


class Tower:
    """Of one sequence: every number in float64, what was attended with kept for autograd."""

    def __init__(self, state: dict[str, torch.Tensor], config: dict[str, Any], single_head: Optional[int] = None) -> None:
        self.state = {name.removeprefix("vision_model."): tensor.double() for name, tensor in state.items()}
        self.config, self.single_head = config, config["num_hidden_layers"] if single_head is None else single_head
        self.prefix = config.get("prefix", 1)
        self.act = ACTIVATIONS[config["hidden_act"]]

    def norm(self, x: torch.Tensor, name: str, eps: Optional[float] = None) -> torch.Tensor:
        eps = self.config["layer_norm_eps"] if eps is None else eps
        return torch.nn.functional.layer_norm(
            x, x.shape[-1:], self.state[name + ".weight"], self.state[name + ".bias"], eps
        )

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.state[name + ".weight"], self.state.get(name + ".bias"))

    def rotated(self, x: torch.Tensor) -> torch.Tensor:
        """Patches of x [T, D] turned, a true head at a time."""
        theta, side = self.config.get("rope_theta"), self.config["image_size"] // self.config["patch_size"]
        if not theta:
            return x
        heads = x[self.prefix :].unflatten(-1, (self.config["num_attention_heads"], -1))
        quarter = heads.shape[-1] // 4
        centre = 2 * (torch.arange(side).double() + 0.5) / side - 1
        speeds = 2 * math.pi * theta ** (-torch.arange(quarter).double() / quarter)
        rows, columns = torch.meshgrid(centre, centre, indexing="ij")
        angles = torch.cat([rows.reshape(-1, 1) * speeds, columns.reshape(-1, 1) * speeds], dim=1)[:, None]
        a, b = heads.chunk(2, dim=-1)
        turned = torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], dim=-1)
        return torch.cat([x[: self.prefix], turned.flatten(1)])

    def block(self, x: torch.Tensor, i: int, instruct: Optional[torch.Tensor]) -> dict[str, torch.Tensor]:
        """x [T, D] through block i: what comes out, and what is differentiated on the way."""
        stem = f"encoder.layers.{i}."
        normed = self.norm(x, stem + "layer_norm1")
        q, k, v = (self.linear(normed, f"{stem}self_attn.{part}_proj") for part in "qkv")
        q, k = self.rotated(q), self.rotated(k)
        query, key = q[0], k
        integrated = stem + "self_attn.instruction_proj_gate" in self.state
        if integrated:
            assert instruct is not None
            z = self.linear(self.norm(instruct, stem + "instruct_dim_reduce.0", 1e-5), stem + "instruct_dim_reduce.1")
            z = self.linear(torch.nn.functional.gelu(z), stem + "instruct_dim_reduce.3")
            k = torch.cat([self.linear(z, stem + "self_attn.k_proj"), k])
            v = torch.cat([self.linear(z, stem + "self_attn.v_proj"), v])
        count = 1 if i >= self.single_head else self.config["num_attention_heads"]
        heads = [y.unflatten(-1, (count, -1)).transpose(0, 1) for y in (q, k, v)]
        attention = torch.softmax(heads[0] @ heads[1].transpose(-1, -2) * heads[0].shape[-1] ** -0.5, dim=-1)
        o = (attention @ heads[2]).transpose(0, 1).flatten(1)
        out = self.linear(o, stem + "self_attn.out_proj")
        if integrated:
            gate = torch.tanh(self.state[stem + "self_attn.instruction_proj_gate"])
            out = out + gate * self.linear(o, stem + "self_attn.instruction_out_proj")
        h = x + out * self.state.get(stem + "layer_scale1", 1.0)
        r = self.norm(h, stem + "layer_norm2")
        if stem + "mlp.gate.weight" in self.state:
            hidden = self.act(self.linear(r, stem + "mlp.gate")) * self.linear(r, stem + "mlp.fc1")
        else:
            hidden = self.act(self.linear(r, stem + "mlp.fc1"))
        y = h + self.linear(hidden, stem + "mlp.fc2") * self.state.get(stem + "layer_scale2", 1.0)
        cosines = torch.nn.functional.cosine_similarity(query[None], key, dim=1)
        return {"input": x, "normed": normed, "attention": attention, "key_cosine": cosines, "output": y}

    def head(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """SigLIP's pooled token, and the attention [H, T] of its query."""
        count = self.config["num_attention_heads"]
        q = self.linear(self.state["head.probe"][None], "head.attention.q_proj")
        k, v = (self.linear(tokens, f"head.attention.{part}_proj") for part in "kv")
        heads = [y.unflatten(-1, (count, -1)).transpose(0, 1) for y in (q, k, v)]
        attention = torch.softmax(heads[0] @ heads[1].transpose(-1, -2) * heads[0].shape[-1] ** -0.5, dim=-1)
        y = self.linear((attention @ heads[2]).transpose(0, 1).flatten(1), "head.attention.out_proj")
        hidden = self.act(self.linear(self.norm(y, "head.layernorm"), "head.mlp.fc1"))
        return (y + self.linear(hidden, "head.mlp.fc2"))[0], attention

    def pooled(self, x: torch.Tensor) -> tuple[torch.Tensor, Optional[torch.Tensor]]:
        """Of x [T, D], what leaves the last block, and the head's attention."""
        kind = self.config.get("pooling", "class")
        if kind == "mean_then_norm":
            return self.norm(x[self.prefix :].mean(dim=0), "post_layernorm"), None
        normed = self.norm(x, "post_layernorm")
        if kind == "map":
            return self.head(normed)
        return normed[0] if kind == "class" else normed[self.prefix :].mean(dim=0), None

    def scores(self, pooled: torch.Tensor, texts: Optional[torch.Tensor], softmax: bool, scale: float) -> torch.Tensor:
        """[Q], or [1] of the likeliest answer."""
        if texts is None:
            logits = self.linear(pooled, "answer_head")
            return logits.log_softmax(dim=0).max(dim=0, keepdim=True).values
        y = pooled if "visual_projection.weight" not in self.state else self.linear(pooled, "visual_projection")
        cosines = texts @ (y / y.norm())
        return (scale * cosines).softmax(dim=0) if softmax else scale * cosines

    def run(self, x: torch.Tensor, first: int, instruct: Optional[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        blocks = []
        for i in range(first, self.config["num_hidden_layers"]):
            blocks.append(self.block(x, i, instruct))
            x = blocks[-1]["output"]
        return blocks


