"""Decoders that stand in for the core's: what `qavit.generation` asks of one, without a model of qavit."""

from __future__ import annotations

from typing import Any

import numpy as np


class Recomputed:
    """A decoder that keeps the ids alone, and computes logits anew from all of them at every step.

    Attributes
    ----------
    steps : list of int
        How many rows each step has computed.
    """

    def __init__(self, vocab_size: int, max_tokens: int = 512) -> None:
        self.vocab_size, self.max_tokens = vocab_size, max_tokens
        self.steps: list[int] = []

    def begin(self, memory: Any, rows: int, capacity: int, memory_of: Any = None, tokens: Any = None) -> dict[str, Any]:
        index = np.zeros(rows, np.int32) if memory_of is None else memory_of
        memories = memory if isinstance(memory, list) else [memory]
        return {
            "ids": np.zeros((rows, 0), np.int64), "memories": memories, "of": index, "tokens": tokens, "capacity": capacity,
        }  # fmt: skip

    def step(self, cache: dict[str, Any], ids: np.ndarray) -> np.ndarray:
        assert ids.dtype == np.int64
        cache["ids"] = np.concatenate([cache["ids"], ids], axis=1)
        assert cache["ids"].shape[1] <= cache["capacity"]
        self.steps.append(len(ids))
        return self.logits(cache)

    def reorder(self, cache: dict[str, Any], parents: np.ndarray) -> None:
        assert parents.dtype == np.int32
        cache["ids"], cache["of"] = cache["ids"][parents], cache["of"][parents]
        cache["tokens"] = None if cache["tokens"] is None else cache["tokens"][parents]

    def logits(self, cache: dict[str, Any]) -> np.ndarray:
        """[rows, V] behind the last token."""
        raise NotImplementedError


class Scattered(Recomputed):
    """Logits that are random, but the same for the same ids, memory and tokens."""

    def __init__(self, vocab_size: int, max_tokens: int = 512, spread: float = 3.0) -> None:
        super().__init__(vocab_size, max_tokens)
        self.spread = spread

    def logits(self, cache: dict[str, Any]) -> np.ndarray:
        rows = []
        for row, ids in enumerate(cache["ids"]):
            seen = [] if cache["tokens"] is None else cache["tokens"][row].tolist()
            seed = [*ids.tolist(), 2**20 + int(cache["memories"][cache["of"][row]]), *seen]
            rows.append(np.random.default_rng(seed).standard_normal(self.vocab_size) * self.spread)
        return np.array(rows, np.float32).reshape(len(rows), self.vocab_size)


class OfTransformers(Recomputed):
    """A causal model of transformers."""

    def __init__(self, model: Any) -> None:
        super().__init__(model.config.vocab_size)
        self._model = model

    def logits(self, cache: dict[str, Any]) -> np.ndarray:
        import torch

        with torch.no_grad():
            return np.asarray(self._model(torch.from_numpy(cache["ids"])).logits[:, -1])
