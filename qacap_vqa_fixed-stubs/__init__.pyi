from qavit import PNPVQAWithQAViT as PNPVQAWithQAViT

__all__ = ["PNPVQAWithQAViT"]
