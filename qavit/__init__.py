"""Where a vision model looks for a question: attention heatmaps from a C core, without torch."""

from __future__ import annotations

__version__ = "0.1.0"
