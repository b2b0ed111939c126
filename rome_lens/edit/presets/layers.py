"""Which layer others edit in known models."""

from rome_lens.checking import checked
from rome_lens.edit.presets.table import preset_to_use
from rome_lens.models import Model


@checked
def suggested_layer(model: Model) -> int:
    """The layer of `RomeConfig.for_model(model)`: where to start, not what is best for each fact.

    Raises:
        ValueError: none is known for the model's family.
    """
    return preset_to_use(model, "rome").layers[-1]
