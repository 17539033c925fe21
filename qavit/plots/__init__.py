"""Figures, pages and overlays of maps."""

import lazy_loader

from .._base.drawing import import_despite_backend

import_despite_backend()
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
