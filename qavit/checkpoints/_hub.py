"""Models by their name on the Hugging Face hub, through huggingface_hub where it is installed."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

_NAME = re.compile(r"^[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?$")
_SMALL = (
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def looks_like_name(text: str) -> bool:
    """Whether a text can be a name on the hub (``owner/model``) rather than a path."""
    return "/" in text and _NAME.match(text) is not None


def model_folder(name: str, argument: str) -> Path:
    """The local folder of a model on the hub: from the cache, downloaded where the hub is reachable.

    Only what `qavit.load` reads is downloaded: configurations, tokenizer, and one form of the weights.

    Raises
    ------
    FileNotFoundError
        Where huggingface_hub is not installed, or the model is neither cached nor reachable; says what to do.
    """
    try:
        client: Any = importlib.import_module("huggingface_hub")
        utilities: Any = importlib.import_module("huggingface_hub.utils")
    except ImportError:
        raise FileNotFoundError(
            f"{argument}: there is no folder {name!r}. To fetch it from the Hugging Face hub, install huggingface_hub "
            f"(pip install 'qavit[hub]'), or download https://huggingface.co/{name} and give its folder"
        ) from None

    def get(file: str) -> Path:
        return Path(client.hf_hub_download(name, file))

    def try_get(file: str) -> Path | None:
        try:
            return get(file)
        except utilities.EntryNotFoundError:
            return None

    try:
        folder = get("config.json").parent
        for file in _SMALL:
            try_get(file)
        for file in _WEIGHTS:
            found = try_get(file)
            if found is None:
                continue
            if file.endswith(".index.json"):
                from .formats.safetensors_files import index_files

                for shard in index_files(found):
                    get(shard)
            break
    except Exception as err:
        raise _explain(err, name, argument) from err
    return folder


def _explain(err: Exception, name: str, argument: str) -> Exception:
    """A short reason in place of the hub client's own exceptions, which differ between its versions."""
    reason: Any = str(err).strip().split("\n")[0][:300]
    return FileNotFoundError(
        f"{argument}: there is no folder {name!r}, and the Hugging Face hub gave no such model: {reason}. "
        f"Download https://huggingface.co/{name} and give its folder"
    )
