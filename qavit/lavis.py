"""LAVIS scripts with qavit's maps: PnP-VQA's question-image matching replaced in place, and compute_gradcam.

Nothing here imports LAVIS. torch is imported where tensors are given back, that is, where a script has it already.
"""

from __future__ import annotations

import importlib
import math
import tempfile
import warnings
import weakref
from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .arguments import PNP_VQA_BLOCK, finite_numbers, read_samples, whole_number
from .files import PathLike
from .images import CLIP_MEAN, CLIP_STD
from .tensors import as_kind, to_numpy, torch_of

if TYPE_CHECKING:
    from .blip import BlipITM
    from .weights import Weight

__all__ = [
    "ReplacedForwardItm", "StoredGradcams", "compute_gradcam", "from_lavis", "gradcams_from", "replace_forward_itm",
    "resample_mass",
]  # fmt: skip

FloatArray = npt.NDArray[np.float32]

_FLOOR = 1e-9  # of a map's largest value: what an entry of zero becomes, so that it can still be drawn

# Torch modules that compute_gradcam was called with: what their weights were then, and the matcher made of them.
_converted: weakref.WeakKeyDictionary[Any, tuple[Any, BlipITM]] = weakref.WeakKeyDictionary()


def replace_forward_itm(
    pnp_vqa_model: Any, matcher: Any, block_num: int | None = None, grid: tuple[int, int] | None = None
) -> ReplacedForwardItm:
    """Make a PnP-VQA model take its maps from `matcher`; the rest of its pipeline goes on unchanged.

    Parameters
    ----------
    pnp_vqa_model : object with forward_itm
        LAVIS's PNPVQA or Img2PromptVQA, or one like them. Only this object changes, not its class.
    matcher : BlipITM or QAViT
        A BlipITM gives LAVIS's own values. A QAViT's attention is resampled to the captioner's patch grid, each map's sum
        kept.
    block_num : int, optional
        Read this block whatever the callers say (``predict_answers`` always says 7, which a QA-ViT of 24 blocks does
        not know the question at). None: the block that the call names.
    grid : (rows, columns), optional
        The captioner's patch grid; None: taken from its vision encoder.

    Returns
    -------
    ReplacedForwardItm
        Its `restore` puts the former method back; as a context manager it does so at the end.

    Raises
    ------
    TypeError
        One of the objects has no forward_itm.
    ValueError
        The grid can't be told from the captioner, or the block does not exist.
    """
    for name, value in (("pnp_vqa_model", pnp_vqa_model), ("matcher", matcher)):
        if not callable(getattr(value, "forward_itm", None)):
            raise TypeError(f"{name}: expected an object with forward_itm, got {type(value).__name__}")
    if block_num is not None:
        matcher.check_block(block_num, "block_num")
    chosen = _captioner_grid(pnp_vqa_model, matcher) if grid is None else _checked_grid(grid)
    return ReplacedForwardItm(pnp_vqa_model, matcher, block_num, chosen)


class ReplacedForwardItm:
    """The method that `replace_forward_itm` puts in place of a PnP-VQA model's own."""

    def __init__(self, pnp_vqa_model: Any, matcher: Any, block_num: int | None, grid: tuple[int, int]) -> None:
        self.matcher = matcher
        self.block_num = block_num
        self.grid = grid
        self._model = pnp_vqa_model
        self._before = vars(pnp_vqa_model).get("forward_itm")
        pnp_vqa_model.forward_itm = self

    def __call__(self, samples: MutableMapping[str, Any], block_num: int = PNP_VQA_BLOCK) -> MutableMapping[str, Any]:
        """Put each pair's map into ``samples["gradcams"]``.

        Parameters
        ----------
        samples : dict
            'image': tensor [B, 3, H, W], as LAVIS's processors normalise it; of another size than the matcher's, it is
            resized for the matcher (and stays as it is in `samples`). 'text_input': B questions.
        block_num : int
            The block to read, unless one was fixed.

        Returns
        -------
        dict
            `samples` itself; 'gradcams' is a float32 tensor [B, num_patches] on the CPU, every entry positive.
        """
        torch = importlib.import_module("torch")
        image, questions = read_samples(samples)
        pixels = fit_images(to_numpy(image, "samples['image']"), self.matcher)
        block = block_num if self.block_num is None else self.block_num
        maps = self.matcher.forward_itm({"image": pixels, "text_input": questions}, block_num=block)
        maps = resample_mass(maps.reshape(len(questions), *self.matcher.grid), self.grid)
        samples["gradcams"] = torch.from_numpy(drawable(maps.reshape(len(questions), -1)))
        return samples

    def restore(self) -> None:
        """Put the former forward_itm back; a second call does nothing.

        Raises
        ------
        RuntimeError
            The method was replaced once more since; restore that one first.
        """
        if self._model is None:
            return
        if vars(self._model).get("forward_itm") is not self:
            raise RuntimeError("forward_itm was replaced again since; restore the later replacement first")
        if self._before is None:
            del self._model.forward_itm
        else:
            self._model.forward_itm = self._before
        self._model = None

    def __enter__(self) -> ReplacedForwardItm:
        return self

    def __exit__(self, *exception: object) -> None:
        self.restore()

    def __repr__(self) -> str:
        return f"ReplacedForwardItm({self.matcher!r}, block_num={self.block_num}, grid={self.grid})"


