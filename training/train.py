"""Train the demo model: `python -m training.train --out training/runs/demo --workers 2`.

Two stages over freshly drawn scenes. First the question-blind blocks alone learn each patch's colour and shape; then
everything learns together: answers, and class-token attention on the referred patches in every question-aware block.
Early in that stage most steps stop after a few integrated blocks, which costs half as much a question.
Matrices of the blocks are trained by Muon, the rest by AdamW; the exported weights are a moving average.
The run resumes from its folder's checkpoint; with `--workers N` gradients are averaged over N single-threaded processes.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from training.batches import VOCABULARY, Batch, make_batch
from training.model import Config, DemoModel
from training.muon import Muon
from training.questions import ANSWERS, COLORS, KINDS, SHAPES

STAGES = ("vision", "joint")
MOST_ALIKE = 4  # counts of alike objects above it are one class


@dataclass
class Options:
    """What a run is given. A stage ends after its steps, or after its minutes where those are set."""

    out: Path
    vision_steps: int = 3000
    joint_steps: int = 4000
    vision_minutes: float = 0.0
    joint_minutes: float = 0.0
    images: int = 18
    vision_images: int = 32
    questions: int = 4
    workers: int = 1
    seed: int = 0
    save_every: int = 50
    initial: Path | None = None
    muon_rate: float = 0.006
    adam_rate: float = 0.001
    shallow: int = 3  # integrated blocks that three of four early joint steps run, with twice the questions; 0: all


class Trainee(nn.Module):
    """The model with the heads that only training uses."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.model = DemoModel(config)
        self.norm = nn.LayerNorm(config.width)
        self.color = nn.Linear(config.width, 1 + len(COLORS))
        self.shape = nn.Linear(config.width, 1 + len(SHAPES))
        self.largest = nn.Linear(config.width, 1)
        self.alike = nn.Linear(config.width, 2 * MOST_ALIKE)
        aware = config.blocks - config.first_integrated
        self.match = nn.ModuleList(nn.Linear(config.width, 1) for _ in range(aware - 1))
        self.place = nn.Linear(config.width, 2)
        self.patch_place = nn.ModuleList(nn.Linear(config.width, 2) for _ in range(aware))


def demo_config(**changes: int) -> Config:
    """The demo's sizes, with the vocabulary and answers of the questions."""
    return Config(**{"vocabulary": len(VOCABULARY), "answers": len(ANSWERS), **changes})


