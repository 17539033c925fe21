"""Texts that a decoder writes: what is left of its logits, what is drawn, and the loops around it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
