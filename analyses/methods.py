"""The editing methods that analyses compare, by name."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from transformer_lens import HookedTransformer

import rome_lens as rl
from rome_lens.evaluate.sequence import Method

PRESETS: dict[str, Callable[[], rl.RomeConfig]] = {"consistent": rl.RomeConfig, "reference": rl.RomeConfig.reference}
FINETUNING = {"ft": rl.FinetuneConfig(), "ft+l": rl.FinetuneConfig.constrained(max_change=2e-3)}  # see there
CHOICES = (*PRESETS, *FINETUNING, "kn", "mend")


def chosen_method(
    name: str, model: HookedTransformer, covariance: rl.KeyCovariance | None, mend_editor: Path | None = None
) -> Method:
    """ROME with contexts that are sampled once, before the first edit; or one of the baselines.

    Raises:
        ValueError: the method is "mend", and no editor's file is given.
    """
    if name in FINETUNING:
        return partial(rl.finetune, config=FINETUNING[name], on_unhealthy="ignore", progress=False)
    if name == "kn":
        return partial(rl.kn, on_unhealthy="ignore", progress=False)
    if name == "mend":
        if mend_editor is None:
            raise ValueError(
                "MEND needs a trained editor. Train one (analyses.train_mend) and give --mend-editor PATH."
            )
        return partial(rl.mend, editor=rl.Mend.load(mend_editor, device=model.cfg.device), on_unhealthy="ignore")
    config = PRESETS[name]()
    config = replace(config, contexts=rl.sample_contexts(model, config.context_lengths, seed=config.seed))
    return partial(rl.rome, covariance=covariance, config=config, on_unhealthy="ignore", progress=False)
