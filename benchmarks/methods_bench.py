"""Maps by gradients: qavit beside the public code's way of computing them, under torch.

    python -m benchmarks.methods_bench                        # B/16 at 224 and L/14 at 336, float32 and bfloat16
    python -m benchmarks.methods_bench --small --rounds 1     # the same code in a few seconds

Both sides have the same random weights, the same pixels and texts' embeddings; they take turns in one process, with as many
threads. torch does what the public code does: LeGrad, Chefer's notebook and pytorch-grad-cam run the picture once a text;
Grad-ECLIP runs it once and goes back for each text. Explicit attention is where their hooks put it, from the first block
that is read on; the other blocks take torch's fused one.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import qavit

from .quiet import be_quiet
from .table import Row, write_rows
from .timing import interleave

B16 = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
L14 = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
MODELS = {
    "B/16 at 224": ({**B16, "image_size": 224, "patch_size": 16}, 512),
    "L/14 at 336": ({**L14, "image_size": 336, "patch_size": 14}, 768),
}
SMALL = {
    "small": (
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 64,
         "patch_size": 16}, 32,
    ),
}  # fmt: skip
METHODS = ("legrad", "gae", "grad_eclip", "gradcam")
# Of the largest value, of both sides' maps: rounding in float32; in bfloat16 torch rounds all of it.
AGREE = {"float32": 1e-3, "bfloat16": 0.5}


def make_folder(folder: Path, vision: dict[str, int], projection: int) -> Any:
    """A CLIP with random weights on disk, and as transformers has it."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    text = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=projection)).eval()
    with torch.no_grad():
        for parameter in model.vision_model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
    return model


class TorchTower:
    """CLIP's tower in plain torch, explicit attention from a block on."""

    def __init__(self, model: Any) -> None:
        self.model, self.vision = model, model.vision_model
        self.blocks = list(self.vision.encoder.layers)

    def block(self, layer: Any, x: Any, explicit: bool, heads: int) -> dict[str, Any]:
        import torch

        normed = layer.layer_norm1(x)
        attend = layer.self_attn
        q, k, v = (project(normed) for project in (attend.q_proj, attend.k_proj, attend.v_proj))
        parts = [y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in (q, k, v)]
        attention = None
        if explicit:
            attention = (parts[0] @ parts[1].transpose(-1, -2) * parts[0].shape[-1] ** -0.5).softmax(dim=-1)
            o = attention @ parts[2]
        else:
            o = torch.nn.functional.scaled_dot_product_attention(*parts)
        o = o.transpose(1, 2).flatten(2)
        h = x + attend.out_proj(o)
        return {"normed": normed, "q": q, "k": k, "v": v, "attention": attention, "o": o,
                "output": h + layer.mlp(layer.layer_norm2(h))}  # fmt: skip

    def run(self, images: Any, explicit: int, single: bool = False) -> list[dict[str, Any]]:
        """Every block's numbers; gradients are kept from block `explicit` on."""
        import torch

        count, found = self.blocks[0].self_attn.num_heads, []
        with torch.no_grad():
            x = self.vision.pre_layrnorm(self.vision.embeddings(images))
        for number, layer in enumerate(self.blocks):
            last = number == len(self.blocks) - 1
            with torch.set_grad_enabled(number >= explicit):
                found.append(self.block(layer, x, number >= explicit, 1 if single and last else count))
            x = found[-1]["output"]
        return found

    def cosine(self, tokens: Any, texts: Any) -> Any:
        """[B] of tokens [B, D] with a text each."""
        import torch

        image = self.model.visual_projection(self.vision.post_layernorm(tokens))
        return torch.nn.functional.cosine_similarity(image, texts, dim=-1)


def torch_legrad(tower: TorchTower, images: Any, texts: Any) -> Any:
    import torch

    start, maps = len(tower.blocks) - 2, 0
    blocks = tower.run(images.expand(len(texts), -1, -1, -1), start)
    for block in blocks[start:]:
        score = tower.cosine(block["output"].mean(dim=1), texts).sum()
        gradient = torch.autograd.grad(score, block["attention"], retain_graph=True)[0]
        maps = maps + gradient.clamp(min=0).mean(dim=(1, 2))[:, 1:]
    return maps


def torch_gae(tower: TorchTower, images: Any, texts: Any) -> Any:
    import torch

    last = len(tower.blocks) - 1
    block = tower.run(images.expand(len(texts), -1, -1, -1), last)[-1]
    scale = tower.model.logit_scale.exp()
    score = (scale * tower.cosine(block["output"][:, 0], texts)).sum()
    gradient = torch.autograd.grad(score, block["attention"])[0]
    step = (gradient * block["attention"]).clamp(min=0).mean(dim=1)
    relevance = torch.eye(step.shape[-1], dtype=step.dtype).expand_as(step)
    return (relevance + step @ relevance)[:, 0, 1:]


