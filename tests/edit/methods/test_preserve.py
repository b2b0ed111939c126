"""Preserving: the constrained closed forms against brute force, and edits that leave prompts exactly as they are."""

import pytest
import torch

import rome_lens as rl
from rome_lens.edit.methods.closed_forms import (
    PreservedKeys,
    alphaedit_factor,
    emmet_factor,
    memit_factor,
    with_context_differences,
)
from rome_lens.edit.search.key import subject_keys
from rome_lens.edit.search.value import optimise_value
from rome_lens.models import mlp_output
from tests.edit.methods.test_batch import METHODS, REQUESTS, covariances_of, found, no_search, probabilities
from tests.edit.methods.test_closed_forms import KEYS, MISSING, OUT, WIDTH, covariance, made_up
from tests.edit.methods.test_rome import CONTEXTS, REQUEST, covariance_of

KEPT = made_up(3, WIDTH, 5)
PROMPTS = ["The Space Needle is located in the city of", "One, two, Beats Music is owned by"]
THRESHOLD, RIDGE, WEIGHT = 1e-3, 0.5, 0.3


def preserved(keys: torch.Tensor) -> PreservedKeys:
    return PreservedKeys(keys, [f"prompt {i}" for i in range(len(keys))])


def null_space(rows: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis, as columns, of what the rows do not reach."""
    return torch.linalg.svd(rows)[2][torch.linalg.matrix_rank(rows) :].T


def least(basis: torch.Tensor, root: torch.Tensor, weight: float, shares: torch.Tensor) -> torch.Tensor:
    """The D = basis Y that makes weight |root D|^2 + sum_i |KEYS_i D - MISSING_i|^2 / share_i least."""
    scale = shares[:, None].rsqrt()
    stacked = torch.cat([weight**0.5 * root @ basis, scale * KEYS @ basis])
    wanted = torch.cat([torch.zeros(len(root), OUT).double(), scale * MISSING])
    return basis @ torch.linalg.lstsq(stacked, wanted).solution


def shares(basis: torch.Tensor, outer: torch.Tensor, root: torch.Tensor) -> torch.Tensor:
    """How much of |k|^2, in the metric of root, the smaller space leaves of each key."""

    def squares(space):
        inner = root @ space
        return ((KEYS @ space) @ torch.linalg.inv(inner.T @ inner) * (KEYS @ space)).sum(-1)

    return squares(basis) / squares(outer)


def root() -> torch.Tensor:
    return torch.linalg.cholesky(covariance().second_moment.double()).T


def by_memit(kept: torch.Tensor) -> torch.Tensor:
    return memit_factor(KEYS, covariance(), WEIGHT, preserved(kept)) @ MISSING


def by_emmet(kept: torch.Tensor) -> torch.Tensor:
    return emmet_factor(KEYS, covariance(), preserved(kept)) @ MISSING


def by_alphaedit(kept: torch.Tensor) -> torch.Tensor:
    return alphaedit_factor(KEYS, covariance(rank=5), THRESHOLD, RIDGE, preserved(kept)) @ MISSING


@pytest.mark.parametrize("solve", [by_memit, by_emmet, by_alphaedit])
def test_nothing_is_written_to_preserved_keys_whether_or_not_they_depend_on_each_other(solve):
    change = solve(KEPT)
    assert (KEPT @ change).norm() < 1e-10 * (KEYS @ change).norm()
    dependent = torch.cat([KEPT, 2 * KEPT[:1], KEPT[:1] - KEPT[1:2], KEPT * (1 + 1e-14)])
    assert torch.allclose(solve(dependent), change, rtol=1e-7, atol=1e-10)


def test_emmet_is_the_least_change_in_the_norm_of_c_among_all_that_meet_the_constraints():
    """KKT: C D = AT L and A D = [R; 0] with A = [K; P]. And any step that keeps A D makes it larger."""
    change, second_moment = by_emmet(KEPT), covariance().second_moment.double()
    rows = torch.cat([KEYS, KEPT])
    assert torch.allclose(rows @ change, torch.cat([MISSING, torch.zeros(len(KEPT), OUT).double()]), atol=1e-9)
    gradient = second_moment @ change
    assert (null_space(rows).T @ gradient).norm() < 1e-9 * gradient.norm()
    step = null_space(rows) @ made_up(WIDTH - len(rows), OUT, 6)

    def norm(d):
        return torch.trace(d.T @ second_moment @ d)

    assert all(norm(change + size * step) > norm(change) for size in (0.1, 0.01, -0.01, -0.1))


def test_memit_and_alphaedit_are_the_minima_of_their_least_squares_among_what_spares_the_preserved():
    """A request weighs as much more as preserving leaves less of its key."""
    basis, whole = null_space(KEPT), torch.eye(WIDTH).double()
    weighed = least(basis, root(), WEIGHT, shares(basis, whole, root()))
    assert torch.allclose(by_memit(KEPT), weighed, rtol=1e-7, atol=1e-10)
    outside = null_space(made_up(5, WIDTH, 4))  # what the keys of covariance(rank=5) do not reach
    basis = outside @ null_space(KEPT @ outside)
    weighed = least(basis, whole, RIDGE, shares(basis, outside, whole))
    assert torch.allclose(by_alphaedit(KEPT), weighed, atol=1e-5)


@pytest.mark.parametrize("form", [memit_factor, alphaedit_factor])
def test_a_ridge_takes_no_more_of_a_request_than_with_nothing_preserved(form):
    numbers, c = ((WEIGHT,), covariance()) if form is memit_factor else ((THRESHOLD, RIDGE), covariance(rank=5))
    plain, kept = (KEYS[:1] @ form(KEYS[:1], c, *numbers, each) for each in (None, preserved(KEPT)))
    assert 0 < plain.item() < 0.99
    assert kept.item() == pytest.approx(plain.item(), rel=1e-6)


def test_one_key_with_preserved_ones_is_the_formula_with_both_stacked():
    """left = C^-1 AT (A C^-1 AT)^-1 e_1 with A = [k*; P]."""
    rows = torch.cat([KEYS[:1], KEPT])
    solved = covariance().solve(rows)
    plain = solved.T @ torch.linalg.inv(rows @ solved.T)[:, :1]
    assert torch.allclose(emmet_factor(KEYS[:1], covariance(), preserved(KEPT)), plain, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("form", [emmet_factor, memit_factor, alphaedit_factor])
def test_a_key_in_the_span_of_the_preserved_is_refused_and_the_most_similar_named(form):
    kept = torch.cat([KEPT, KEYS[2:3] + 0.1 * KEPT[:1]])
    numbers = {memit_factor: (WEIGHT,), alphaedit_factor: (THRESHOLD, RIDGE)}.get(form, ())
    covariance_ = covariance(rank=5) if form is alphaedit_factor else covariance()
    with pytest.raises(
        rl.errors.EditError, match=r"lies in the span of the 4 preserved keys .*most similar is of 'prompt 3'"
    ):
        form(KEYS, covariance_, *numbers, preserved(kept))


def rome_of(model, request=REQUEST, preserve=PROMPTS, **options) -> rl.Edit:
    config = rl.RomeConfig(**{"contexts": CONTEXTS, "steps": 5} | options)
    options = {"covariance": covariance_of(model), "config": config, "on_unhealthy": "ignore", "progress": False}
    return rl.rome(model, request, preserve=preserve, **options)


def answers(model, prompt: str) -> torch.Tensor:
    with torch.no_grad():
        return model(model.to_tokens(prompt))[0].log_softmax(-1)


@pytest.mark.parametrize(("family", "bos"), [("gpt2", False), ("llama", True), ("gemma2", True)])
def test_preserved_prompts_are_answered_as_before_at_every_token_and_the_request_gets_v_star(tiny_model, family, bos):
    model = tiny_model(family, bos=bos)
    before = [answers(model, prompt) for prompt in PROMPTS]
    edit, plain = rome_of(model), rome_of(model, preserve=None)
    key = subject_keys(model, 1, REQUEST, CONTEXTS)[0]
    value = optimise_value(model, 1, REQUEST, CONTEXTS, rl.RomeConfig(steps=5), progress=False).vector
    with edit.applied(model):
        assert all(torch.allclose(answers(model, p), b, atol=1e-3) for p, b in zip(PROMPTS, before, strict=True))
        assert (mlp_output(model, 1, key) - value).norm() < 1e-4 * value.norm()
    with plain.applied(model):
        assert max((answers(model, p) - b).abs().max() for p, b in zip(PROMPTS, before, strict=True)) > 0.02
    assert edit.config["preserve"] == PROMPTS
    assert "preserve" not in plain.config


def test_the_reference_preset_preserves_as_well(tiny):
    reference = {"consistent": False}
    edit, keys = rome_of(tiny, **reference), subject_keys(tiny, 1, REQUEST, CONTEXTS)
    value = optimise_value(tiny, 1, REQUEST, CONTEXTS, rl.RomeConfig(steps=5), progress=False).vector
    before = answers(tiny, PROMPTS[0])
    with edit.applied(tiny):
        assert (mlp_output(tiny, 1, keys[0]) - value).norm() < 1e-4 * value.norm()
        assert torch.allclose(answers(tiny, PROMPTS[0]), before, atol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_batch_methods_preserve_in_every_layer(tiny, name):
    method, config = METHODS[name]
    options = {"covariances": covariances_of(tiny), "config": config, "targets": found(tiny), "on_unhealthy": "ignore"}
    before, at_first = [answers(tiny, prompt) for prompt in PROMPTS], probabilities(tiny)
    edit = method(tiny, REQUESTS, preserve=PROMPTS, progress=False, **options)
    with edit.applied(tiny):
        assert all(torch.allclose(answers(tiny, p), b, atol=5e-3) for p, b in zip(PROMPTS, before, strict=True))
        assert (probabilities(tiny) > at_first + 0.05).all()
    assert edit.health.preserve_growth > 1


def test_facts_requests_and_records_stand_for_their_prompts(tiny):
    fact = rl.Fact("{} is located in the city of", "The Space Needle")
    request = rl.EditRequest("One, two, {} is owned by", "Beats Music", target="Honda")
    for other in (request, rl.EditRecord(request, "Apple"), rl.data.QuestionRecord(request)):
        edit = rome_of(tiny, preserve=[fact, other])
        assert edit.config["preserve"] == PROMPTS
        assert torch.equal(edit.updates[0].left, rome_of(tiny).updates[0].left)


def test_health_tells_what_preserving_costs_and_every_context_gets_what_k_star_gets(tiny):
    """Prompts that begin as the request does in another context have keys like the bare one's, which still gets all."""
    edit, plain = rome_of(tiny), rome_of(tiny, preserve=None)
    unlike = rome_of(tiny, preserve=None, constrain_bare_prompt=False)
    norms = [(each.updates[0].left @ each.updates[0].right).norm().item() for each in (edit, plain)]
    assert edit.health.preserve_growth == pytest.approx(norms[0] / norms[1], rel=1e-4)
    assert plain.health.preserve_growth is None
    near = rome_of(tiny, preserve=[*PROMPTS, "In the city. The Eiffel Tower is", "One. The Eiffel Tower is"])
    keys = subject_keys(tiny, 1, REQUEST, CONTEXTS)
    for each, share in ((unlike, None), (plain, 1), (edit, 1), (near, 1)):
        got = (keys[0] @ each.updates[0].left / (keys.mean(0) @ each.updates[0].left)).item()
        assert got == pytest.approx(share, rel=1e-5) if share else abs(got - 1) > 0.005
    assert near.health.preserve_growth > edit.health.preserve_growth
    assert near.health.preserve_condition > edit.health.preserve_condition > 1


@pytest.mark.parametrize("contexts", [["{}"] * 3, ["{}"] * 7])
def test_keys_that_differ_by_rounding_take_no_direction(tiny, contexts):
    edits = [rome_of(tiny, contexts=each) for each in (["{}"], contexts)]
    assert edits[1].health.preserve_growth == pytest.approx(edits[0].health.preserve_growth, rel=1e-4)


@pytest.mark.parametrize("form", [emmet_factor, memit_factor, alphaedit_factor])
def test_what_is_alike_gets_the_same_at_the_least_cost(form):
    """Two keys of each request: of all that spare the preserved and treat both alike, the least."""
    numbers = {memit_factor: (WEIGHT,), alphaedit_factor: (THRESHOLD, RIDGE)}.get(form, ())
    c, keys, others = covariance(rank=5) if form is alphaedit_factor else covariance(), KEYS[:2], made_up(2, WIDTH, 7)
    kept = with_context_differences(preserved(KEPT), keys, others)
    change = form(keys, c, *numbers, kept) @ MISSING[:2]
    assert (KEPT @ change).norm() < 1e-6 * change.norm()
    assert torch.allclose(keys @ change, others @ change, atol=1e-6)
    both = form(keys, c, *numbers, preserved(torch.cat([KEPT, others - keys]))) @ MISSING[:2]
    assert torch.allclose(change, both, atol=1e-9)


def test_health_names_what_preserving_spoils():
    healthy = {"update_norm": 1.0, "relative_update_norm": 0.1}
    assert rl.edit.EditHealth(**healthy, preserve_growth=1.3).problems == []
    (problem,) = rl.edit.EditHealth(**healthy, preserve_growth=7.0).problems
    assert "preserving makes the update 7.0 times as large (at most 5.0)" in problem


@pytest.mark.parametrize("method", ["rome", *METHODS])
@pytest.mark.parametrize(
    ("preserve", "says"),
    [
        (["The Eiffel Tower is made of"], r"'The Eiffel Tower is made of' cannot be preserved while 'The Eiffel Tower"),
        ([" ".join(str(i * n) for i in range(20)) for n in range(1, 9)], r"have \d+ keys, and 1 more .* 128 dimens"),
    ],
)
def test_what_cannot_be_preserved_is_named_before_any_work(tiny, monkeypatch, weights_of, method, preserve, says):
    before = weights_of(tiny)
    no_search(monkeypatch)
    monkeypatch.setattr("rome_lens.edit.methods.rome.optimise_value", None)
    with pytest.raises(rl.errors.EditError, match=says):
        if method == "rome":
            rome_of(tiny, preserve=preserve)
        else:
            METHODS[method][0](tiny, REQUEST, covariances=covariances_of(tiny), preserve=preserve, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())


@pytest.mark.parametrize("preserve", ["The Louvre", [" "], [3]])
def test_what_is_no_list_of_prompts_is_refused(tiny, preserve):
    with pytest.raises(ValueError, match=r"preserve"):
        rome_of(tiny, preserve=preserve)