def gradcams_from(out: PathLike, grid: tuple[int, int] | None = None) -> StoredGradcams:
    """Maps that ``qavit run`` wrote, in place of PnP-VQA's question-image matching: no matcher is loaded.

    Parameters
    ----------
    out : path
        The run's folder.
    grid : (rows, columns), optional
        The captioner's patch grid, which maps of another grid are resampled to, each map's sum kept; None: the run's own.

    Returns
    -------
    StoredGradcams
        ``samples = gradcams(samples)`` does what ``pnp_vqa.forward_itm(samples)`` does, ``gradcams.maps(ids)`` gives NumPy.

    Raises
    ------
    FileNotFoundError, ValueError
        There is no run, or it cannot be read.
    """
    return StoredGradcams(out, grid)


class StoredGradcams:
    """Maps of a run by the ids of its questions; made by `gradcams_from`.

    Attributes
    ----------
    reader : qavit.data.MapReader
    grid : tuple of int
        (rows, columns) of the maps that are given.
    """

    def __init__(self, out: PathLike, grid: tuple[int, int] | None = None) -> None:
        from .data import read_maps

        self.reader = read_maps(out)
        self.grid = self.reader.grid if grid is None else _checked_grid(grid)

    def maps(self, ids: Any) -> FloatArray:
        """Maps ready to draw patches from.

        Parameters
        ----------
        ids : sequence, array or tensor of B ids
            As the run's input had them; without any, the rows' numbers.

        Returns
        -------
        float32 [B, P]
            Every entry positive.

        Raises
        ------
        KeyError
            There is no such row, or it failed.
        """
        listed = ids.tolist() if hasattr(ids, "tolist") else ids
        if isinstance(listed, (str, bytes)) or not isinstance(listed, Iterable):
            raise TypeError(f"ids: expected several, got {type(ids).__name__}")
        listed = list(listed)
        maps = resample_mass(self.reader.gather(listed), self.grid)
        return drawable(maps.reshape(len(listed), -1))

    def __call__(self, samples: MutableMapping[str, Any], block_num: int | None = None) -> MutableMapping[str, Any]:
        """Put each question's map into ``samples["gradcams"]``, as a PnP-VQA model's forward_itm does.

        Parameters
        ----------
        samples : dict
            'question_id' (or 'id'): B ids.
        block_num : int, optional
            Not looked at: the block is the run's.

        Returns
        -------
        dict
            `samples` itself; 'gradcams' is a float32 tensor [B, P] on the CPU, every entry positive.
        """
        ids = next((samples[key] for key in ("question_id", "id") if key in samples), None)
        if ids is None:
            raise ValueError(f"samples: it has {', '.join(samples)}, expected question_id (or id), one for each question")
        torch = importlib.import_module("torch")
        samples["gradcams"] = torch.from_numpy(self.maps(ids))
        return samples

    def __repr__(self) -> str:
        return f"StoredGradcams({self.reader!r}, grid={self.grid})"


