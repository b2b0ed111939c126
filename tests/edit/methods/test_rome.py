"""ROME: the algebra of Eq. 2, the authors' numbers, and what is refused."""

import copy
from dataclasses import replace

import pytest
import torch

import rome_lens as rl
from rome_lens.edit.search.contexts import check_token, in_context
from rome_lens.edit.search.key import subject_keys
from rome_lens.edit.search.value import optimise_value
from rome_lens.models import mlp_output

EQ_2 = {"constrain_bare_prompt": False}  # as it stands in the paper
REQUEST = rl.EditRequest("{} is located in the city of", "The Eiffel Tower", target="Rome")
CONTEXTS = ("{}", "One, two. {}", "In Italy, on the continent. {}")
# In a random model the subject hardly reaches a prediction far behind it, and the change has to be large.
AT_THE_END = rl.EditRequest("One, two, {}", "The Eiffel Tower", target="Rome")
FAR = {"clamp_norm_factor": 100.0, "steps": 60}
FAMILIES = [("gpt2", False), ("gptj", False), ("neox", True), ("llama", True), ("llama-gqa", False)]


def covariance_of(model, layer: int = 1) -> rl.KeyCovariance:
    """Of made-up keys: symmetric, positive, and far from a multiple of the identity."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(1000, model.cfg.d_mlp, generator=generator)
    keys[:, 0] += keys[:, 1]
    return rl.KeyCovariance.from_matrix(keys.T @ keys / len(keys), layer=layer, tokens=len(keys))


def edit_of(model, request=REQUEST, **options) -> rl.Edit:
    config = rl.RomeConfig(contexts=CONTEXTS, **options)
    return rl.rome(
        model, request, covariance=covariance_of(model), config=config, on_unhealthy="ignore", progress=False
    )


@pytest.mark.parametrize(("family", "bos"), FAMILIES)
def test_after_the_edit_the_mlp_answers_v_star_to_k_star(tiny_model, family, bos):
    model = tiny_model(family, bos=bos)
    key = subject_keys(model, 1, REQUEST, CONTEXTS).mean(0)
    value = optimise_value(model, 1, REQUEST, CONTEXTS, rl.RomeConfig(), progress=False).vector
    with edit_of(model, **EQ_2).applied(model):
        answer = mlp_output(model, 1, key)
    assert (answer - value).norm() < 1e-4 * value.norm()


@pytest.mark.parametrize(("family", "bos"), FAMILIES)
def test_the_bare_prompt_gets_v_star_and_as_much_is_added_to_the_mean_key(tiny_model, family, bos):
    """The default: what is added is the search's delta at both keys, however unlike they are."""
    model = tiny_model(family, bos=bos)
    keys = subject_keys(model, 1, REQUEST, CONTEXTS)
    value = optimise_value(model, 1, REQUEST, CONTEXTS, rl.RomeConfig(), progress=False)
    edit = edit_of(model)
    with edit.applied(model):
        answer = mlp_output(model, 1, keys[0])
    assert (answer - value.vector).norm() < 1e-4 * value.vector.norm()
    bare, mean = (key @ edit.updates[0].left @ edit.updates[0].right for key in (keys[0], keys.mean(0)))
    assert (keys[0] - keys.mean(0)).norm() > 1e-2 * keys[0].norm()
    assert (bare - mean).norm() < 1e-4 * mean.norm()
    assert edit.health.key_share == pytest.approx(1, abs=1e-4)
    plain = edit_of(model, **EQ_2).health.key_share
    assert abs(plain - 1) > 1e-3, "without the constraint the bare prompt gets another share"


def test_with_one_key_the_constraint_changes_nothing(tiny):
    alone = {"contexts": ("{}",)}
    for request in (REQUEST, AT_THE_END):
        made = [
            rl.rome(
                tiny,
                request,
                covariance=covariance_of(tiny),
                config=rl.RomeConfig(**alone, constrain_bare_prompt=constrained),
                on_unhealthy="ignore",
                progress=False,
            )
            for constrained in (True, False)
        ]
        assert torch.equal(made[0].updates[0].left, made[1].updates[0].left)
        assert torch.equal(made[0].updates[0].right, made[1].updates[0].right)


