"""A pytest plugin: every model of the core that a test makes is put on QAVIT_TEST_DEVICE ("cuda", "cuda-host")."""

from __future__ import annotations

import os
from typing import Any

from qavit import _core


def _put(name: str, device: str) -> None:
    real = getattr(_core, name)

    class OnDevice:
        def __new__(cls, *arguments: Any, **options: Any) -> Any:
            options.setdefault("device", _core.Device(device))
            return real(*arguments, **options)

    setattr(_core, name, OnDevice)


def pytest_configure() -> None:
    device = os.environ["QAVIT_TEST_DEVICE"]
    for name in ("Vit", "T5Encoder", "BertEncoder", "ClipTextEncoder", "BlipItm", "BlipQuestionEncoder", "Decoder"):
        _put(name, device)
