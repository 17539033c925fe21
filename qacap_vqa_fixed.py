"""The name that existing scripts import; everything is in `qavit.lavis`."""

from qavit import PNPVQAWithQAViT

__all__ = ["PNPVQAWithQAViT"]
