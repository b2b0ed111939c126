"""MEND: an untrained editor is gradient descent, training lowers the losses, edits are what it was trained on."""

import pytest
import torch

import rome_lens as rl
from rome_lens.edit.methods.mend import training
from rome_lens.edit.methods.mend.examples import Example, example_losses
from rome_lens.models import find_output_matrix
from rome_lens.storage import checkpoint
from tests.edit.artifact.test_edit import same
from tests.edit.methods.test_finetune import plain_losses


def record(number: int, prompt: str, subject: str, target: str, paraphrase: str, question: str, answer: str):
    request = rl.EditRequest(prompt, subject, target=target)
    unrelated = {"nq": (rl.data.Continuation(question, answer),)}
    return rl.data.QuestionRecord(request, (paraphrase,), locality=unrelated, case_id=number)


RECORDS = [
    record(0, "{} is in", "The Eiffel Tower", "Rome", "The city of the Eiffel Tower is", "Who owns Beats?", "Apple"),
    record(1, "The capital of {} is", "France", "Seattle, one", "France's capital is", "Dante is", "Italian"),
    record(2, "{} is a product of", "Honda Civic", "Porsche", "Who made the Civic?", "One, two", "Paris is one"),
    record(3, "The mother tongue of {} is", "Dante", "French", "Dante speaks", "Where is Vinson Massif?", "Antarctica"),
]
SMALL = {
    "layers": (1, 2),
    "rank": 8,
    "batch_size": 2,
    "validation_interval": 2,
    "learning_rate": 1e-3,
    "step_learning_rate": 1e-2,
}
CONFIG = rl.edit.MendConfig(**SMALL)
QUIET = {"on_unhealthy": "ignore"}


def train(model, *, steps: int = 4, records=RECORDS, validation=(), config=CONFIG, **options) -> rl.edit.MendEditor:
    return rl.edit.train_mend(
        model, records, steps=steps, validation=validation, config=config, progress=False, **options
    )


def tensors(editor: rl.edit.MendEditor) -> dict[str, torch.Tensor]:
    return editor.network.state_dict()


@pytest.mark.parametrize(("family", "bos"), [("gpt2", False), ("llama-gqa", True), ("gptj", False)])
@pytest.mark.parametrize("layers", [None, (0, 2)])
def test_an_untrained_editor_makes_a_step_of_gradient_descent(tiny_model, weights_of, family, bos, layers):
    """Its factors, summed over tokens, are minus the learning rate times the gradient that autograd gives."""
    model = tiny_model(family, bos=bos)
    before, request = weights_of(model), RECORDS[1].request
    editor = rl.edit.MendEditor.untrained(model, config=rl.edit.MendConfig(layers=layers, edit_learning_rate=0.5))
    edit = rl.edit.mend(model, request, editor=editor, **QUIET)
    assert same(model, before)
    assert [update.layer for update in edit.updates] == list(layers or (0, 1, 2))
    matrices = [find_output_matrix(model, update.layer) for update in edit.updates]
    loss = plain_losses(model, [request]).mean()
    gradients = torch.autograd.grad(loss, [matrix.parameter for matrix in matrices])
    for update, matrix, gradient in zip(edit.updates, matrices, gradients, strict=True):
        assert torch.allclose(update.left @ update.right, -0.5 * matrix.oriented(gradient), atol=1e-5)
    with edit.applied(model, strict=True):
        probability = plain_losses(model, [request]).neg().exp().item()
        assert probability == pytest.approx(edit.health.target_probability, rel=1e-4)
    assert same(model, before)
    assert (edit.method, edit.requests) == ("mend", (request,))
    targets = len(model.to_tokens(f"{request.text} {request.target}")[0]) - len(model.to_tokens(request.text)[0])
    assert edit.updates[-1].rank == targets > 1, "in the last block, only the predicting tokens matter"


