"""What stands beside weights about pictures: settings of image processors, read as `Preprocessing`'s dict or refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .._base.arguments import height_and_width, image_size
from .._base.small_files import read_json_object
from .._base.types import ImageSize
from ..images import CLIP_MEAN, CLIP_STD, FILTERS, SMOOTH, Preprocessing

OPEN_CLIP = "open_clip_config.json"
_HALF = (0.5, 0.5, 0.5)
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD, "resample": 3, "default_to_square": False, "do_center_crop": True}
_BLIP = {**_CLIP, "default_to_square": True, "do_center_crop": False}
_SIGLIP = {**_BLIP, "image_mean": _HALF, "image_std": _HALF, "default_to_square": False}
_VIT = {**_SIGLIP, "resample": 2, "default_to_square": True}
_BIT = {**_CLIP, "size": {"shortest_edge": 224}}
_DINO = {**_CLIP, "image_mean": _IMAGENET[0], "image_std": _IMAGENET[1], "size": {"shortest_edge": 256}}
_DINO3 = {**_VIT, "image_mean": _IMAGENET[0], "image_std": _IMAGENET[1], "rounded": False}
_DEIT = {
    **_VIT, "image_mean": _IMAGENET[0], "image_std": _IMAGENET[1], "resample": 3, "do_center_crop": True,
    "size": {"height": 256, "width": 256},
}  # fmt: skip
#: What transformers' processors take where a file says nothing; the class's name without "ImageProcessor" and what follows.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIP": _CLIP, "ChineseCLIP": _CLIP, "Blip": _BLIP, "ViT": _VIT, "DeiT": _DEIT, "Siglip": _SIGLIP, "Bit": _BIT,
    "DINOv3ViT": _DINO3, "Siglip2": _VIT,
}  # fmt: skip
#: The same by architecture, where no file says anything, or no processor's name; CLIP's for the others.
_OWN = {
    "blip_itm": _BLIP, "blip2_itm": _BLIP, "albef": _BLIP, "blip_vqa": _BLIP, "blip_caption": _BLIP,
    "siglip": {**_SIGLIP, "default_to_square": True}, "vit": _VIT, "deit": _DEIT, "dinov2": _DINO, "dinov3": _DINO3,
    "timm": _VIT, "naflex": _VIT,
}  # fmt: skip
#: The side in pixels that lengths among those defaults belong to.
_MADE_FOR = {"dinov2": 224, "deit": 224}
#: Said about other things than the pixels of an RGB picture.
_SILENT = {
    "image_processor_type", "feature_extractor_type", "processor_class", "_processor_class", "auto_map", "default_to_square",
    "do_convert_rgb", "do_reduce_labels", "reduce_labels", "return_tensors", "data_format", "input_data_format", "device",
    "disable_grouping", "use_fast", "_valid_processor_keys", "model_input_names", "image_seq_length", "num_channels",
    "transformers_version", "patch_size", "do_pad", "pad_size", "backend", "max_num_patches",
}  # fmt: skip
_OBEYED = {
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize",
    "image_mean", "image_std",
}  # fmt: skip


def default_preprocessing(architecture: str, size: ImageSize) -> dict[str, Any]:
    """What a model of this kind was trained with, where nothing is said."""
    if architecture in _MADE_FOR:
        return at_size(from_image_processor({}, _MADE_FOR[architecture], architecture), size)
    return from_image_processor({}, size, architecture)


def folder_preprocessing(
    folder: Path | None, architecture: str, own: ImageSize, asked: ImageSize | None, given: Mapping[str, Any]
) -> dict[str, Any]:
    """A folder's picture settings for a model of the size ``own``, or the size that was ``asked`` for instead.

    Parameters
    ----------
    folder : Path, optional
        Its preprocessor_config.json, processor_config.json (what transformers 5 writes), or open_clip_config.json is read;
        None: the architecture's defaults.
    given : dict
        ``config["preprocessing"]``, which wins over files; where it says resize, mean and std, no file is read.

    Raises
    ------
    ValueError
        Where a file says what cannot be obeyed, naming the file and the setting.
    """
    size = own if asked is None else asked
    if folder is not None and not {"resize", "mean", "std"} <= given.keys():
        found = _settings_file(folder)
        if found is not None:
            path, settings, read = found
            try:
                return {**at_size(read(settings, own, architecture), size), **given}
            except ValueError as err:
                raise ValueError(f"{path}: {err}") from None
    return {**at_size(default_preprocessing(architecture, own), size), **given}


def at_size(settings: Mapping[str, Any], size: ImageSize) -> dict[str, Any]:
    """The same for a model of another size."""
    made = Preprocessing.from_dict(settings)
    return dict(settings) if made.size == size else made.resized(size).to_dict()


def folder_size(folder: Path, usual: ImageSize) -> ImageSize:
    """The size in pixels of what a folder's picture settings make; ``usual`` where they do not say."""
    found = _settings_file(folder)
    if found is None:
        return usual
    path, settings, read = found
    try:
        if read is from_timm:
            return _timm_size(settings)
        wanted = settings.get("crop_size") if settings.get("do_center_crop") is not False else None
        wanted = settings.get("size") if wanted is None else wanted
        return usual if wanted is None else image_size(_pair(wanted, "size"), "size")
    except ValueError as err:
        raise ValueError(f"{path}: {err}") from None


