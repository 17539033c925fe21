"""Batches for training: freshly drawn scenes, their questions and what supervises the maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.questions import ANSWERS, COLOR_WORDS, KINDS, SHAPE_WORDS, all_words, ask, clearly_largest
from training.scenes import COLORS, SHAPES, Scene, draw_scene

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
VOCABULARY = (PAD, END, UNKNOWN, *all_words())
# how often each kind is asked for; a scene that cannot offer one is asked another
SHARES = {"where": 0.26, "color": 0.22, "shape": 0.06, "exists": 0.10, "relation": 0.20, "count": 0.08, "largest": 0.08}
_NUMBER = {word: i for i, word in enumerate(VOCABULARY)}
_ESSENTIAL = frozenset(
    " ".join(word for words in (*COLOR_WORDS.values(), *SHAPE_WORDS.values()) for word in words).split()
) | frozenset(
    [
        "left",
        "right",
        "above",
        "over",
        "below",
        "under",
        "beneath",
        "underneath",
        "higher",
        "lower",
        "top",
        "largest",
        "biggest",
        "main",
        "many",
        "count",
        "number",
    ]
)


@dataclass
class Batch:
    """I images, N questions."""

    pixels: Tensor  # [I, 3, S, S] normalised
    color: Tensor  # [I, P] 0 background, 1 + colour, -1 not counted (an object's edge)
    shape: Tensor  # [I, P]
    largest: Tensor  # [I, P] 1 on the largest object, 0 on others, -1 not counted
    alike: Tensor  # [I, P, 2] objects of the same colour and of the same shape, itself included; -1 not counted
    image_of: Tensor  # [N]
    ids: Tensor  # [N, M]
    mask: Tensor  # [N, M]
    answers: Tensor  # [N]
    kinds: Tensor  # [N] index into KINDS
    targets: Tensor  # [N, P] 1 where the map should be; all 0 for absent objects
    named: Tensor  # [N, P] 1 on what the question's words name


def normalise(images: np.ndarray) -> Tensor:
    """uint8 [B, S, S, 3] -> float32 [B, 3, S, S]."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def encode(texts: list[str]) -> tuple[Tensor, Tensor]:
    """Word numbers and mask [N, M] of questions made of vocabulary words; others become `<unk>`."""
    rows = [
        [*[_NUMBER.get(word, 2) for word in text.lower().replace("'", " ").replace("?", " ").split()][:29], 1]
        for text in texts
    ]
    ids = torch.zeros(len(rows), max(len(row) for row in rows), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids, (ids != 0).float()


def _drop_words(text: str, rng: np.random.Generator) -> str:
    """Make unimportant words unknown now and then, and add unknown ones."""
    words = [word if word in _ESSENTIAL or rng.random() > 0.08 else UNKNOWN for word in text.replace("'", " ").split()]
    if rng.random() < 0.06:
        words.insert(int(rng.integers(len(words) + 1)), UNKNOWN)
    return " ".join(words)


def patch_labels(scene: Scene, grid: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colour and shape number of each patch [P], and each object's share of each patch [objects, P]."""
    p = scene.image.shape[0] // grid
    share = scene.masks.reshape(-1, grid, p, grid, p).mean(axis=(2, 4)).reshape(-1, grid * grid)
    owner = share.argmax(axis=0)
    most = share.max(axis=0)
    colors = np.array([1 + COLORS.index(o.color) for o in scene.objects])[owner]
    shapes = np.array([1 + SHAPES.index(o.shape) for o in scene.objects])[owner]
    for labels in (colors, shapes):
        labels[most < 0.35] = -1
        labels[most < 0.05] = 0
    return colors, shapes, share


def object_labels(scene: Scene, color: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each patch's object: whether it is clearly the largest [P], how many share its colour and its shape [P, 2].

    -1 off the objects (`color` [P] from `patch_labels` tells), and for "largest" where two are of nearly one size.
    """
    owner, things = share.argmax(axis=0), scene.objects
    index = clearly_largest(scene)
    largest = np.array([-1 if index is None else int(i == index) for i in range(len(things))])[owner]
    colors, shapes = [o.color for o in things], [o.shape for o in things]
    alike = np.array([[colors.count(o.color), shapes.count(o.shape)] for o in things])[owner]
    largest[color < 1] = -1
    alike[color < 1] = -1
    return largest, alike


def target_patches(scene: Scene, targets: tuple[int, ...], share: np.ndarray, grid: int) -> np.ndarray:
    """The patches [P] whose centre lies inside a target's box and that show enough of it."""
    size = scene.image.shape[0]
    centre = (np.arange(grid) + 0.5) * size / grid
    y, x = np.meshgrid(centre, centre, indexing="ij")
    result = np.zeros(grid * grid, np.float32)
    for i in targets:
        left, top, right, bottom = scene.boxes[i]
        inside = ((x > left + 0.5) & (x < right - 0.5) & (y > top + 0.5) & (y < bottom - 0.5)).reshape(-1)
        chosen = inside & (share[i] > 0.2)
        chosen[np.where(inside, share[i], -1.0).argmax()] = True
        result[chosen] = 1.0
    return result


def make_batch(seed: tuple[int, ...], images: int, questions: int, grid: int, size: int) -> Batch:
    """Draw a batch; the same seed gives the same batch. `questions` a scene may be 0 (vision alone)."""
    rng = np.random.default_rng(seed)
    pixels, colors, shapes, targets, texts, owner, answers, kinds = [], [], [], [], [], [], [], []
    largest, alike, named = [], [], []
    names, shares = list(SHARES), np.array(list(SHARES.values()))
    for i in range(images):
        count = int(rng.integers(1, 3)) if rng.random() < 0.06 else None
        scene = draw_scene(int(rng.integers(1 << 40)), size, "train", count)
        color, shape, share = patch_labels(scene, grid)
        pixels.append(scene.image)
        colors.append(color)
        shapes.append(shape)
        most, same = object_labels(scene, color, share)
        largest.append(most)
        alike.append(same)
        asked = 0
        while asked < questions:
            question = ask(scene, rng, names[int(rng.choice(len(names), p=shares))])
            if question is None:
                continue
            asked += 1
            texts.append(_drop_words(question.text, rng))
            owner.append(i)
            answers.append(ANSWERS.index(question.answer))
            kinds.append(KINDS.index(question.kind))
            targets.append(target_patches(scene, question.targets, share, grid))
            named.append(target_patches(scene, question.named, share, grid))
    ids, mask = encode(texts) if texts else (torch.zeros(0, 1, dtype=torch.long), torch.zeros(0, 1))
    none = np.zeros((0, grid * grid), np.float32)
    return Batch(
        normalise(np.stack(pixels)),
        torch.from_numpy(np.stack(colors)),
        torch.from_numpy(np.stack(shapes)),
        torch.from_numpy(np.stack(largest)),
        torch.from_numpy(np.stack(alike)),
        torch.tensor(owner, dtype=torch.long),
        ids,
        mask,
        torch.tensor(answers, dtype=torch.long),
        torch.tensor(kinds, dtype=torch.long),
        torch.from_numpy(np.stack(targets) if targets else none),
        torch.from_numpy(np.stack(named) if named else none),
    )
