from ._look import Look as Look
from ._look import Readable as Readable
from .attention import merge_heads as merge_heads
from .base import Method as Method
from .class_token import read_class as read_class
from .custom import read_custom as read_custom
from .question_tokens import read_question as read_question
from .words import read_words as read_words

__all__ = [
    "Look",
    "Method",
    "Readable",
    "merge_heads",
    "read_class",
    "read_custom",
    "read_question",
    "read_words",
]
