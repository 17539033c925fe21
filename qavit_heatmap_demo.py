"""The name that existing scripts import."""

from qavit._heatmap_demo import DemoEntry, QAViTHeatmapDemo, create_simple_demo_model

__all__ = ["DemoEntry", "QAViTHeatmapDemo", "create_simple_demo_model"]