def compute_gradcam(
    model: Any,
    visual_input: Any,
    text_input: str | Sequence[str],
    tokenized_text: Any = None,
    block_num: int = 6,
) -> tuple[list[Any], Any]:
    """GradCAM of the text half's cross-attention, with LAVIS's signature and numbers.

    Parameters
    ----------
    model : BlipITM, or LAVIS's own torch module
        A torch module is taken over by `from_lavis`, once, and again when its weights have changed.
    visual_input : float [B, 3, S, S], NumPy or torch
        Normalised images.
    text_input : B texts
        Taken as they are; cut to the model's number of tokens (35), with their mask.
    tokenized_text : optional
        Not looked at: the model tokenizes the texts itself, so that mask and ids always fit.
    block_num : int
        Any block but the last, whose map would be zero.

    Returns
    -------
    list of B float32 [1 + tokens, gh, gw]
        The [ENC] token's map, the mean over the words, then one map for each token behind [ENC]; zero where a text is
        padded to the batch's longest. Tensors on the CPU where `visual_input` is a tensor.
    float32 [B, 2]
        The head's logits: no match, match.

    Raises
    ------
    ValueError
        A shape or count does not fit, or the block has no map; the message names the usable blocks.
    """
    maps, logits = _matcher_of(model).gradcam_tokens(to_numpy(visual_input, "visual_input"), text_input, block_num)
    torch = torch_of(visual_input)
    return [as_kind(stack, torch) for stack in maps], as_kind(logits, torch)


def from_lavis(blip_itm_module: Any, *, tokenizer: Any = None, precision: str = "float32") -> BlipITM:
    """A matcher with the weights of a live torch module, without a file in between.

    Parameters
    ----------
    blip_itm_module : torch module
        LAVIS's blip_image_text_matching (``pnp_vqa.image_question_matching_model``), or Hugging Face's
        BlipForImageTextRetrieval. It is not changed.
    tokenizer : path, optional
        vocab.txt or tokenizer.json; None: the module's own tokenizer (LAVIS's has one).
    precision : {"float32", "bfloat16"}
        As for `qavit.load`.

    Returns
    -------
    BlipITM
        It shares the memory of weights that lie on the CPU in float32, float16 or bfloat16: do not train them on; make a
        new matcher afterwards.

    Raises
    ------
    TypeError
        This is no such module.
    ValueError
        Weights are missing or mis-shaped, or no tokenizer is there.
    """
    from .blip import BlipITM
    from .checkpoints import _open_blip
    from .text import Tokenizer, with_blip_tokens

    lavis = all(hasattr(blip_itm_module, name) for name in ("visual_encoder", "text_encoder", "itm_head"))
    hugging_face = all(hasattr(blip_itm_module, name) for name in ("vision_model", "text_encoder", "config"))
    if not (lavis or hugging_face) or not callable(getattr(blip_itm_module, "state_dict", None)):
        raise TypeError(
            "blip_itm_module: expected a torch module with visual_encoder, text_encoder and itm_head "
            f"(LAVIS's blip_image_text_matching), got {type(blip_itm_module).__name__}"
        )
    weights = {name: _weight(tensor) for name, tensor in blip_itm_module.state_dict().items()}
    config = {} if lavis else blip_itm_module.config.to_dict()
    options = _lavis_options(blip_itm_module) if lavis else {}
    name = type(blip_itm_module).__name__
    source = _open_blip(dict(weights), config, None, None, options, None, name)
    if tokenizer is not None:
        vocabulary = Tokenizer.from_folder(tokenizer).to_json()
    else:
        vocabulary = _tokenizer_json(getattr(blip_itm_module, "tokenizer", None))
    return BlipITM(replace(source, tokenizer=with_blip_tokens(vocabulary)), precision=precision)


def _matcher_of(model: Any) -> BlipITM:
    """The matcher itself, or the one made of a torch module's present weights."""
    if callable(getattr(model, "gradcam_tokens", None)):
        matcher: BlipITM = model
        return matcher
    if not callable(getattr(model, "parameters", None)):
        raise TypeError(f"model: expected a BlipITM or LAVIS's torch module, got {type(model).__name__}")
    state = tuple((tensor.data_ptr(), tensor._version) for tensor in model.parameters())
    known = _converted.get(model)
    if known is None or known[0] != state:
        known = (state, from_lavis(model))
        _converted[model] = known
    return known[1]


