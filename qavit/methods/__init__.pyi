from .attention import apply_method as apply_method
from .attention import merge_heads as merge_heads
from .attention import read_class as read_class
from .attention import read_question as read_question
from .attention import read_words as read_words
from .attention import to_distribution as to_distribution

__all__ = [
    "apply_method",
    "merge_heads",
    "read_class",
    "read_question",
    "read_words",
    "to_distribution",
]
