"""What other libraries are known to break by themselves. Strict: that one was mended is told."""

import pytest
import transformers

NEWER = tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 24)
"""Whether transformers is 5.24 or newer."""


def generating(*, on_a_bridge: bool) -> pytest.MarkDecorator:
    """For a test that calls `model.generate`: TransformerLens up to 4.3 gives it a past by the name before 5.24."""
    reason = "transformers 5.24 renamed the past that TransformerLens' generate of a Bridge gives"
    return pytest.mark.xfail(on_a_bridge and NEWER, reason=reason, raises=FutureWarning, strict=True)
