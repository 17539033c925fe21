from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_Preprocessing = tuple[int, tuple[int, int], int, bool, float, tuple[float, float, float], tuple[float, float, float]]

def get_num_threads() -> int: ...
def set_num_threads(n: int, /) -> None: ...
def build_info() -> dict[str, Any]: ...
def check_device(name: str, /) -> None: ...
def decode_image(data: bytes, exif: bool = ..., max_pixels: int = ...) -> npt.NDArray[np.uint8]: ...
def resize_image(picture: npt.NDArray[np.uint8], height: int, width: int, filter: int = ...) -> npt.NDArray[np.uint8]: ...
def preprocess_image(
    picture: npt.NDArray[np.uint8], size: tuple[int, int], preprocessing: _Preprocessing
) -> npt.NDArray[np.float32]: ...
def place_picture(
    height: int, width: int, size: tuple[int, int], preprocessing: _Preprocessing, /
) -> tuple[int, int, int, int]: ...

_Sampling = tuple[float, int, int, float, int, float]
_Keys = npt.NDArray[np.uint64]

def process_logits(
    logits: npt.NDArray[np.float32], ids: npt.NDArray[np.int64], settings: _Sampling, /
) -> npt.NDArray[np.float32]: ...
def next_tokens(
    logits: npt.NDArray[np.float32], ids: npt.NDArray[np.int64], settings: _Sampling, keys: _Keys | None = ..., /
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]: ...
def best_tokens(
    logits: npt.NDArray[np.float32], ids: npt.NDArray[np.int64], settings: _Sampling, count: int, /
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.float64]]: ...
def token_log_probabilities(logits: npt.NDArray[np.float32], ids: npt.NDArray[np.int64], /) -> npt.NDArray[np.float64]: ...
def random_uniforms(keys: _Keys, count: int, /) -> npt.NDArray[np.float64]: ...

class Device:
    name: str
    def __init__(self, name: str, tf32: bool = ..., offload: bool = ...) -> None: ...
    def counters(self) -> dict[str, int]: ...

class _Model:
    def __init__(
        self,
        config: dict[str, Any],
        weights: dict[str, Any],
        precision: str = ...,
        prefix: str = ...,
        device: Device | None = ...,
    ) -> None: ...

class Vit(_Model):
    image_size: int
    image_width: int
    patch_size: int
    hidden_size: int
    heads: int
    blocks: int
    tokens: int
    prefix: int
    projection_dim: int
    instruction_dim: int
    integrated: tuple[int, ...]
    def forward(
        self,
        pixel_values: npt.NDArray[np.float32] | Sequence[npt.NDArray[np.uint8]] | None,
        pair_image: npt.NDArray[np.int32] | None = ...,
        instruct: npt.NDArray[np.float32] | None = ...,
        instruct_length: npt.NDArray[np.int32] | None = ...,
        attention: Sequence[tuple[int, str]] = ...,
        hidden: Sequence[int] = ...,
        outputs: Sequence[str] = ...,
        preprocessing: _Preprocessing | None = ...,
        states: npt.NDArray[np.float32] | None = ...,
        first: int = ...,
        qkv: npt.NDArray[np.float32] | None = ...,
    ) -> dict[str, Any]: ...
    def dense(
        self,
        pixel_values: npt.NDArray[np.float32] | Sequence[npt.NDArray[np.uint8]],
        method: str,
        first: int | None = ...,
        preprocessing: _Preprocessing | None = ...,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]: ...
    def resized(self, height: int, width: int, positions: npt.NDArray[np.float32] | None = ...) -> Vit: ...
    def gradients(
        self,
        states: npt.NDArray[np.float32] | None,
        first: int,
        texts: npt.NDArray[np.float32] | None = ...,
        paired: bool = ...,
        score: str = ...,
        scale: float = ...,
        answer: int | None = ...,
        instruct: npt.NDArray[np.float32] | None = ...,
        instruct_length: npt.NDArray[np.int32] | None = ...,
        wanted: Sequence[tuple[str, int]] = ...,
        relevance: int | None = ...,
        single_head: int | None = ...,
        keep: bool = ...,
        kept: npt.NDArray[np.float32] | None = ...,
    ) -> dict[str, Any]: ...

class BlipImage:
    @property
    def embeddings(self) -> npt.NDArray[np.float32]: ...

