"""From the map to the answer: PnP-VQA's three models as one, and what made its answer."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
