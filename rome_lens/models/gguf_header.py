"""The header of a GGUF file, checked before anything is built of it."""

from pathlib import Path

from rome_lens.errors import FormatError


def check_gguf(path: Path) -> None:
    """Raises FormatError unless the file begins as a GGUF file does."""
    with path.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise FormatError(f"{path} does not begin with the four bytes GGUF.")
