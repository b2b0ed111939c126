"""The facts that ship with the package."""

from importlib import resources

from rome_lens.checking import checked
from rome_lens.data.readers.counterfact import load_counterfact
from rome_lens.data.records import EditRecord


@checked
def load_builtin_records() -> list[EditRecord]:
    """The facts that ship with this package: SmolLM2-135M predicts each of them; CounterFact's schema."""
    with resources.as_file(resources.files("rome_lens") / "data" / "builtin" / "facts.json") as path:
        return load_counterfact(path)