def patch_loss(trainee: Trainee, state: Tensor, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """What each patch's object is, read from the last question-blind block: cross-entropies, and the patch's place.

    Colour, shape, whether it is the largest, how many share its colour and its shape.
    """
    y = trainee.norm(state[:, 1:])
    losses, figures = [], {}
    for name, labels, weight in (("color", batch.color, 1.0), ("shape", batch.shape, 1.5)):
        logits = getattr(trainee, name)(y).flatten(0, 1)
        flat = labels.flatten()
        background = torch.ones(logits.shape[1])
        background[0] = 0.3
        losses.append(weight * F.cross_entropy(logits, flat, background, ignore_index=-1))
        on_object = flat > 0
        figures[f"patch_{name}"] = float((logits.argmax(1) == flat)[on_object].float().mean())
    place = patch_place_loss(trainee, [state])
    figures["patch_place"] = float(place.detach())
    sized = batch.largest >= 0
    logit, largest = trainee.largest(y).squeeze(-1)[sized], batch.largest[sized].float()
    losses.append(0.3 * F.binary_cross_entropy_with_logits(logit, largest, reduction="sum") / max(len(largest), 1))
    counted = batch.alike[:, :, 0] > 0
    alike = batch.alike[counted].clamp(max=MOST_ALIKE).flatten() - 1
    logits = trainee.alike(y[counted]).view(-1, MOST_ALIKE)
    losses.append(0.3 * F.cross_entropy(logits, alike, reduction="sum") / max(len(alike), 1))
    if len(largest) and len(alike):
        figures["patch_largest"] = float(((logit > 0) == (largest > 0)).float().mean())
        figures["patch_alike"] = float((logits.argmax(1) == alike).float().mean())
    return torch.stack(losses).sum() + place, figures


def _share_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """-log of the share that a softmax over patches puts on the targets, [N]."""
    inside = scores.masked_fill(targets == 0, -1e9)
    return torch.logsumexp(scores, -1) - torch.logsumexp(inside, -1)


def patch_spots(grid: int) -> Tensor:
    """Middle of each patch, x and y in [-1, 1], [P, 2]."""
    axis = (torch.arange(grid) + 0.5) * 2 / grid - 1
    return torch.stack([axis.repeat(grid), axis.repeat_interleave(grid)], dim=1)


def patch_place_loss(trainee: Trainee, states: list[Tensor]) -> Tensor:
    """Squared error of each patch's own place, read from its state: otherwise content drowns the position embedding."""
    spots = patch_spots(trainee.model.config.grid)
    errors = [(head(trainee.norm(state[:, 1:])) - spots).pow(2).mean() for head, state in zip(trainee.patch_place, states)]
    return torch.stack(errors).mean()


def place_loss(trainee: Trainee, states: list[Tensor], targets: Tensor, present: Tensor) -> Tensor:
    """Squared error of the referred patches' middle, in [-1, 1], read from the class token: it has to keep the place."""
    weights = targets[present]
    middle = weights @ patch_spots(trainee.model.config.grid) / weights.sum(1, keepdim=True)
    norm = trainee.model.vision_model.post_layernorm
    return torch.stack([(trainee.place(norm(state[present, 0])) - middle).pow(2).sum(1).mean() for state in states]).mean()


def joint_loss(trainee: Trainee, batch: Batch, depth: int | None = None) -> tuple[Tensor, dict[str, float]]:
    """Patches, answers and maps together; with `depth`, the first `depth` integrated blocks alone, without answers."""
    model = trainee.model
    first = model.config.first_integrated
    blind = model.see(batch.pixels)[-1]
    patches, figures = patch_loss(trainee, blind, batch)
    states, rows = model.look(blind[batch.image_of], batch.ids, batch.mask, depth)
    present = batch.targets.sum(1) > 0
    targets = batch.targets[present]
    hits: dict[int, Tensor] = {}
    loss = patches if depth is not None else patches + patch_place_loss(trainee, [blind, *states[:-1]])
    if bool(present.any()):
        maps, matches = [], []
        for i in range(1, len(rows)):
            probability = torch.softmax(rows[i][present], dim=-1).mean(1)
            maps.append(-torch.log((probability * targets).sum(1) + 1e-6).mean())
            hits[first + i] = targets.gather(1, probability.argmax(1, keepdim=True)).squeeze(1)
            marked = batch.named[present] if i == 1 else targets
            matches.append(_share_loss(trainee.match[i - 1](states[i - 1][present, 1:]).squeeze(-1), marked).mean())
        loss = loss + 0.8 * torch.stack(maps).mean() + 0.4 * torch.stack(matches).mean()
        if depth is None:
            loss = loss + place_loss(trainee, states[-4:], batch.targets, present)
    else:  # the same parameters get a gradient on every worker
        reached = [states[-1], *rows, *trainee.match.parameters(), *(trainee.place.parameters() if depth is None else ())]
        loss = loss + 0.0 * torch.stack([t.sum() for t in reached]).sum()
    for block in hits:
        figures[f"block{block}"] = float(hits[block].mean())
    if depth is not None:
        return loss, figures

    logits = model.answer(states[-1])
    loss = loss + F.cross_entropy(logits, batch.answers)
    for state in states[2:-1]:
        loss = loss + 0.15 * F.cross_entropy(model.answer(state), batch.answers)
    right = (logits.argmax(1) == batch.answers).float()
    figures["answer"] = float(right.mean())
    last = hits.get(model.config.blocks - 1, torch.zeros(0))
    for i, kind in enumerate(KINDS):
        for name, values, of in (("answer", right, batch.kinds), ("point", last, batch.kinds[present])):
            if bool((of == i).any()):
                figures[f"{name}_{kind}"] = float(values[of == i].mean())
    return loss, figures


def optimisers(trainee: Trainee, options: Options) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for the rest."""
    matrices, rest = [], []
    for name, p in trainee.named_parameters():
        inside = ".layers." in name or ".block." in name
        (matrices if inside and p.ndim == 2 and "relative_attention_bias" not in name else rest).append(p)
    return [
        Muon(matrices, lr=options.muon_rate),
        torch.optim.AdamW(rest, lr=options.adam_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def learning_rate(step: int, progress: float, stage: str) -> float:
    """Share of the full rate: a warm-up, then for the joint stage a cosine to 1%."""
    warm = min(1.0, (step + 1) / 60)
    if stage == "vision":
        return warm
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def _average_gradients(parameters: list[nn.Parameter], workers: int) -> None:
    if workers == 1:
        return
    parameters = [p for p in parameters if p.grad is not None]
    flat = torch.cat([p.grad.flatten() for p in parameters])
    dist.all_reduce(flat)
    flat /= workers
    for p, g in zip(parameters, flat.split([p.numel() for p in parameters])):
        p.grad = g.view_as(p)


def _agree(value: float, workers: int) -> float:
    """Rank 0's value, on every rank."""
    if workers == 1:
        return value
    shared = torch.tensor([value], dtype=torch.float64)
    dist.broadcast(shared, 0)
    return float(shared)


def _save(path: Path, content: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    torch.save(content, part)
    os.replace(part, path)


def _line(stage: str, step: int, progress: float, seconds: float, figures: dict[str, float]) -> str:
    shown = " ".join(f"{name} {value:.3f}" for name, value in figures.items())
    return f"{stage} step {step} progress {progress:.2f} {seconds:.0f} s  {shown}"


def train(rank: int, options: Options, config: Config) -> None:
    """Train to the end of both stages; every rank runs this."""
    torch.set_num_threads(1 if options.workers > 1 else torch.get_num_threads())
    torch.set_flush_denormal(True)
    torch.manual_seed(options.seed)
    if options.workers > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{(options.out / 'meet').resolve()}", rank=rank, world_size=options.workers
        )
    trainee = Trainee(config)
    if options.initial is not None:
        state = torch.load(options.initial, weights_only=True)
        trainee.load_state_dict(state, strict=False)
    average = copy.deepcopy(trainee.model)
    optimizers = optimisers(trainee, options)
    base = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    parameters = list(trainee.parameters())
    stage_at, step, spent = 0, 0, 0.0
    checkpoint = options.out / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        trainee.load_state_dict(saved["trainee"])
        average.load_state_dict(saved["average"])
        for optimizer, content in zip(optimizers, saved["optimizers"]):
            optimizer.load_state_dict(content)
        stage_at, step, spent = saved["stage"], saved["step"], saved["seconds"]

    smooth: dict[str, float] = {}
    while stage_at < len(STAGES):
        stage = STAGES[stage_at]
        steps = options.vision_steps if stage == "vision" else options.joint_steps
        minutes = options.vision_minutes if stage == "vision" else options.joint_minutes
        clock = time.monotonic() - spent
        while True:
            spent = _agree(time.monotonic() - clock, options.workers)
            progress = spent / (60 * minutes) if minutes else step / max(steps, 1)
            if progress >= 1:
                break
            rate = learning_rate(step, progress, stage)
            for optimizer, full in zip(optimizers, base):
                optimizer.param_groups[0]["lr"] = rate * full
            seed = (options.seed, stage_at, step, rank)
            if stage == "vision":
                batch = make_batch(seed, options.vision_images, 0, config.grid, config.image_size)
                loss, figures = patch_loss(trainee, trainee.model.see(batch.pixels)[-1], batch)
            else:
                shallow = options.shallow and progress < 0.45 and step % 4 != 0
                questions = 2 * options.questions if shallow else options.questions
                batch = make_batch(seed, options.images, questions, config.grid, config.image_size)
                loss, figures = joint_loss(trainee, batch, options.shallow if shallow else None)
            for p in parameters:
                p.grad = None
            loss.backward()
            _average_gradients(parameters, options.workers)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimizer in optimizers:
                optimizer.step()
            step += 1
            keep = min(0.995, (1 + step) / (20 + step))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(trainee.model.parameters()), 1 - keep)
            for name, value in {"loss": float(loss.detach()), **figures}.items():
                smooth[name] = value if name not in smooth else 0.96 * smooth[name] + 0.04 * value
            if rank == 0 and step % 25 == 0:
                print(_line(stage, step, progress, spent, smooth), flush=True)
            if rank == 0 and step % options.save_every == 0:
                _save(checkpoint, _content(trainee, average, optimizers, config, stage_at, step, spent))
        stage_at, step, spent, smooth = stage_at + 1, 0, 0.0, {}
        if stage_at == 1:
            average.load_state_dict(trainee.model.state_dict())
        if rank == 0:
            _save(checkpoint, _content(trainee, average, optimizers, config, stage_at, step, spent))
    if options.workers > 1:
        dist.barrier()
        dist.destroy_process_group()


