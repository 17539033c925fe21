"""The demo's QA-ViT in PyTorch, for training. Parameter names are those of the exported file.

1. Vision tower (CLIP's blocks): 96 x 96 pixels in 8 x 8 patches, T = 1 + 144 tokens, width D, L blocks.
   Blocks 0 to L/2 - 1 see the image alone and run once an image.
2. Integrated blocks L/2 to L - 1 run once a question: keys and values of the M question tokens stand before the T
   visual ones. The last block computes the class token alone, because nothing reads its patches.
3. Text encoder (T5's): word-level tokens, relative positions, gated GELU.
4. Answer head on the normed class token.

Each integrated block also hands out its class token's attention scores, which training supervises.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    """Sizes of the two towers."""

    image_size: int = 96
    patch_size: int = 8
    width: int = 96
    blocks: int = 12
    heads: int = 4
    feed_forward: int = 384
    text_width: int = 96
    text_blocks: int = 2
    text_heads: int = 4
    text_feed_forward: int = 192
    vocabulary: int = 256
    answers: int = 32

    @property
    def grid(self) -> int:
        """Patches a side."""
        return self.image_size // self.patch_size

    @property
    def first_integrated(self) -> int:
        """The first block that sees the question (late integration)."""
        return self.blocks // 2

    def as_dict(self) -> dict[str, int]:
        """For a checkpoint."""
        return asdict(self)


class Attention(nn.Module):
    """Multi-head attention; an integrated one has a second output projection behind a gate."""

    def __init__(self, c: Config, integrated: bool) -> None:
        super().__init__()
        self.heads = c.heads
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, nn.Linear(c.width, c.width))
        if integrated:
            self.instruction_out_proj = nn.Linear(c.width, c.width)
            self.instruction_proj_gate = nn.Parameter(torch.tensor([0.5]))

    def split(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, H, T, d]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """One pre-norm block."""

    def __init__(self, c: Config, integrated: bool) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(c.width)
        self.self_attn = Attention(c, integrated)
        self.layer_norm2 = nn.LayerNorm(c.width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(c.width, c.feed_forward), "fc2": nn.Linear(c.feed_forward, c.width)})
        if integrated:
            self.instruct_dim_reduce = nn.Sequential(
                nn.LayerNorm(c.text_width),
                nn.Linear(c.text_width, c.width, bias=False),
                nn.GELU(),
                nn.Linear(c.width, c.width, bias=False),
            )

    def feed_forward(self, x: Tensor) -> Tensor:
        """Residual feed-forward half."""
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.layer_norm2(x))))

    def forward(self, x: Tensor) -> Tensor:
        """Question-blind block, [B, T, D] -> [B, T, D]."""
        a, h = self.self_attn, self.layer_norm1(x)
        o = F.scaled_dot_product_attention(a.split(a.q_proj(h)), a.split(a.k_proj(h)), a.split(a.v_proj(h)))
        return self.feed_forward(x + a.out_proj(o.transpose(1, 2).flatten(2)))

    def integrated(self, x: Tensor, instruct: Tensor, mask: Tensor, class_only: bool) -> tuple[Tensor, Tensor]:
        """Block that sees the question.

        x [N, T, D], instruct [N, M, Dt], mask [N, 1, 1, M + T] additive. Returns the output ([N, T, D], or [N, 1, D]
        where `class_only`) and the class token's scores [N, H, M + T].
        """
        a, h = self.self_attn, self.layer_norm1(x)
        keys = torch.cat([self.instruct_dim_reduce(instruct).to(h.dtype), h], dim=1)
        k, v = a.split(a.k_proj(keys)), a.split(a.v_proj(keys))
        if class_only:
            x, h = x[:, :1], h[:, :1]
        q = a.split(a.q_proj(h))
        scores = (q[:, :, :1] @ k.transpose(2, 3)).float() / math.sqrt(q.shape[-1]) + mask
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype)).transpose(1, 2).flatten(2)
        x = x + a.out_proj(o) + torch.tanh(a.instruction_proj_gate) * a.instruction_out_proj(o)
        return self.feed_forward(x), scores[:, :, 0]


def place_codes(grid: int, width: int) -> Tensor:
    """Random smooth functions of row and column [P, D], as large as a patch's content: a small start is drowned by it."""
    waves = torch.arange(1, 9)
    axis = torch.cos(math.pi * waves * (torch.arange(grid)[:, None] + 0.5) / grid) / waves.sqrt()
    codes = torch.cat([axis.repeat(grid, 1), axis.repeat_interleave(grid, 0)], dim=1) @ torch.randn(2 * len(waves), width)
    return 0.5 * codes / codes.std()


class Embeddings(nn.Module):
    """Patches, class token, positions."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(0.02 * torch.randn(c.width))
        self.patch_embedding = nn.Conv2d(3, c.width, c.patch_size, c.patch_size, bias=False)
        self.position_embedding = nn.Embedding(1 + c.grid**2, c.width)
        with torch.no_grad():
            self.position_embedding.weight[0].normal_(std=0.02)
            self.position_embedding.weight[1:] = place_codes(c.grid, c.width)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, T, D]."""
        p = self.patch_embedding.kernel_size[0]
        b, g = pixels.shape[0], pixels.shape[2] // p
        patches = pixels.unflatten(2, (g, p)).unflatten(4, (g, p)).permute(0, 2, 4, 1, 3, 5).reshape(b, g * g, -1)
        x = patches @ self.patch_embedding.weight.flatten(1).t()
        x = torch.cat([self.class_embedding.to(x.dtype).expand(b, 1, -1), x], dim=1)
        return x + self.position_embedding.weight


