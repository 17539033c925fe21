"""The name that existing scripts import; everything is in `qavit.heatmap_demo`."""

from qavit.heatmap_demo import QAViTHeatmapDemo, create_simple_demo_model

__all__ = ["QAViTHeatmapDemo", "create_simple_demo_model"]
