"""The notebook's widget: the viewer of the page, asking by the notebook's own channel."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .._base.arguments import one_line
from .._base.extras import require
from ._page import file_text, viewer_markup


def make_widget(
    about: Mapping[str, Any],
    content: Mapping[str, Any],
    questions: Sequence[str],
    ask: Callable[[Mapping[str, Any]], dict[str, Any]],
) -> Any:
    """An anywidget that shows `content` and asks; ValueError and TypeError of `ask` are shown to the person.

    Parameters
    ----------
    about, content, questions
        What ask.js takes.
    ask : callable
        From what is asked, as JSON, to what page.js shows.
    """
    widget = _kind()(start={"about": about, "content": content, "questions": list(questions)})

    def answer(_: Any, message: Any, __: Any) -> None:
        if not isinstance(message, dict) or not isinstance(message.get("asked"), dict):
            return
        reply: dict[str, Any] = {"id": message.get("id")}
        try:
            reply["content"] = ask(message["asked"])
        except (ValueError, TypeError, OSError, MemoryError) as error:
            reply["error"] = one_line(error)
        widget.send(reply)

    widget.on_msg(answer)
    return widget


@functools.cache
def _kind() -> Any:
    """The class, made when it is first needed: anywidget is an extra."""
    anywidget = require("anywidget", "widget")
    traitlets = require("traitlets", "widget")
    constants = (
        f"const STYLE = {json.dumps(file_text('page.css'))};\nconst MARKUP = {json.dumps(viewer_markup('', asks=True))};"
    )
    script = "\n".join([file_text("page.js"), file_text("ask.js"), constants, file_text("widget.js")])

    class Explorer(anywidget.AnyWidget):  # type: ignore[misc, name-defined]
        """Map and answer follow what is typed."""

        _esm = script
        start = traitlets.Dict().tag(sync=True)

        def __init__(self, **values: Any) -> None:
            super().__init__(**values)
            self._made = self.layout

        def close(self) -> None:
            """With the layout that was made for it, which would otherwise stay as long as the process."""
            made, self._made = getattr(self, "_made", None), None
            super().close()
            if made is not None:
                made.close()

    return Explorer
