"""A captioner and a reader whose words are plain functions of what they are given, for tests of what stands around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from small_models import MEAN, STD

from qavit.generation import Generated
from qavit.images import Preprocessing

WORDS = ("man", "dog", "red hat", "street", "two cats", "water", "tree", "sign", "car", "bus", "left side", "a")


class StandIn:
    """What every model has."""

    device = "cpu"

    def to(self, device: str) -> StandIn:
        assert device == "cpu"
        return self


class StandInCaptioner(StandIn):
    """Says one word for each of the patches that it sees, and one that it draws."""

    kind = "blip_caption"

    def __init__(self, image_size: int = 24, patch: int = 8, words: Sequence[str] = WORDS) -> None:
        self.image_size, self.words = image_size, words
        self.grid = (image_size // patch, image_size // patch)
        self.preprocessing = Preprocessing(size=image_size, mean=MEAN, std=STD)
        self.pictures = 0
        self.calls: list[dict[str, Any]] = []

    def image_states(self, pixel_values: np.ndarray) -> np.ndarray:
        """Each patch's mean, the class token's first."""
        assert pixel_values.shape[1:] == (3, self.image_size, self.image_size)
        self.pictures += len(pixel_values)
        rows, columns = self.grid
        patch = self.image_size // rows
        means = pixel_values.reshape(-1, 3, rows, patch, columns, patch).mean(axis=(1, 3, 5)).reshape(-1, rows * columns, 1)
        return np.concatenate([np.zeros_like(means[:, :1]), means], axis=1)

    def generate(
        self, states: np.ndarray, *, num_captions: int, tokens: np.ndarray, keys: np.ndarray, **settings: Any
    ) -> list[Generated]:
        assert states.shape == (1, 1 + self.grid[0] * self.grid[1], 1)
        assert tokens.shape[0] == len(keys) == num_captions
        assert tokens.min() >= 1
        self.calls.append({**settings, "num_captions": num_captions, "tokens": tokens})
        found = []
        for own, key in zip(tokens, keys):
            seen = [int(abs(states[0, token, 0]) * 1e4) + int(token) for token in own]
            drawn = np.random.default_rng([int(word) for word in key]).integers(0, 1 << 30, 3)
            text = " ".join(self.words[number % len(self.words)] for number in [*seen[:2], *map(int, drawn)])
            found.append(Generated(text, np.array([5, 6, 102]), -1.0))
        return found


class StandInReader(StandIn):
    """Answers with the longest word of the contexts; attends to each context by its length."""

    kind = "reader"

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def answer(self, question: str | None, contexts: Sequence[str], **options: Any) -> Generated:
        assert question is None
        self.calls.append({"contexts": list(contexts), **options})
        words = " ".join(contexts).replace(".", " ").split()
        return Generated(max(words, key=len), np.array([7, 1]), -0.5)

    def logits(self, contexts: Sequence[str], ids: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def attention(self, question: str | None, contexts: Sequence[str], ids: np.ndarray) -> np.ndarray:
        lengths = np.array([len(context) for context in contexts], np.float32)
        return np.tile(lengths / lengths.sum(), (len(ids), 1))