Reader = Callable[[Mapping[str, Any], ImageSize, str], dict[str, Any]]


def _settings_file(folder: Path) -> tuple[Path, Mapping[str, Any], Reader] | None:
    path = folder / "preprocessor_config.json"
    if path.is_file():
        return path, read_json_object(path), from_image_processor
    path = folder / "processor_config.json"
    if path.is_file():
        inner = read_json_object(path).get("image_processor")
        if isinstance(inner, Mapping):
            return path, inner, from_image_processor
    path = folder / OPEN_CLIP
    if path.is_file():
        settings = read_json_object(path).get("preprocess_cfg")
        return path, settings if isinstance(settings, Mapping) else {}, from_open_clip
    path = folder / "config.json"
    settings = read_json_object(path).get("pretrained_cfg") if path.is_file() else None
    return (path, settings, from_timm) if isinstance(settings, Mapping) else None


def from_image_processor(settings: Mapping[str, Any], size: ImageSize, architecture: str = "clip") -> dict[str, Any]:
    """Settings of transformers' image processors as `Preprocessing`'s dict, for a model that takes pictures of a size."""
    defaults = _processor_defaults(settings, architecture)

    def say(key: str, default: Any = None) -> Any:
        value = settings.get(key)
        return defaults.get(key, default) if value is None else value

    unknown = [key for key in settings if key not in _SILENT | _OBEYED and settings[key] not in (None, False, [], {})]
    if unknown:
        raise ValueError(
            f"{', '.join(f'{key} {settings[key]!r:.60}' for key in unknown[:4])} is not known, so it cannot be obeyed; give "
            "config={'preprocessing': {'resize': ..., 'mean': ..., 'std': ...}} to say how pictures are made"
        )
    for key in ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_pad"):
        if not isinstance(say(key, True), bool):
            raise ValueError(f"{key} is {settings[key]!r:.40}, expected true or false")
    edges = height_and_width(size)
    result: dict[str, Any] = {"size": size, "resize": "none", "crop": bool(say("do_center_crop", False))}
    if say("do_resize", True):
        square = say("default_to_square", True)
        wanted = say("size", {"height": edges[0], "width": edges[1]} if square else {"shortest_edge": min(edges)})
        result.update(_resize_of(wanted, square is not False))
        result["filter"] = _filter_of(say("resample", 3))
    if result["crop"]:
        height, width = _pair(say("crop_size", edges), "crop_size")
        if (height, width) != edges:
            raise ValueError(f"crop_size is {height} x {width}, the model takes {edges[0]} x {edges[1]} pixels")
    elif result["resize"] == "exact" and tuple(result["resize_to"]) != edges:
        height, width = result["resize_to"]
        raise ValueError(f"size is {height} x {width}, the model takes {edges[0]} x {edges[1]} pixels")
    if say("do_pad", False):
        _refuse_padding(result, settings, edges)
    result["rescale"] = say("rescale_factor", 1 / 255) if say("do_rescale", True) else 1.0
    normalize = say("do_normalize", True)
    result["mean"] = say("image_mean", CLIP_MEAN) if normalize else 0.0
    result["std"] = say("image_std", CLIP_STD) if normalize else 1.0
    if result["resize"] == "exact" and not result["crop"] and result.get("filter") in SMOOTH:
        result["rounded"] = defaults.get("rounded", True)  # no setting: that processor's way
    return _checked(result)