@pytest.mark.parametrize(("family", "bos"), [("gpt2", False), ("llama-gqa", True)])
def test_the_losses_of_training_are_those_of_the_edits_as_data(tiny_model, family, bos):
    """The batch with an edit for each row gives what each edit gives when it is applied to the weights."""
    model = tiny_model(family, bos=bos)
    editor = train(model)
    edit_losses, locality_losses = example_losses(
        model, editor.network, [Example.of(model, each, editor.layers) for each in RECORDS]
    )
    for i, each in enumerate(RECORDS):
        ((unrelated,),) = each.locality.values()
        asked = model.to_tokens(f"{unrelated.prompt} {unrelated.text}")[:, :-1]
        paraphrase = rl.EditRequest("{}", each.paraphrase_prompts[0], target=each.request.target)
        with torch.no_grad():
            before = model(asked)[0].log_softmax(-1)
            with rl.edit.mend(model, each.request, editor=editor, **QUIET).applied(model, strict=True):
                after = model(asked)[0].log_softmax(-1)
                assert plain_losses(model, [paraphrase]).item() == pytest.approx(edit_losses[i].item(), rel=1e-3)
        divergence = (before.exp() * (before - after)).sum(-1).mean().item()
        assert divergence == pytest.approx(locality_losses[i].item(), rel=1e-2, abs=1e-6)
        assert divergence > 1e-4


