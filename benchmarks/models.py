"""Random models of real sizes: one set of weights for every contender."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .sizes import Size


def clip_model(size: Size) -> Any:
    """Hugging Face's CLIPVisionModel with random weights."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    return CLIPVisionModel(CLIPVisionConfig(**size.config)).eval()


def state_of(model: Any) -> dict[str, torch.Tensor]:
    """A CLIPVisionModel's tensors under the names with the prefix vision_model."""
    return {
        name if name.startswith("vision_model.") else "vision_model." + name: tensor.detach()
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
    }


def add_question_layers(state: dict[str, torch.Tensor], size: Size, width: int, first: int) -> dict[str, torch.Tensor]:
    """The state with QA-ViT's layers in the blocks from `first` on, for question states of `width`."""
    torch.manual_seed(1)
    state, d = dict(state), size.hidden
    for i in range(first, size.blocks):
        block, middle = f"vision_model.encoder.layers.{i}.", (width + d) // 2
        state[block + "instruct_dim_reduce.0.weight"] = torch.ones(width)
        state[block + "instruct_dim_reduce.0.bias"] = torch.zeros(width)
        state[block + "instruct_dim_reduce.1.weight"] = torch.randn(middle, width) / math.sqrt(width)
        state[block + "instruct_dim_reduce.3.weight"] = torch.randn(d, middle) / math.sqrt(middle)
        state[block + "self_attn.instruction_out_proj.weight"] = torch.randn(d, d) / math.sqrt(d)
        state[block + "self_attn.instruction_out_proj.bias"] = torch.zeros(d)
        state[block + "self_attn.instruction_proj_gate"] = torch.tensor([0.5])
    return state


def core_weights(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What the core takes: name -> (buffer, dtype, shape, offset), in place."""
    return {name: (tensor.numpy(), "float32", tuple(tensor.shape), 0) for name, tensor in state.items()}


class ClassMaps(nn.Module):
    """A CLIPVisionModel with eager attention that gives the class token's maps of every block [L, B, h, P]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        attentions = self.model(pixel_values, output_attentions=True, return_dict=True).attentions
        return torch.stack([a[:, :, 0, 1:] for a in attentions])


class QuestionLoop:
    """QA-ViT the way its public code runs it: the whole tower once for each question, attention written out."""

    def __init__(self, state: dict[str, torch.Tensor], size: Size, first: int) -> None:
        self.state, self.size, self.first = state, size, first

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, self.state[f"vision_model.{name}.weight"], self.state.get(f"vision_model.{name}.bias"))

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = (self.state[f"vision_model.{name}.{kind}"] for kind in ("weight", "bias"))
        return functional.layer_norm(x, x.shape[-1:], weight, bias, 1e-5)

    @torch.no_grad()
    def __call__(self, image: torch.Tensor, instruct: torch.Tensor, block: int, stop: bool = False) -> torch.Tensor:
        """The class token's map [h, P] of `block` for one question [1, M, Dt].

        The public code runs every block whichever map is wanted; `stop` ends behind that block's attention instead.
        """
        size, embeddings = self.size, "vision_model.embeddings."
        x = functional.conv2d(image, self.state[embeddings + "patch_embedding.weight"], stride=size.patch)
        first = self.state[embeddings + "class_embedding"].expand(1, 1, -1)
        x = torch.cat([first, x.flatten(2).transpose(1, 2)], dim=1)
        x = self.norm(x + self.state[embeddings + "position_embedding.weight"], "pre_layrnorm")
        for i in range(size.blocks):
            name = f"encoder.layers.{i}."
            normed = self.norm(x, name + "layer_norm1")
            keys, extra = normed, 0
            if i >= self.first:
                z = self.norm(instruct, name + "instruct_dim_reduce.0")
                z = functional.gelu(self.linear(z, name + "instruct_dim_reduce.1"))
                keys = torch.cat([self.linear(z, name + "instruct_dim_reduce.3"), normed], dim=1)
                extra = instruct.shape[1]
            q, k, v = (
                self.linear(y, f"{name}self_attn.{kind}_proj").unflatten(-1, (size.heads, -1)).transpose(1, 2)
                for kind, y in (("q", normed), ("k", keys), ("v", keys))
            )
            weights = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)
            if i == block:
                found = weights[0, :, 0, extra + 1 :]
                if stop:
                    break
            o = (weights @ v).transpose(1, 2).flatten(2)
            out = self.linear(o, name + "self_attn.out_proj")
            if i >= self.first:
                gate = torch.tanh(self.state[f"vision_model.{name}self_attn.instruction_proj_gate"])
                out = out + gate * self.linear(o, name + "self_attn.instruction_out_proj")
            x = x + out
            y = self.linear(self.norm(x, name + "layer_norm2"), name + "mlp.fc1")
            x = x + self.linear(y * torch.sigmoid(1.702 * y), name + "mlp.fc2")
        return found