def torch_grad_eclip(tower: TorchTower, images: Any, texts: Any) -> Any:
    import torch

    block, maps = tower.run(images, len(tower.blocks) - 1, single=True)[-1], []
    cosines = torch.nn.functional.cosine_similarity(block["q"][:, :1], block["k"], dim=-1)[0, 1:]
    near = (cosines - cosines.min()) / (cosines.max() - cosines.min())
    for text in texts:
        score = tower.cosine(block["output"][:, 0], text[None]).sum()
        gradient = torch.autograd.grad(score, block["o"], retain_graph=True)[0]
        maps.append((near * (gradient[0, :1] * block["v"][0, 1:]).sum(dim=-1)).clamp(min=0))
    return torch.stack(maps)


def torch_gradcam(tower: TorchTower, images: Any, texts: Any) -> Any:
    import torch

    maps = []
    for text in texts:
        block = tower.run(images, len(tower.blocks) - 1)[-1]
        score = tower.cosine(block["output"][:, 0], text[None]).sum()
        gradient = torch.autograd.grad(score, block["normed"])[0][0, 1:]
        maps.append((block["normed"][0, 1:] @ gradient.mean(dim=0)).clamp(min=0))
    return torch.stack(maps)


PUBLIC: dict[str, Callable[..., Any]] = {
    "legrad": torch_legrad, "gae": torch_gae, "grad_eclip": torch_grad_eclip, "gradcam": torch_gradcam,
}  # fmt: skip


def times_of(
    tower: TorchTower, model: Any, knowing: Any, pixels: Any, texts: Any, method: str, rounds: int, clock: str
) -> list[float]:
    """Seconds of the public code's way, of qavit, of a forward pass, and of qavit where it knows the picture.

    Both sides have given the same map before.
    """
    import torch

    dtype = next(tower.model.parameters()).dtype
    images, given = torch.tensor(pixels[None]).to(dtype), torch.tensor(texts).to(dtype)
    heads: Any = "single" if method == "grad_eclip" else "mean"
    sides: dict[str, Callable[[], Any]] = {
        "public": lambda: PUBLIC[method](tower, images, given),
        "qavit": lambda: model.heatmaps(pixels, texts, method=method, heads=heads),
        "forward": lambda: model.encode_image(pixels),
        "known": lambda: knowing.heatmaps(pixels, next(others), method=method, heads=heads),
    }
    # Of a picture and texts that it has seen, a model knows all: each time, other texts of the same lengths.
    others = (np.roll(texts, turn + 1, axis=1) for turn in itertools.count())
    raw = sides["qavit"]().raw.reshape(len(texts), -1)
    far = np.abs(raw - sides["public"]().detach().float().numpy()).max() / raw.max()
    if not far < AGREE[model.requested_precision]:
        raise SystemExit(f"{method} {model.requested_precision}: the sides differ by {far:.1e} of the largest value")
    times = interleave(sides, rounds, clock)
    return [times.median(side) for side in sides]


def print_rows(name: str, vision: dict[str, int], projection: int, options: argparse.Namespace) -> list[Row]:
    """The table's rows of one model; printed, and for the table of all benchmarks."""
    import torch

    rows = []

    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((3, vision["image_size"], vision["image_size"])).astype(np.float32)
    texts = rng.standard_normal((max(options.texts), projection)).astype(np.float32)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    with tempfile.TemporaryDirectory() as folder:
        reference = make_folder(Path(folder), vision, projection)
        for precision in ("float32", "bfloat16"):
            tower = TorchTower(reference.to(getattr(torch, precision)))
            model, knowing = qavit.load(folder, precision=precision, cache=0), qavit.load(folder, precision=precision)
            for count in options.texts:
                for method in METHODS:
                    public, own, forward, known = times_of(
                        tower, model, knowing, pixels, texts[:count], method, options.rounds, options.clock
                    )
                    print(
                        f"| {name} | {precision} | {count} | {method} | {1e3 * public:.0f} | {1e3 * own:.0f} | "
                        f"{public / own:.1f}x | {own / forward:.2f} | {1e3 * known:.0f} |", flush=True,
                    )  # fmt: skip
                    work = f"{method}, CLIP {name}, {count} text{'s' if count > 1 else ''}"
                    peer = f"public code, torch {precision}"
                    rows.append(Row(work, precision, 1e3 * own, peer, 1e3 * public))
                    rows.append(Row(work, f"{precision}, known picture", 1e3 * known, peer, 1e3 * public))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each side that count (default: 5)")
    parser.add_argument("--texts", type=int, nargs="+", default=[1, 10], help="how many texts (default: 1 10)")
    parser.add_argument("--threads", type=int, help="of both sides (default: qavit's own)")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: processor time, with --threads 1")
    parser.add_argument("--rows", type=Path, help="write rows for the table of all benchmarks there")
    parser.add_argument("--small", action="store_true", help="a small model, to try the code")
    options = parser.parse_args(arguments)
    be_quiet()
    import torch

    if options.threads is not None:
        qavit.set_num_threads(options.threads)
    torch.set_num_threads(qavit.get_num_threads())
    columns = ["model", "precision", "texts", "method", "public code, torch, ms", "qavit, ms", "faster", "forward passes"]
    columns.append("picture known, ms")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    rows = []
    for name, (vision, projection) in (SMALL if options.small else MODELS).items():
        rows += print_rows(name, vision, projection, options)
    write_rows(options.rows, rows)


if __name__ == "__main__":
    main()