def _refuse_padding(result: Mapping[str, Any], settings: Mapping[str, Any], edges: tuple[int, int]) -> None:
    """do_pad does nothing to pictures that all are as large as the model's input; to others it would."""
    target = settings.get("pad_size")
    if not (result["crop"] or result["resize"] == "exact") or (target and _pair(target, "pad_size") != edges):
        raise ValueError("do_pad is true: pictures padded behind their last row and column are not known")


def _processor_defaults(settings: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    own = _OWN.get(architecture, _CLIP)
    name = settings.get("image_processor_type") or settings.get("feature_extractor_type")
    if name is None:
        return own
    if not isinstance(name, str):
        raise ValueError(f"image_processor_type is {name!r:.40}, expected a name")
    for end in ("Pil", "Fast", "ImageProcessor", "FeatureExtractor"):
        name = name.removesuffix(end)
    if name in _DEFAULTS:
        return _DEFAULTS[name]
    telling = ("size", "resample", "image_mean", "image_std", "do_center_crop")
    needed = [key for key in telling if settings.get(key) is None]
    if needed:
        raise ValueError(f"image processor {name!r:.60} is not known, and nothing is said about {', '.join(needed)}")
    return {}


def _resize_of(wanted: Any, square: bool) -> dict[str, Any]:
    """`Preprocessing`'s resize and resize_to of transformers' size."""
    if not isinstance(wanted, Mapping):
        height, width = _pair(wanted, "size")
        if square or isinstance(wanted, (list, tuple)):
            return {"resize": "exact", "resize_to": [height, width]}
        return {"resize": "shortest_edge", "resize_to": height}
    keys = {key for key, value in wanted.items() if value is not None}
    for key in keys:
        _edge(wanted[key], f"size.{key}")
    if keys == {"height", "width"}:
        return {"resize": "exact", "resize_to": [wanted["height"], wanted["width"]]}
    if keys == {"shortest_edge"}:
        return {"resize": "shortest_edge", "resize_to": wanted["shortest_edge"]}
    if keys == {"shortest_edge", "longest_edge"}:
        return {"resize": "shortest_edge", "resize_to": [wanted["shortest_edge"], wanted["longest_edge"]]}
    raise ValueError(f"size is {dict(wanted)!r:.100}, expected height and width, or shortest_edge (and longest_edge)")


def _edge(value: Any, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 16384:
        raise ValueError(f"{key} is {value!r:.40}, expected a whole number from 1 to 16384")
    return value


def _pair(value: Any, key: str) -> tuple[int, int]:
    if isinstance(value, Mapping):
        value = (value.get("height"), value.get("width")) if "shortest_edge" not in value else (value["shortest_edge"],) * 2
    if isinstance(value, (list, tuple)):
        if len(value) not in (1, 2):
            raise ValueError(f"{key} is {value!r:.60}, expected height and width")
        return _edge(value[0], key), _edge(value[-1], key)
    return _edge(value, key), _edge(value, key)


def _filter_of(value: Any) -> str:
    """One of `FILTERS`, of Pillow's number or of a name."""
    if isinstance(value, str) and value.lower() in FILTERS:
        return value.lower()
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(FILTERS):
        return FILTERS[value]
    raise ValueError(f"resample is {value!r:.40}, expected 0 to 5 (Pillow's filters) or one of {', '.join(FILTERS)}")


def _checked(result: dict[str, Any]) -> dict[str, Any]:
    """In one spelling: lengths that are the model's own are left out."""
    size = result["size"]
    if result.get("resize_to") in (size, list(height_and_width(size))) and result["resize"] in ("shortest_edge", "exact"):
        result["resize_to"] = None
    if result["resize"] == "exact" and result.get("resize_to") is None:
        result["crop"] = False
    return Preprocessing.from_dict(result).to_dict()


def from_open_clip(settings: Mapping[str, Any], size: ImageSize, architecture: str = "clip") -> dict[str, Any]:
    """open_clip's preprocess_cfg, which OpenAI's own settings stand behind, as `Preprocessing`'s dict."""
    known = {"size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color"}
    unknown = sorted(str(key) for key in settings.keys() - known if settings[key] is not None)
    if unknown:
        raise ValueError(f"preprocess_cfg: {', '.join(unknown[:4])} is not known, so it cannot be obeyed")
    if settings.get("mode", "RGB") != "RGB":
        raise ValueError(f"preprocess_cfg: mode is {settings['mode']!r:.40}, expected 'RGB'")
    height, width = height_and_width(size)
    if settings.get("size") is not None and _pair(settings["size"], "preprocess_cfg: size") != (height, width):
        raise ValueError(f"preprocess_cfg: size is {settings['size']!r:.40}, the model takes {height} x {width} pixels")
    mode = settings.get("resize_mode") or "shortest"
    resizes = {
        "shortest": {"resize": "shortest_edge", "crop": True},
        "longest": {"resize": "longest_edge", "crop": True},
        "squash": {"resize": "exact", "crop": False},
    }
    if not isinstance(mode, str) or mode not in resizes:
        raise ValueError(f"preprocess_cfg: resize_mode is {mode!r:.40}, expected one of {', '.join(resizes)}")
    fill = settings.get("fill_color") or 0
    if mode == "longest" and fill not in (0, [0, 0, 0]):
        raise ValueError(f"preprocess_cfg: fill_color is {fill!r:.40}, only black is known")
    return _checked(
        {
            "size": size,
            **resizes[mode],
            "filter": _filter_of(settings.get("interpolation") or "bicubic"),
            "margin": "even",
            "mean": settings.get("mean") or CLIP_MEAN,
            "std": settings.get("std") or CLIP_STD,
        }
    )


def _timm_size(settings: Mapping[str, Any]) -> int:
    size = settings.get("input_size", [3, 224, 224])
    if not isinstance(size, (list, tuple)) or len(size) != 3 or size[1] != size[2]:
        raise ValueError(f"pretrained_cfg: input_size is {size!r:.60}, expected [3, side, side]")
    return _edge(size[1], "pretrained_cfg: input_size")


def from_timm(settings: Mapping[str, Any], size: ImageSize, architecture: str = "timm") -> dict[str, Any]:
    """Timm's pretrained_cfg, as it makes pictures for evaluation, as `Preprocessing`'s dict."""
    side = _timm_size(settings)
    if side != size:
        height, width = height_and_width(size)
        given = settings["input_size"]
        raise ValueError(f"pretrained_cfg: input_size is {given}, the model takes {height} x {width} pixels")
    part, mode = settings.get("crop_pct") or 0.875, settings.get("crop_mode") or "center"
    if isinstance(part, bool) or not isinstance(part, (int, float)) or not 0.1 <= part <= 1:
        raise ValueError(f"pretrained_cfg: crop_pct is {part!r:.40}, expected a number from 0.1 to 1")
    if mode not in ("center", "squash"):
        raise ValueError(f"pretrained_cfg: crop_mode is {mode!r:.40}, expected 'center' or 'squash'")
    length = math.floor(side / part)
    return _checked(
        {
            "size": size,
            "resize": "exact" if mode == "squash" else "shortest_edge",
            "resize_to": [length, length] if mode == "squash" else length,
            "crop": True,
            "filter": _filter_of(settings.get("interpolation") or "bicubic"),
            "margin": "even",
            "mean": settings.get("mean") or _IMAGENET[0],
            "std": settings.get("std") or _IMAGENET[1],
        }
    )
