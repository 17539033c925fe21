from qavit._heatmap_demo import DemoEntry as DemoEntry
from qavit._heatmap_demo import QAViTHeatmapDemo as QAViTHeatmapDemo
from qavit._heatmap_demo import create_simple_demo_model as create_simple_demo_model

__all__ = ["DemoEntry", "QAViTHeatmapDemo", "create_simple_demo_model"]
