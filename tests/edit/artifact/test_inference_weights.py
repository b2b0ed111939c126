"""A model that was loaded under `torch.inference_mode` is read as any other, and refused before anything is written."""

import pytest
import torch

import rome_lens as rl
from tests.tiny import save_model

FACT = rl.Fact("{} is located in the city of", "The Eiffel Tower")
COVARIANCE = rl.KeyCovariance.from_matrix(torch.eye(64), layer=1, tokens=99)
REQUEST = rl.EditRequest(FACT.prompt, FACT.subject, "Rome")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The same weights as inference tensors and as normal ones, and an edit of the latter."""
    folder = save_model(tmp_path_factory.mktemp("saved") / "llama", "llama")
    normal, inference = (rl.load_model(folder, device="cpu") for _ in range(2))
    with torch.inference_mode():
        for parameter in inference.parameters():
            parameter.data = parameter.data.clone()
        inference.load_state_dict({k: v.clone() for k, v in normal.state_dict().items()}, assign=True)
    assert all(parameter.is_inference() for parameter in inference.parameters())
    edit = rl.Edit((rl.edit.Update(1, torch.ones(64, 1), torch.ones(1, 32)),), (REQUEST,))
    return normal, inference, edit


def test_tracing_reads_it(models):
    normal, inference, _ = models
    found, expected = (rl.causal_trace(model, FACT, samples=1, window=1).restored for model in (inference, normal))
    torch.testing.assert_close(found, expected)


WRITING = {
    "rome": lambda model, edit: rl.rome(model, REQUEST, covariance=COVARIANCE),
    "apply": lambda model, edit: edit.apply(model),
    "applied": lambda model, edit: edit.applied(model).__enter__(),
    "hooks": lambda model, edit: edit.hooks(model),
    "finetune": lambda model, edit: rl.edit.finetune(model, REQUEST, config=rl.edit.FinetuneConfig(layers=[1])),
    "attribution": lambda model, edit: rl.causal_trace(model, FACT, samples=1, method="attribution"),
}


@pytest.mark.parametrize("name", WRITING)
def test_writing_and_gradients_are_refused_with_the_way_out(models, name):
    _, inference, edit = models
    before = {key: value.clone() for key, value in inference.state_dict().items()}
    with pytest.raises(ValueError, match=r"inference tensors.*copy\.deepcopy"):
        WRITING[name](inference, edit)
    assert all(torch.equal(value, before[key]) for key, value in inference.state_dict().items())
