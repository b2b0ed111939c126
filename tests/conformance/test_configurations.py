"""Loading gives the same function, or refuses: for the configurations that published checkpoints have."""

import re
import sys

import pandas as pd
import pytest
from transformers import AutoTokenizer

import rome_lens as rl
from rome_lens.models import model_identity
from rome_lens.models.kinds import HAS_HOOKED
from tests.conformance.configurations import CONFIGURATIONS, save
from tests.conformance.zoo import differences, hugging_face, row
from tests.torture import times

REFUSED = {
    "opt post-norm",
    "bigcode many heads, n_inner",
    "falcon new decoder",
    "ministral",
    "phi partial, qk norm",
    "phimoe",
    "aya-vision",
    "glm4v",
    "mllama",
    *(["cohere qk norm"] if HAS_HOOKED else []),
}
"""What TransformerLens converts to neither class; 4 converts one more. At most one in ten."""

HANDFUL = ["gpt2 n_inner", "bloom post-norm residual", "mpt clipped", "granite multipliers", "cohere logit scale"]


@pytest.fixture(scope="module")
def started() -> list[str]:
    """What starts processes in this one, by Python's audit events; a hook cannot be taken out again."""
    events: list[str] = []
    starting = re.compile(r"subprocess\.Popen|pty\.spawn|os\.(system|exec|fork|forkpty|posix_spawn|spawn|startfile)")
    sys.addaudithook(lambda event, args: events.append(event) if starting.fullmatch(event) else None)
    return events


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_loaded_model_is_the_function_that_was_saved(tmp_path, name, started):
    """And no process was started for it: TransformerLens installs packages that a vision tower would need."""
    save(tmp_path, name)
    started.clear()
    if name in REFUSED:
        with pytest.raises(rl.errors.FormatError, match="is a \\w+"):
            rl.load_model(tmp_path, device="cpu")
        assert started == []
        return
    model = rl.load_model(tmp_path, device="cpu")
    assert started == []
    assert max(differences(model, hugging_face(tmp_path))) < 2e-4, model.loaded_as


@pytest.mark.parametrize("name", ["gemma3 that sees", "qwen2.5-vl"])
def test_a_model_in_memory_that_sees_is_its_language_part(tmp_path, name, started):
    expected = hugging_face(save(tmp_path, name))
    started.clear()
    model = rl.load_model(expected, tokenizer=AutoTokenizer.from_pretrained(tmp_path))
    assert started == []
    assert max(differences(model, expected)) < 2e-4
    assert "visual" not in str(model)


@pytest.mark.parametrize("name", ["bloom", "gpt2", "opt"])
def test_a_checkpoint_has_one_identity_however_often_it_is_loaded(tmp_path, name):
    """BLOOM has no positions to embed, where HookedTransformer has a matrix for them."""
    save(tmp_path, name)
    first, second = (rl.load_model(tmp_path, device="cpu") for _ in range(2))
    assert model_identity(first) == model_identity(second)
    assert all(parameter.isfinite().all() for parameter in first.parameters())


def test_nine_in_ten_configurations_are_loaded():
    assert len(CONFIGURATIONS) >= 100
    assert len(REFUSED) <= len(CONFIGURATIONS) / 10


@pytest.mark.torture
@pytest.mark.parametrize("name", times(HANDFUL, list(CONFIGURATIONS)))
def test_what_is_loaded_is_traced_and_edited_as_the_table_says(tmp_path, name):
    found = row(name, tmp_path)
    print(*found.values(), sep=", ")
    told = pd.read_csv("docs/families.csv", keep_default_na=False).set_index("configuration").loc[name]
    assert (found["traced"], found["edited"]) == (told["traced"], told["edited"])