def test_training_lowers_the_loss_and_leaves_the_model_alone(tiny, weights_of):
    """Weights, gradients, requires_grad and torch's random state stay; the best editor comes back."""
    before, random = weights_of(tiny), torch.get_rng_state()
    tiny.blocks[2].mlp.W_out.requires_grad_(False)
    asked = {name: parameter.requires_grad for name, parameter in tiny.named_parameters()}
    try:
        editor = train(tiny, steps=21, validation=RECORDS)
        assert {name: parameter.requires_grad for name, parameter in tiny.named_parameters()} == asked
    finally:
        tiny.blocks[2].mlp.W_out.requires_grad_(True)
    assert same(tiny, before)
    assert all(parameter.grad is None for parameter in tiny.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    losses = [row["validation_loss"] for row in editor.history]
    assert min(losses) < 0.5 * losses[0]
    assert [row["step"] for row in editor.history] == [*range(0, 21, 2), 21]
    assert editor.history[-1]["edit_loss"] < editor.history[1]["edit_loss"]
    parts = example_losses(tiny, editor.network, [Example.of(tiny, each, editor.layers) for each in RECORDS])
    edit, locality = (part.mean().item() for part in parts)
    assert 0.1 * edit + locality == pytest.approx(min(losses), rel=1e-4), "not the best editor"


def test_the_factors_are_normalised_by_all_that_was_seen(tiny):
    """Mean and deviation of all tokens of both layers, gathered batch by batch, are those of all at once."""
    editor = train(tiny, steps=2)
    seen = [Example.of(tiny, each, editor.layers).factors for each in RECORDS]
    values = torch.cat([torch.cat(pair, dim=-1) for factors in seen for pair in factors.values()])
    assert editor.network.count == len(values)
    expected = (values - values.mean(0)) / (values.std(0) + 1e-7)
    assert torch.allclose(editor.network.normalised(values), expected, atol=1e-3)


def test_accumulated_passes_give_the_gradient_of_the_whole_batch(tiny):
    whole = train(tiny, config=rl.edit.MendConfig(**{**SMALL, "batch_size": 4}))
    parts = train(tiny, config=rl.edit.MendConfig(**{**SMALL, "batch_size": 4}, edits_per_pass=3))
    for name, tensor in tensors(whole).items():
        assert torch.allclose(tensors(parts)[name], tensor, atol=1e-4), name
    assert whole.history[-1]["edit_loss"] == pytest.approx(parts.history[-1]["edit_loss"], rel=1e-3)


@pytest.mark.parametrize("killed_at", [1, 4, 5])
def test_a_stopped_training_goes_on_to_the_same_end(tiny, tmp_path, monkeypatch, killed_at):
    """Bit for bit the editor and the history of an unbroken run, wherever it was stopped."""
    options = {"steps": 6, "validation": RECORDS[2:], "records": RECORDS[:3], "seed": 5}
    unbroken = train(tiny, **options)
    monkeypatch.setattr(checkpoint, "_SECONDS_BETWEEN_SAVES", 0.0)
    learn = training._learn

    def learn_or_die(model, state, *rest):
        if state.step == killed_at:
            raise KeyboardInterrupt
        learn(model, state, *rest)

    path = tmp_path / "training"
    with monkeypatch.context() as patch:
        patch.setattr(training, "_learn", learn_or_die)
        with pytest.raises(KeyboardInterrupt):
            train(tiny, out=path, **options)
    steps = []
    monkeypatch.setattr(training, "_learn", lambda model, state, *rest: (steps.append(1), learn(model, state, *rest)))
    resumed = train(tiny, out=path, **options)
    assert len(steps) == 6 - killed_at
    assert resumed.history == unbroken.history
    assert all(torch.equal(tensor, tensors(unbroken)[name]) for name, tensor in tensors(resumed).items())
    with pytest.raises(rl.errors.FormatError, match=r"was begun with \{'seed': 5\}, but \{'seed': 6\} was given"):
        train(tiny, out=path, **{**options, "seed": 6})
    kept = path / "checkpoint.safetensors"
    kept.write_bytes(kept.read_bytes()[:-100])
    with pytest.raises(rl.errors.FormatError, match="is damaged"):
        train(tiny, out=path, **options)


def test_training_ends_when_it_does_not_get_better(tiny):
    """With steps that are far too large, it stops after `patience` steps and gives the editor of the start back."""
    config = rl.edit.MendConfig(**{**SMALL, "learning_rate": 10.0, "step_learning_rate": 10.0}, patience=4)
    editor = train(tiny, steps=50, validation=RECORDS, config=config)
    assert editor.history[-1]["step"] == 4
    assert editor.network.count == 0


def test_a_saved_editor_makes_the_same_edits(tiny, tmp_path):
    editor = train(tiny)
    editor.save(tmp_path / "editor.safetensors")
    loaded = rl.edit.MendEditor.load(tmp_path / "editor.safetensors")
    assert (loaded.layers, loaded.model, loaded.history) == (editor.layers, "gpt2", editor.history)
    first, second = (rl.edit.mend(tiny, RECORDS[0].request, editor=each, **QUIET) for each in (editor, loaded))
    for update, other in zip(first.updates, second.updates, strict=True):
        assert torch.equal(update.left, other.left)
        assert torch.equal(update.right, other.right)
    with pytest.raises(FileExistsError):
        editor.save(tmp_path / "editor.safetensors")


def test_what_cannot_be_done_is_refused(tiny, tiny_model, tmp_path):
    with pytest.raises(ValueError, match="layers is \\[2, 1\\]"):
        rl.edit.MendConfig(layers=(2, 1))
    with pytest.raises(ValueError, match="rank is 0, expected at least 1"):
        rl.edit.MendConfig(rank=0)
    with pytest.raises(ValueError, match="layer is 9, but gpt2 has layers 0 to 2"):
        rl.edit.MendEditor.untrained(tiny, config=rl.edit.MendConfig(layers=(9,)))
    with pytest.raises(ValueError, match="records is empty"):
        train(tiny, records=[])
    with pytest.raises(ValueError, match="steps is 0"):
        train(tiny, steps=0)
    with pytest.raises(ValueError, match=r"record 7 \('One'\) has no locality question"):
        train(tiny, records=[rl.data.QuestionRecord(rl.EditRequest("{}", "One", target="two"), case_id=7)])
    with pytest.raises(rl.errors.EditError, match="trained for another architecture: gpt2"):
        rl.edit.mend(tiny_model("gptj"), RECORDS[0].request, editor=rl.edit.MendEditor.untrained(tiny, config=CONFIG))
    with pytest.raises(rl.errors.EditError, match="Training failed at step"):
        train(tiny, config=rl.edit.MendConfig(**{**SMALL, "learning_rate": 1e25}))
    broken = rl.edit.MendEditor.untrained(tiny, config=CONFIG)
    broken.network.step_sizes.data[0] = float("nan")
    with pytest.raises(rl.errors.EditError, match="The edit is not finite"):
        rl.edit.mend(tiny, RECORDS[0].request, editor=broken)
    with pytest.raises(rl.errors.FormatError, match="expected a 'rome_lens mend editor 2'"):
        rl.edit.mend(tiny, RECORDS[0].request, editor=rl.edit.MendEditor.untrained(tiny, config=CONFIG), **QUIET).save(
            tmp_path / "edit.safetensors"
        )
        rl.edit.MendEditor.load(tmp_path / "edit.safetensors")