@pytest.mark.parametrize("method", ["rome", "memit", "ft"])
def test_the_target_is_measured_in_the_edited_model(tiny, method):
    """Against a plain run of the applied edit, on the bare prompt; what the search found is another figure."""
    options = {"on_unhealthy": "ignore", "progress": False}
    covariance, short = covariance_of(tiny), {"contexts": CONTEXTS, "steps": 5, "clamp_norm_factor": 50.0}
    edit = {
        "rome": lambda: rl.rome(tiny, AT_THE_END, covariance=covariance, config=rl.RomeConfig(**short), **options),
        "memit": lambda: rl.memit(
            tiny, AT_THE_END, covariances={1: covariance}, config=rl.MemitConfig(**short), **options
        ),
        "ft": lambda: rl.edit.finetune(
            tiny, AT_THE_END, config=rl.edit.FinetuneConfig(layers=[1], steps=3, learning_rate=0.01), **options
        ),
    }[method]()
    prompt, whole = (tiny.to_tokens(text)[0] for text in (AT_THE_END.text, f"{AT_THE_END.text} {AT_THE_END.target}"))
    with edit.applied(tiny), torch.no_grad():
        log_probs = tiny(whole[None])[0].log_softmax(-1)
    target = whole[len(prompt) :]
    expected = log_probs[torch.arange(len(prompt) - 1, len(whole) - 1), target].mean().exp()
    assert edit.health.target_probability == pytest.approx(expected.item(), rel=1e-4)
    assert edit.health.targets_missed == (expected < 0.5)
    if method != "ft":
        assert abs(edit.health.target_probability - torch.tensor(-edit.health.nll).exp()) > 1e-6


@pytest.mark.parametrize("bos", [False, True])
def test_a_subject_that_is_the_first_token_is_edited_at_the_next_one(tiny_model, bos):
    """Its key is the attention sink's, the same in all texts. In contexts, and after BOS, its own token is edited."""
    model = tiny_model("llama", bos=bos)
    request = rl.EditRequest("{} is located in", "The", target="Rome")
    assert len(model.to_tokens("The")[0]) == 1 + bos
    last = in_context(model, request, "{}", token="subject_last")[1]
    assert (in_context(model, request, "{}")[1], last) == (1, 1 if bos else 0)
    for context in CONTEXTS[1:]:
        assert in_context(model, request, context)[1] == in_context(model, request, context, token="subject_last")[1]
    assert in_context(model, replace(request, prompt="{}"), "{}")[1] == last, "there is no token after it"


@pytest.mark.parametrize("token", ["subject_first", "subject_first_after_last", "last"])
def test_an_edit_at_another_token_answers_there(tiny, token):
    """k* and v* are both of the token that the config names, and the edit says which."""
    key = subject_keys(tiny, 1, REQUEST, CONTEXTS, token=token).mean(0)
    assert (key - subject_keys(tiny, 1, REQUEST, CONTEXTS).mean(0)).norm() > 0.1 * key.norm()
    config = rl.RomeConfig(token=token, contexts=CONTEXTS, **EQ_2)
    value = optimise_value(tiny, 1, REQUEST, CONTEXTS, config, progress=False).vector
    edit = edit_of(tiny, token=token, **EQ_2)
    assert edit.config["token"] == token
    with edit.applied(tiny):
        answer = mlp_output(tiny, 1, key)
    assert (answer - value).norm() < 1e-4 * value.norm()
    forecast = rl.evaluate.forecast_bleed_over(tiny, edit, [REQUEST.text])
    assert (forecast["share"] - 1).abs().min() < 1e-4, "the forecast compares with that token"


