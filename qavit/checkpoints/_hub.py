"""Models by their name on the Hugging Face hub, through huggingface_hub."""

from __future__ import annotations

import importlib
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_SMALL = ["*.json", "*.txt", "*.model", "adapter_model.*"]
#: Forms of the weights; the first that is there is fetched.
_WEIGHTS = (
    "model*.safetensors", "open_clip_model*.safetensors", "pytorch_model*.bin", "open_clip_pytorch_model*.bin", "*.pt",
)  # fmt: skip
_SECONDS = 4.0


@dataclass(frozen=True)
class Hub:
    """Whether and how names may be looked up on the Hugging Face hub: only ``hf://owner/name``, or where it is ``asked``."""

    asked: bool = False
    revision: str | None = None
    local_files_only: bool = False


NO_HUB = Hub()


def model_folder(name: str, argument: str, hub: Hub) -> Path:
    """The local folder of a model on the hub: settings, tokenizer, and its weights in one form.

    Raises
    ------
    FileNotFoundError
        Where the model is neither cached nor to be had, after a few seconds; says what to do.
    """
    try:
        client: Any = importlib.import_module("huggingface_hub")
        constants: Any = importlib.import_module("huggingface_hub.constants")
    except ImportError:
        raise FileNotFoundError(
            f"{argument}: to fetch {name!r} from the Hugging Face hub, install huggingface_hub, or download "
            f"https://huggingface.co/{name} and give its folder"
        ) from None
    options: dict[str, Any] = {"revision": hub.revision, "local_files_only": hub.local_files_only}
    if constants.HF_HUB_OFFLINE or not (hub.local_files_only or _reachable(constants.ENDPOINT)):
        options["local_files_only"] = True
    try:
        folder = Path(client.snapshot_download(name, allow_patterns=_SMALL, ignore_patterns=["*/*"], **options))
        for form in _WEIGHTS:
            client.snapshot_download(name, allow_patterns=[form], ignore_patterns=["*/*"], **options)
            if any(folder.glob(form)):
                break
    except Exception as err:
        reason = str(err).strip().split("\n")[0][:300]
        if options["local_files_only"] and not hub.local_files_only:
            reason = f"{constants.ENDPOINT} cannot be reached, and the model is not in the cache"
        raise FileNotFoundError(
            f"{argument}: no model {name!r} from the Hugging Face hub: {reason}. Download https://huggingface.co/{name} and "
            "give its folder"
        ) from err
    return folder


def _reachable(endpoint: str) -> bool:
    """Whether anything answers there, or at the proxy on the way; asked first, as the hub's client tries for long."""
    import socket
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(endpoint)
    proxy = getproxies().get(parts.scheme)
    if proxy and parts.hostname and not proxy_bypass(parts.hostname):
        parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    answered: list[bool] = []

    def ask() -> None:
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            socket.create_connection((parts.hostname or "", port), _SECONDS).close()
        except (OSError, ValueError):
            return
        answered.append(True)

    asking = threading.Thread(target=ask, daemon=True)  # looking up a host's name has no limit of its own
    asking.start()
    asking.join(_SECONDS)
    return bool(answered)