def _weight(tensor: Any) -> Weight:
    """A torch tensor as the core takes it: its own memory where that is possible."""
    tensor = tensor.detach().cpu().contiguous()
    dtype = str(tensor.dtype).rpartition(".")[2]
    shape = tuple(tensor.shape)
    if dtype == "bfloat16":
        torch: Any = importlib.import_module("torch")
        return (tensor.view(torch.int16).numpy(), dtype, shape, 0)
    array = tensor.numpy()
    if dtype == "float64":
        array, dtype = array.astype(np.float32), "float32"
    return (array, dtype, shape, 0)


def _lavis_options(module: Any) -> dict[str, Any]:
    """What the weights' shapes do not tell, from the module's attributes."""
    vision: dict[str, Any] = {}
    blocks = getattr(module.visual_encoder, "blocks", None)
    if blocks is not None and len(blocks):
        vision["num_attention_heads"] = int(blocks[0].attn.num_heads)
    eps = getattr(getattr(module.visual_encoder, "norm", None), "eps", None)
    if eps is not None:
        vision["layer_norm_eps"] = float(eps)
    known = ("num_attention_heads", "hidden_act", "layer_norm_eps", "fusion_layer")
    config = getattr(module.text_encoder, "config", None)
    text = {name: getattr(config, name) for name in known if isinstance(getattr(config, name, None), (int, float, str))}
    options: dict[str, Any] = {"vision": vision, "text": text}
    if getattr(module, "max_txt_len", None):
        options["max_txt_len"] = int(module.max_txt_len)
    return options


def _tokenizer_json(tokenizer: Any) -> str:
    """A Hugging Face BERT tokenizer, slow or fast, as the content of a tokenizer.json."""
    from .text import Tokenizer

    if tokenizer is None:
        raise ValueError("tokenizer: the module has none; give tokenizer= a vocab.txt or tokenizer.json")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return str(backend.to_str())
    by_number = sorted((number, token) for token, number in tokenizer.vocab.items())
    if [number for number, _ in by_number] != list(range(len(by_number))):
        raise ValueError("tokenizer: its vocabulary has gaps; give tokenizer= a vocab.txt or tokenizer.json")
    basic = getattr(tokenizer, "basic_tokenizer", None)
    lower = bool(getattr(basic, "do_lower_case", getattr(tokenizer, "do_lower_case", True)))
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.txt").write_text("".join(f"{token}\n" for _, token in by_number), encoding="utf-8")
        Path(folder, "tokenizer_config.json").write_text(f'{{"do_lower_case": {str(lower).lower()}}}', encoding="utf-8")
        return Tokenizer.from_folder(folder).to_json()


def resample_mass(maps: npt.ArrayLike, grid: tuple[int, int]) -> FloatArray:
    """Maps on another grid over the same picture, by area: what a patch holds goes where the patch lies.

    Parameters
    ----------
    maps : float [..., gh, gw]
    grid : (rows, columns)

    Returns
    -------
    float32 [..., rows, columns]
        Each map's sum is kept, and non-negative maps stay so; on the same grid the values are the same.
    """
    array = finite_numbers(maps, "maps")
    if array.ndim < 2 or 0 in array.shape[-2:]:
        raise ValueError(f"maps: shape {array.shape}, expected [..., gh, gw]")
    if array.shape[-2:] == tuple(grid):
        return array
    rows, columns = _overlap(array.shape[-2], grid[0]), _overlap(array.shape[-1], grid[1])
    return finite_numbers(rows @ array.astype(np.float64) @ columns.T, "maps")


def drawable(maps: npt.ArrayLike) -> FloatArray:
    """Maps that torch.multinomial can draw any number of patches from: zeros become the least bit positive.

    Parameters
    ----------
    maps : float [B, P], non-negative

    Returns
    -------
    float32 [B, P]
        A billionth of its map's largest value where there was nothing, all else unchanged; a map of zeros becomes
        uniform, with a warning.
    """
    array = finite_numbers(maps, "maps").copy()
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"maps: shape {array.shape}, expected [B, P]")
    largest = array.max(axis=1, keepdims=True)
    empty = np.flatnonzero(largest[:, 0] <= 0)
    if empty.size:
        warnings.warn(
            f"maps {empty.tolist()} of the batch are zero everywhere; patches will be drawn uniformly",
            UserWarning,
            stacklevel=3,
        )
        array[empty] = 1.0 / array.shape[1]
        largest[empty] = 1.0 / array.shape[1]
    least = np.maximum(largest * np.float32(_FLOOR), np.finfo(np.float32).tiny)
    return np.asarray(np.maximum(array, least), np.float32)


