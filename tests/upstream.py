"""What other libraries are known to break by themselves. Strict: that one was mended is told."""

import pytest
import transformers

from rome_lens.models import Model

NEWER = tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 24)
"""Whether transformers is 5.24 or newer."""


def generating(*, on_a_bridge: bool) -> pytest.MarkDecorator:
    """For a test that calls `model.generate`: TransformerLens up to 4.3 gives it a past by the name before 5.24."""
    reason = "transformers 5.24 renamed the past that TransformerLens' generate of a Bridge gives"
    return pytest.mark.xfail(on_a_bridge and NEWER, reason=reason, raises=FutureWarning, strict=True)


def with_tokenizer(monkeypatch: pytest.MonkeyPatch, model: Model, tokenizer: object) -> None:
    """Gives a model another tokenizer for a test; a Bridge's setter would make one of it that adds BOS."""
    monkeypatch.setattr(model, "_tokenizer" if hasattr(model, "_tokenizer") else "tokenizer", tokenizer)
