from ._explanation import Explanation as Explanation
from ._pnpvqa import PNPVQA as PNPVQA

__all__ = ["PNPVQA", "Explanation"]