def fit_images(images: npt.NDArray[Any], matcher: Any) -> FloatArray:
    """Images as LAVIS normalises them, in the size and normalisation that the matcher takes.

    Parameters
    ----------
    images : float [B, 3, H, W]
        Normalised with LAVIS's mean and standard deviation.
    matcher : BlipITM or QAViT

    Returns
    -------
    float32 [B, 3, image_size, image_size]
        Resized by Pillow's antialiased bicubic filter where the size differs; without keeping the aspect, as LAVIS does.
    """
    images = to_numpy(images, "samples['image']")
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape or images.dtype.kind != "f":
        raise ValueError(f"samples['image']: expected floats [B, 3, H, W], got {images.dtype} of shape {list(images.shape)}")
    images = finite_numbers(images, "samples['image']")
    size = int(matcher.image_size)
    if images.shape[2:] != (size, size):
        images = _resized(images, size)
    # LAVIS's processors ("blip_image_eval") subtract and divide by CLIP's numbers.
    mean, std = matcher.preprocessing.mean, matcher.preprocessing.std
    if np.allclose(mean, CLIP_MEAN, atol=1e-6) and np.allclose(std, CLIP_STD, atol=1e-6):
        return images
    scale = np.array(CLIP_STD, np.float32) / np.array(std, np.float32)
    shift = (np.array(CLIP_MEAN, np.float32) - np.array(mean, np.float32)) / np.array(std, np.float32)
    return np.asarray(images * scale[:, None, None] + shift[:, None, None], np.float32)


def _resized(images: FloatArray, size: int) -> FloatArray:
    """[B, 3, H, W] -> [B, 3, size, size], float by float."""
    from PIL import Image

    out = np.empty((*images.shape[:2], size, size), np.float32)
    for source, target in zip(images.reshape(-1, *images.shape[2:]), out.reshape(-1, size, size)):
        target[:] = np.asarray(Image.fromarray(np.ascontiguousarray(source)).resize((size, size), Image.Resampling.BICUBIC))
    return out


def _overlap(before: int, after: int) -> npt.NDArray[np.float64]:
    """[after, before]: the share of each old cell that lies in each new one; columns sum to 1."""
    old, new = np.linspace(0.0, 1.0, before + 1), np.linspace(0.0, 1.0, after + 1)
    high = np.minimum(old[None, 1:], new[1:, None])
    low = np.maximum(old[None, :-1], new[:-1, None])
    shared = np.clip(high - low, 0.0, None)
    return np.asarray(shared / shared.sum(axis=0, keepdims=True))


def _checked_grid(grid: Any) -> tuple[int, int]:
    sides = [whole_number(side, "grid") for side in grid] if isinstance(grid, Iterable) else []
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(f"grid: expected (rows, columns), each at least 1, got {grid!r}")
    return sides[0], sides[1]


def _captioner_grid(model: Any, matcher: Any) -> tuple[int, int]:
    """The patch grid whose numbers forward_cap looks up in the captioner's image embeddings."""
    captioner = getattr(model, "image_captioning_model", None)
    if captioner is None:
        return _checked_grid(matcher.grid)
    encoder = getattr(captioner, "visual_encoder", None)
    patches = getattr(encoder, "patch_embed", None)
    sizes, patch = _pair(getattr(patches, "img_size", None)), _pair(getattr(patches, "patch_size", None))
    if sizes is not None and patch is not None:
        return sizes[0] // patch[0], sizes[1] // patch[1]
    positions = getattr(encoder, "pos_embed", None)
    count = 0 if positions is None else int(positions.shape[-2]) - 1
    side = math.isqrt(max(count, 0))
    if side > 0 and side * side == count:
        return side, side
    raise ValueError(
        "grid: the captioner's patch grid can't be told from image_captioning_model.visual_encoder; "
        "give grid=(rows, columns)"
    )


def _pair(value: Any) -> tuple[int, int] | None:
    """A size given as one number or as (height, width)."""
    if value is None:
        return None
    if isinstance(value, (tuple, list)):
        return int(value[0]), int(value[1])
    return int(value), int(value)