class _Blip(_Model):
    image_size: int
    patch_size: int
    image_tokens: int
    image_width: int
    width: int
    heads: int
    blocks: int
    vocab_size: int
    max_tokens: int
    def encode_images(
        self,
        pixel_values: npt.NDArray[np.float32] | Sequence[npt.NDArray[np.uint8]],
        preprocessing: _Preprocessing | None = ...,
    ) -> list[BlipImage]: ...
    def image_from_embeddings(self, embeddings: npt.NDArray[np.float32], /) -> BlipImage: ...

class BlipItm(_Blip):
    images_at_once: int
    cross_first: int
    cross_step: int
    queries: int
    projection: int
    def gradcam(
        self,
        image: BlipImage | list[BlipImage],
        ids: npt.NDArray[np.int32],
        mask: npt.NDArray[np.uint8],
        block: int,
        tokens: bool = ...,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], Any]: ...
    def match(
        self, image: BlipImage | list[BlipImage], ids: npt.NDArray[np.int32], mask: npt.NDArray[np.uint8], /
    ) -> npt.NDArray[np.float32]: ...
    def text_features(self, ids: npt.NDArray[np.int32], mask: npt.NDArray[np.uint8], /) -> npt.NDArray[np.float32]: ...
    def image_features(self, image: BlipImage, /) -> npt.NDArray[np.float32]: ...

class BlipQuestionEncoder(_Blip):
    def encode_questions(
        self, image: BlipImage | list[BlipImage], ids: npt.NDArray[np.int32], mask: npt.NDArray[np.uint8], /
    ) -> npt.NDArray[np.float32]: ...
    def gradcam(
        self,
        image: BlipImage | list[BlipImage],
        ids: npt.NDArray[np.int32],
        mask: npt.NDArray[np.uint8],
        block: int,
        d_states: npt.NDArray[np.float32],
        /,
    ) -> tuple[npt.NDArray[np.float32], None, npt.NDArray[np.float32]]: ...

class _TextEncoder(_Model):
    width: int
    vocab_size: int
    max_tokens: int
    def encode(
        self, ids: npt.NDArray[np.integer[Any]], mask: npt.NDArray[np.integer[Any]] | None = ...
    ) -> npt.NDArray[np.float32]: ...

class T5Encoder(_TextEncoder):
    picture_width: int
    def encode_picture(
        self, picture: npt.NDArray[np.float32], ids: npt.NDArray[np.integer[Any]], /
    ) -> npt.NDArray[np.float32]: ...

class _PooledEncoder(_TextEncoder):
    projection_dim: int
    def encode_pooled(
        self,
        ids: npt.NDArray[np.integer[Any]],
        mask: npt.NDArray[np.integer[Any]] | None = ...,
        project: bool = ...,
    ) -> npt.NDArray[np.float32]: ...

class BertEncoder(_PooledEncoder): ...
class ClipTextEncoder(_PooledEncoder): ...

class DecoderMemory:
    @property
    def absorbed(self) -> bool: ...

class DecoderCache:
    @property
    def lengths(self) -> npt.NDArray[np.intp]: ...

class Decoder(_Model):
    vocab_size: int
    width: int
    cross_width: int
    layers: int
    max_tokens: int
    def read(
        self,
        states: npt.NDArray[np.float32],
        lengths: Sequence[int] | npt.NDArray[np.integer[Any]] | None = ...,
        tokens: int = ...,
    ) -> DecoderMemory: ...
    def begin(
        self,
        memory: DecoderMemory | Sequence[DecoderMemory],
        rows: int,
        capacity: int,
        memory_of: npt.NDArray[np.int32] | None = ...,
        tokens: npt.NDArray[np.int32] | None = ...,
    ) -> DecoderCache: ...
    def step(
        self,
        cache: DecoderCache,
        ids: npt.NDArray[np.integer[Any]],
        all: bool = ...,
        lengths: Sequence[int] | npt.NDArray[np.integer[Any]] | None = ...,
    ) -> npt.NDArray[np.float32]: ...
    def attend(
        self,
        cache: DecoderCache,
        ids: npt.NDArray[np.integer[Any]],
        lengths: Sequence[int] | npt.NDArray[np.integer[Any]] | None = ...,
    ) -> npt.NDArray[np.float32]: ...
    def reorder(self, cache: DecoderCache, parents: npt.NDArray[np.int32], /) -> None: ...
    def gradient(
        self,
        states: npt.NDArray[np.float32],
        lengths: Sequence[int] | npt.NDArray[np.integer[Any]],
        ids: npt.NDArray[np.integer[Any]],
        ids_lengths: Sequence[int] | npt.NDArray[np.integer[Any]],
        /,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]: ...
