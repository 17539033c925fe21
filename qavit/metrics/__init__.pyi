from ._pointing import attention_inside as attention_inside

__all__ = [
    "attention_inside",
]
