"""Ways of reading a map, one file each.

A method is one file of this folder with a class that derives from `Method` and an object of it as ``METHOD``:

    class Rollout(Method):
        name = "rollout"

        def suits(self, model): return "attention" in model.reads
        def blocks(self, model): return tuple(range(model.num_blocks))
        def by_block(self, look, blocks, heads): ...   # float32 [Q, len(blocks), P], from look.attention(blocks)

Nothing else names it: models that it suits list it in their `methods`, and ``model.heatmaps(..., method="rollout")``, the
command line and data-set runs take it. One of a program's own is given as it is, ``method=Rollout()``, and so is any
function of a block's raw attention.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
