"""The name that existing scripts import."""

from qavit._heatmap_demo import QAViTHeatmapDemo, create_simple_demo_model

__all__ = ["QAViTHeatmapDemo", "create_simple_demo_model"]