class Vision(nn.Module):
    """The vision tower."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.embeddings = Embeddings(c)
        self.pre_layrnorm = nn.LayerNorm(c.width)
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(Block(c, i >= c.first_integrated) for i in range(c.blocks))})
        self.post_layernorm = nn.LayerNorm(c.width)


class RMSNorm(nn.Module):
    """x / sqrt(mean x^2 + eps) * weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        return x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


def relative_buckets(length: int, buckets: int = 32, furthest: int = 128) -> Tensor:
    """T5's bidirectional buckets [length, length] of (key position - query position)."""
    at = torch.arange(length)
    offset = at[None, :] - at[:, None]
    half, exact = buckets // 2, buckets // 4
    distance = offset.abs()
    far = exact + (torch.log(distance.clamp(min=1).float() / exact) / math.log(furthest / exact) * (half - exact)).long()
    return (offset > 0).long() * half + torch.where(distance < exact, distance, far.clamp(max=half - 1))


class TextBlock(nn.Module):
    """One T5 encoder block: attention without 1/sqrt(d), gated feed-forward."""

    def __init__(self, c: Config, first: bool) -> None:
        super().__init__()
        d, f = c.text_width, c.text_feed_forward
        attention = nn.ModuleDict({name: nn.Linear(d, d, bias=False) for name in "qkvo"})
        nn.init.normal_(attention["q"].weight, std=d**-0.5 * (d // c.text_heads) ** -0.5)
        if first:
            attention["relative_attention_bias"] = nn.Embedding(32, c.text_heads)
            nn.init.normal_(attention["relative_attention_bias"].weight, std=0.5)
        dense = nn.ModuleDict(
            {"wi_0": nn.Linear(d, f, bias=False), "wi_1": nn.Linear(d, f, bias=False), "wo": nn.Linear(f, d, bias=False)}
        )
        self.layer = nn.ModuleList(
            [
                nn.ModuleDict({"SelfAttention": attention, "layer_norm": RMSNorm(d)}),
                nn.ModuleDict({"DenseReluDense": dense, "layer_norm": RMSNorm(d)}),
            ]
        )

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x [N, M, D], bias [N, H, M, M] -> [N, M, D]."""
        a, h = self.layer[0]["SelfAttention"], self.layer[0]["layer_norm"](x)
        q, k, v = (a[name](h).unflatten(-1, (bias.shape[1], -1)).transpose(1, 2) for name in "qkv")
        probabilities = torch.softmax((q @ k.transpose(2, 3)).float() + bias, dim=-1).to(v.dtype)
        x = x + a["o"]((probabilities @ v).transpose(1, 2).flatten(2))
        m, h = self.layer[1]["DenseReluDense"], self.layer[1]["layer_norm"](x)
        return x + m["wo"](F.gelu(m["wi_0"](h), approximate="tanh") * m["wi_1"](h))


class Text(nn.Module):
    """T5's encoder."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.shared = nn.Embedding(c.vocabulary, c.text_width)
        self.encoder = nn.ModuleDict(
            {
                "block": nn.ModuleList(TextBlock(c, i == 0) for i in range(c.text_blocks)),
                "final_layer_norm": RMSNorm(c.text_width),
            }
        )

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids [N, M], mask [N, M] (1 is a word) -> [N, M, Dt]."""
        first = self.encoder["block"][0].layer[0]["SelfAttention"]["relative_attention_bias"]
        bias = first(relative_buckets(ids.shape[1])).permute(2, 0, 1)[None] + (1 - mask.float())[:, None, None, :] * -1e9
        x = self.shared(ids)
        for block in self.encoder["block"]:
            x = block(x, bias)
        return self.encoder["final_layer_norm"](x)


class DemoModel(nn.Module):
    """Vision tower, text encoder and answer head."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.config = c
        self.vision_model = Vision(c)
        self.text_model = Text(c)
        self.answer_head = nn.Linear(c.width, c.answers)

    def see(self, pixels: Tensor) -> list[Tensor]:
        """Question-blind half: pixels [B, 3, S, S], normalised -> the output [B, T, D] of every blind block."""
        x = self.vision_model.pre_layrnorm(self.vision_model.embeddings(pixels))
        states = []
        for layer in self.vision_model.encoder["layers"][: self.config.first_integrated]:
            x = layer(x)
            states.append(x)
        return states

    def look(self, x: Tensor, ids: Tensor, mask: Tensor, depth: int | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """Question-aware half.

        x [N, T, D] (each image's state repeated for its questions), ids and mask [N, M]; `depth` stops after so many
        integrated blocks. Returns the integrated blocks' outputs ([N, T, D]; the last [N, 1, D]) and their class rows'
        scores over the patches, [N, H, P].
        """
        instruct = self.text_model(ids, mask)
        words = ids.shape[1]
        full = F.pad((1 - mask.float()) * -1e9, (0, x.shape[1]))[:, None, None, :]
        states, rows = [], []
        layers = self.vision_model.encoder["layers"][self.config.first_integrated :][:depth]
        for i, layer in enumerate(layers):
            x, scores = layer.integrated(x, instruct, full, i == len(layers) - 1)
            states.append(x)
            rows.append(scores[:, :, words + 1 :])
        return states, rows

    def answer(self, state: Tensor) -> Tensor:
        """Answer logits [N, A] of a block's output [N, T, D]."""
        return self.answer_head(self.vision_model.post_layernorm(state[:, 0]))