def _content(
    trainee: Trainee,
    average: DemoModel,
    optimizers: list[torch.optim.Optimizer],
    config: Config,
    stage: int,
    step: int,
    seconds: float,
) -> dict[str, Any]:
    return {
        "trainee": trainee.state_dict(),
        "average": average.state_dict(),
        "optimizers": [o.state_dict() for o in optimizers],
        "config": config.as_dict(),
        "vocabulary": list(VOCABULARY),
        "answers": list(ANSWERS),
        "stage": stage,
        "step": step,
        "seconds": seconds,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint; an existing one is resumed")
    defaults = Options(out=Path())
    for name in (
        "vision_steps",
        "joint_steps",
        "vision_minutes",
        "joint_minutes",
        "images",
        "vision_images",
        "questions",
        "workers",
        "seed",
        "shallow",
    ):
        value = getattr(defaults, name)
        parser.add_argument("--" + name.replace("_", "-"), type=type(value), default=value)
    parser.add_argument("--muon-rate", type=float, default=defaults.muon_rate)
    parser.add_argument("--adam-rate", type=float, default=defaults.adam_rate)
    parser.add_argument("--initial", type=Path, help="a state dict to start from instead of random weights")
    options = Options(**vars(parser.parse_args()))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "meet").unlink(missing_ok=True)
    if options.workers == 1:
        train(0, options, demo_config())
    else:
        torch.multiprocessing.spawn(train, args=(options, demo_config()), nprocs=options.workers)


if __name__ == "__main__":
    main()
