from ._generated import Generated as Generated
from ._processors import process_logits as process_logits

__all__ = ["Generated", "process_logits"]