def test_a_token_that_is_not_there_is_refused(tiny):
    with pytest.raises(ValueError, match=r"token is 'subject', expected one of subject_end, subject_first"):
        check_token("subject")
    with pytest.raises(ValueError, match=r"has no token after its subject 'The Eiffel Tower'\. Edit another token"):
        edit_of(tiny, AT_THE_END, token="subject_first_after_last")


@pytest.mark.parametrize(("family", "bos"), FAMILIES)
def test_the_edited_model_says_the_target(tiny_model, family, bos):
    model = tiny_model(family, bos=bos)
    record = rl.EditRecord(AT_THE_END, "Paris")
    edit = edit_of(model, AT_THE_END, **FAR)
    before = rl.evaluate.score_record(model, record)
    with edit.applied(model):
        after = rl.evaluate.score_record(model, record)
    assert edit.health.target_probability > 0.3
    assert after["EM"] > before["EM"] + 0.2


def test_update_has_rank_one_and_is_least_in_the_norm_of_c(tiny):
    """Among all updates D with k D = r, Eq. 2's has the least trace(DT C D): any D + E with k E = 0 has more."""
    update = edit_of(tiny, **EQ_2).updates[0]
    change = update.left.double() @ update.right.double()
    assert torch.linalg.matrix_rank(change) == 1
    second_moment = covariance_of(tiny).second_moment.double()
    key = subject_keys(tiny, 1, REQUEST, CONTEXTS).mean(0).double()
    other = torch.randn(change.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    other -= torch.outer(key, key @ other) / (key @ key)
    assert (key @ other).abs().max() < 1e-9

    def norm(d):
        return torch.trace(d.T @ second_moment @ d)

    assert all(norm(change + step * other) > norm(change) for step in (0.1, 0.01, -0.01, -0.1))


def test_keys_that_are_c_orthogonal_to_k_star_are_not_touched(tiny):
    update = edit_of(tiny, **EQ_2).updates[0]
    key = subject_keys(tiny, 1, REQUEST, CONTEXTS).mean(0).double()
    direction = torch.linalg.solve(covariance_of(tiny).second_moment.double(), key)
    other = torch.randn(len(key), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    other -= direction * (direction @ other) / (direction @ direction)
    change = other @ (update.left @ update.right).double()
    assert change.norm() < 1e-5 * (key @ (update.left @ update.right).double()).norm()


def test_reference_preset_uses_the_mean_key_on_the_left_and_the_bare_key_on_the_right(tiny):
    config = rl.RomeConfig.reference(1, contexts=CONTEXTS)
    edit = rl.rome(tiny, REQUEST, covariance=covariance_of(tiny), config=config, on_unhealthy="ignore", progress=False)
    keys = subject_keys(tiny, 1, REQUEST, CONTEXTS)
    assert torch.allclose(edit.updates[0].left, edit_of(tiny, **EQ_2).updates[0].left)
    value = optimise_value(tiny, 1, REQUEST, CONTEXTS, config, progress=False).vector
    with edit.applied(tiny):
        bare, mean = mlp_output(tiny, 1, keys[0]), mlp_output(tiny, 1, keys.mean(0))
    assert (bare - value).norm() < 1e-4 * value.norm()
    assert (mean - value).norm() > 1e-3 * value.norm()


def test_rome_changes_neither_weights_nor_requires_grad_nor_the_random_state(tiny, weights_of):
    before = weights_of(tiny)
    wanted = {name: p.requires_grad for name, p in tiny.named_parameters()}
    state = torch.get_rng_state()
    with torch.no_grad():  # as in many notebooks
        config = rl.RomeConfig(steps=3)
        rl.rome(tiny, REQUEST, covariance=covariance_of(tiny), config=config, on_unhealthy="ignore", progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())
    assert wanted == {name: p.requires_grad for name, p in tiny.named_parameters()}
    assert all(p.grad is None for p in tiny.parameters())


def test_sampled_contexts_begin_with_the_bare_prompt_and_repeat_with_the_seed(tiny):
    contexts = rl.edit.sample_contexts(tiny, ((5, 2), (10, 3)), seed=7)
    assert contexts[0] == "{}"
    assert len(contexts) == 6
    assert all(context.count("{}") == 1 and context.endswith("{}") for context in contexts)
    assert contexts == rl.edit.sample_contexts(tiny, ((5, 2), (10, 3)), seed=7)
    assert contexts != rl.edit.sample_contexts(tiny, ((5, 2), (10, 3)), seed=8)


def test_nan_in_the_weights_is_refused(tiny):
    broken = copy.deepcopy(tiny)
    broken.blocks[1].mlp.W_out.data[3, 4] = float("nan")
    with pytest.raises(rl.errors.EditError, match="output matrix of layer 1 has NaN"):
        edit_of(broken)


def test_nan_during_the_search_is_refused_and_no_weight_is_changed(tiny, weights_of):
    broken = copy.deepcopy(tiny)
    broken.blocks[2].mlp.W_out.data[3, 4] = float("nan")
    before = weights_of(broken)
    with pytest.raises(rl.errors.EditError, match=r"failed at step 0: the loss is nan.*No weight was changed"):
        edit_of(broken)
    now = broken.state_dict()
    assert all(torch.equal(now[name].nan_to_num(), value.nan_to_num()) for name, value in before.items())


def test_layer_out_of_range_is_refused(tiny):
    config = rl.RomeConfig(layer=3, contexts=CONTEXTS)
    with pytest.raises(ValueError, match="layer is 3, but .* has layers 0 to 2"):
        rl.rome(tiny, REQUEST, covariance=covariance_of(tiny), config=config)


def test_a_model_without_a_shipped_covariance_needs_one(tiny):
    with pytest.raises(ValueError, match=r"none ships for gpt2 .*Collect one: collect_covariance"):
        rl.rome(tiny, REQUEST)


@pytest.mark.parametrize("contexts", [[], ["One. {}"], ["{}", "no place"], ["{}", "{} and {}"]])
def test_bad_contexts_are_refused(contexts):
    with pytest.raises(ValueError, match=r"contexts .* do not begin with|expected exactly once"):
        rl.RomeConfig(contexts=contexts)


@pytest.mark.smollm2
@pytest.mark.parametrize("name", ["eiffel_rome", "counterfact_18"])
def test_reference_preset_equals_the_authors_code(smollm2, golden, name):
    numbers, vectors = golden(f"rome_{name}.json"), golden(f"rome_{name}.safetensors")
    asked = numbers["request"]
    request = rl.EditRequest(asked["prompt"], asked["subject"], asked["target_new"]["str"])
    config = rl.RomeConfig.reference(4, contexts=numbers["context_templates"])
    edit = rl.rome(smollm2, request, config=config)
    update = edit.updates[0]
    for ours, theirs in ((update.left[:, 0], vectors["u"].flatten()), (update.right[0], vectors["v"].flatten())):
        assert torch.cosine_similarity(ours, theirs, dim=0) > 0.9999
        assert ours.norm().item() == pytest.approx(theirs.norm().item(), rel=1e-3)
    target = smollm2.to_tokens(" " + request.target)[0, 0]
    with edit.applied(smollm2), torch.no_grad():
        after = smollm2(smollm2.to_tokens(request.text))[0, -1].softmax(-1)[target].item()
    assert after == pytest.approx(numbers["after"], abs=0.01)


@pytest.mark.smollm2
def test_default_edit_of_smollm2_needs_only_a_request(smollm2, weights_of):
    before = weights_of(smollm2)
    edit = rl.rome(smollm2, REQUEST)
    key = subject_keys(smollm2, edit.updates[0].layer, REQUEST, edit.config["contexts"]).mean(0)
    with edit.applied(smollm2):
        scores = rl.evaluate.score_record(smollm2, rl.EditRecord(REQUEST, "Paris"))
        change = mlp_output(smollm2, edit.updates[0].layer, key)
    assert scores["ES"] == 1
    assert scores["EM"] > 0.9
    assert change.isfinite().all()
    assert all(torch.equal(value, before[name]) for name, value in smollm2.state_dict().items())
