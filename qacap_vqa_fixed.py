"""The name that existing scripts import; everything is in `qavit.pnpvqa`."""

from qavit.pnpvqa import PNPVQAWithQAViT

__all__ = ["PNPVQAWithQAViT"]
