"""The sizes of the vision transformers that benchmarks are of; no library is needed for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Size:
    """A vision transformer's sizes, under the name that benchmarks print."""

    name: str
    hidden: int
    feed_forward: int
    blocks: int
    heads: int
    patch: int
    image: int

    @property
    def tokens(self) -> int:
        return 1 + (self.image // self.patch) ** 2

    @property
    def flops(self) -> float:
        """Multiplications and additions of one image through all blocks."""
        d, t = self.hidden, self.tokens
        block = 2 * t * d * (4 * d + 2 * self.feed_forward) + 4 * t * t * d
        return 2 * (t - 1) * d * 3 * self.patch**2 + self.blocks * block

    @property
    def flops_of_maps(self) -> float:
        """What the maps of all blocks need: of the last block, the keys and the class token's query and scores."""
        d, t = self.hidden, self.tokens
        block = 2 * t * d * (4 * d + 2 * self.feed_forward) + 4 * t * t * d
        return self.flops - block + 2 * t * d * d + 2 * d * d + 2 * t * d

    @property
    def config(self) -> dict[str, Any]:
        return {
            "hidden_size": self.hidden,
            "intermediate_size": self.feed_forward,
            "num_hidden_layers": self.blocks,
            "num_attention_heads": self.heads,
            "image_size": self.image,
            "patch_size": self.patch,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        }


SIZES = {
    "L/14@336": Size("L/14@336", 1024, 4096, 24, 16, 14, 336),
    "B/16@224": Size("B/16@224", 768, 3072, 12, 12, 16, 224),
    "small": Size("small", 128, 512, 3, 4, 16, 64),
}
