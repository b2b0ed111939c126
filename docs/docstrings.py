"""Docstrings as Markdown: in ours a star is a star (k*, v*), never emphasis."""

import re
from typing import Any

from griffe import Extension, Object

_CODE_OR_STAR = re.compile(r"`[^`]*`|\*")


class LiteralStars(Extension):
    """Escapes the stars outside of code."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Is called for every class, function and attribute."""
        if obj.docstring:
            value = obj.docstring.value
            obj.docstring.value = _CODE_OR_STAR.sub(lambda found: found[0] if found[0] != "*" else r"\*", value)
