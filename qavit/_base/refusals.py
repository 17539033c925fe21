"""What the tokenizers library refuses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def refusals(what: str) -> Iterator[None]:
    """Failures of the tokenizers library as ValueError; its panics, which are no Exception, too."""
    try:
        yield
    except BaseException as err:
        if not isinstance(err, Exception) and type(err).__name__ != "PanicException":
            raise
        raise ValueError(f"tokenizer: {what}: {err}") from None
