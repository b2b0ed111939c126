"""What works with each configuration of the zoo: loading, tracing, editing, and the edit on Hugging Face's own class.

python -m tests.conformance.zoo [--out docs/families.csv]
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

import rome_lens as rl
from rome_lens import models
from rome_lens.data.records import subject_range
from rome_lens.models import Model
from rome_lens.models.loading.checkpoint import auto_class
from rome_lens.models.mlp.huggingface import MODULE_OF
from tests.conformance.configurations import CONFIGURATIONS, save
from tests.conformance.plain import LAYER, REQUEST, edit, plain_trace, trace

ROWS = [torch.randint(1, 380, (1, n), generator=torch.Generator().manual_seed(n)) for n in (7, 100)]
_CLOSE = {"atol": 2e-4, "rtol": 0.0}


def hugging_face(folder: Path) -> PreTrainedModel:
    auto = auto_class(AutoConfig.from_pretrained(folder))
    return auto.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def differences(model: Model, expected: PreTrainedModel) -> list[float]:
    """The largest difference of any log-probability at any position, for each row."""
    pairs = ((model(row).log_softmax(-1), expected(row).logits.log_softmax(-1)) for row in ROWS)
    return [(found - wanted).abs().max().item() for found, wanted in pairs]


def check_traces(model: Model) -> None:
    """Traces are those of a plain loop. Raises AssertionError if not, and what the package raises."""
    for kind in ("resid", "mlp"):
        found = trace(model, kind)
        for (position, layer), expected in plain_trace(model, found).items():
            assert found.restored[position, layer].item() == pytest.approx(expected, abs=2e-5), (kind, position, layer)


@torch.no_grad()
def check_edit(model: Model, expected: PreTrainedModel) -> None:
    """W k* = v*; hooks do what weights do, in Hugging Face's class too; all is put back bit for bit."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = edit(model, tokens=300, steps=4)
    text, subject = subject_range(model, REQUEST)
    names = models.key_name(LAYER), models.state_name("mlp", LAYER)

    def read() -> tuple[Tensor, Tensor]:
        states = models.run_and_read(model, torch.tensor([text.ids]), names)
        key, contribution = (states[name][0, subject.stop - 1] for name in names)
        return key, contribution

    key, _ = read()
    update = found.updates[0]
    value = models.mlp_output(model, LAYER, key) + (key @ update.left) @ update.right
    with found.applied(model):
        torch.testing.assert_close(models.mlp_output(model, LAYER, key), value, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(read()[1], models.mlp_contribution(model, LAYER, value), atol=1e-3, rtol=1e-4)
        edited = model(ROWS[0]).log_softmax(-1)
    with model.hooks(fwd_hooks=found.hooks(model)):
        torch.testing.assert_close(model(ROWS[0]).log_softmax(-1), edited, **_CLOSE)
    if expected.config.model_type in MODULE_OF:
        with found.applied(expected):
            torch.testing.assert_close(expected(ROWS[0]).logits.log_softmax(-1), edited, **_CLOSE)
    for name, value in model.state_dict().items():  # what BLOOM does not use is NaN
        torch.testing.assert_close(value, before[name], atol=0, rtol=0, equal_nan=True)


def row(name: str, folder: Path) -> dict[str, str]:
    """What works with one configuration, as `docs/families.csv` has it."""
    expected = hugging_face(save(folder, name))
    found = {"configuration": name, "family": expected.config.model_type}
    try:
        model = rl.load_model(folder, device="cpu")
    except rl.errors.FormatError:
        return found | {"loaded": "refused", "traced": "", "edited": ""}
    assert max(differences(model, expected)) < _CLOSE["atol"], name
    checks = {"traced": lambda: check_traces(model), "edited": lambda: check_edit(model, expected)}
    return found | {"loaded": type(model).__name__} | {what: _done(check) for what, check in checks.items()}


def _done(check: Callable[[], None]) -> str:
    try:
        check()
    except (ValueError, rl.errors.EditError):  # the package's own refusals; all else is a fault
        return "refused"
    return "yes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/families.csv"))
    out = parser.parse_args().out
    rows = []
    for name in CONFIGURATIONS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(name, Path(folder)))
        print(*rows[-1].values(), sep=", ", flush=True)
    table = pd.DataFrame(rows)
    table.to_csv(out, index=False)
    print(table["loaded"].value_counts().to_string())


if __name__ == "__main__":
    main()
