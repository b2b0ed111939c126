"""Knowledge neurons: the MLPs' inner activations on which an answer depends (Dai et al. 2022, arXiv 2104.08696)."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from rome_lens.checking import check_least, checked
from rome_lens.data.records import Continuation, EditRequest, Fact, check_prompts, target_rows
from rome_lens.edit.artifact.edit import Edit, as_json, finite_matrix
from rome_lens.edit.artifact.health import OnUnhealthy
from rome_lens.edit.methods.requests import Requests, only_request
from rome_lens.errors import EditError
from rome_lens.models import (
    Hook,
    Model,
    contribution_change,
    embeddings,
    frozen,
    key_name,
    logits,
    mlp_output,
    output_matrix,
    run_blocks,
    run_with_past,
    state_name,
)
from rome_lens.models.prediction import next_token_log_probabilities
from rome_lens.models.teacher_forcing import TargetRow
from rome_lens.models.tokens import tokenize, tokenize_continuation


@checked
@dataclass(frozen=True, kw_only=True)
class KnowledgeNeuronsConfig:
    """Hyper-parameters of knowledge neurons: the ROME paper's baseline (kmeng01/rome@0874014, hparams/KN, kn_main).

    Attributes:
        steps: steps of the integral (20 in the paper and in the baseline).
        threshold: a neuron is coarse if its attribution exceeds this share of the largest (0.2; adaptive_threshold).
        sharing: a neuron is refined if it is coarse in more than this share of the prompts (p: 0.4, without effect on
            the baseline's one prompt; the paper starts at 0.7 and adjusts it until 2 to 5 neurons are left).
        most_neurons: maximum number of neurons, the strongest first; None: all, as in the baseline.
        old_weight: lambda_1, factor of the old answer's embedding, which is subtracted (2; the paper: 1).
        new_weight: lambda_2, factor of the new answer's embedding, which is added (1 for GPT-2, where the code always
            gets the target as a list of tokens; 2 for others; the paper: 8).
    """

    steps: int = 20
    threshold: float = 0.2
    sharing: float = 0.4
    most_neurons: int | None = None
    old_weight: float = 2.0
    new_weight: float = 1.0

    def __post_init__(self) -> None:
        check_least(self, steps=1, most_neurons=1)
        for name in ("threshold", "sharing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 0 and below 1.")


@checked
@dataclass(frozen=True, eq=False)
class KnowledgeNeurons:
    """The neurons on which an answer depends.

    Attributes:
        prompts: the prompts that the answer follows.
        answer: its tokens after the first prompt.
        attributions: [prompt, layer, neuron], on the CPU: attribution of the answer's probability to each neuron.
        neurons: the refined (layer, neuron) pairs, the largest mean attribution first.
    """

    prompts: tuple[str, ...]
    answer: tuple[int, ...]
    attributions: Float[Tensor, "prompt layer neuron"] = field(repr=False)
    neurons: tuple[tuple[int, int], ...]


@checked
def knowledge_neurons(
    model: Model,
    fact: Fact | EditRequest,
    *,
    answer: str | None = None,
    paraphrases: Sequence[str] = (),
    config: KnowledgeNeuronsConfig | None = None,
    progress: bool = True,
) -> KnowledgeNeurons:
    """Attributes the probability of an answer to all neurons, and selects those that matter.

    A neuron is an entry of the MLP's inner activation, after the nonlinearity (and the gate, if there is one), as in
    the paper; the released code takes the input of the nonlinearity. Its attribution is the integrated gradient (paper
    Eq. 4) of the answer's probability, as all activations of its layer go from 0 to their values at one position: the
    prompt's last, which predicts the answer's first token. If the answer has several tokens, each is attributed at the
    position that predicts it, after the true tokens before it (after the model's own in the released code), and the
    attributions are averaged.

    Args:
        fact: A prompt about a subject.
        answer: The model's answer; None: the `answer` of a Fact or `true_answer` of a request, or if there is none, the
            model's most probable next token.
        paraphrases: Other prompts with the same answer. Enough of them have to share a neuron; the ROME paper's
            baseline has none.

    Returns:
        The attributions and the refined neurons.

    Raises:
        EditError: no neuron has a positive attribution, or none is shared by enough prompts.
        ValueError: a prompt is blank or exceeds the model's context, or a layer has no single MLP output matrix.
    """
    config = KnowledgeNeuronsConfig() if config is None else config
    for layer in range(model.cfg.n_layers):
        output_matrix(model, layer)
    if paraphrases:
        check_prompts(paraphrases, "paraphrases")
    if answer is None:
        answer = fact.answer if isinstance(fact, Fact) else fact.true_answer
    prompts = (fact.text, *paraphrases)
    rows = _answer_rows(model, prompts, answer, fact.space)
    total = sum(len(ids) - start for ids, start in rows)
    with tqdm(total=total, desc="knowledge neurons", unit="prediction", disable=not progress) as bar:
        found = []
        for ids, start in rows:
            parts = []
            for i in range(start, len(ids)):
                parts.append(token_attributions(model, ids[:i], ids[i], steps=config.steps))
                bar.update()
            found.append(torch.stack(parts).mean(0))
    attributions = torch.stack(found)
    ids, start = rows[0]
    return KnowledgeNeurons(prompts, ids[start:], attributions, _refined(attributions, fact.text, config))


def token_attributions(
    model: Model, tokens: Sequence[int], answer: int, *, steps: int
) -> Float[Tensor, "layer neuron"]:
    """Integrated gradients of a token's probability after `tokens`: the mean over k/steps for k = 1 to `steps`.

    All steps of a layer are one batch of the last position alone; the earlier positions are run once.
    """
    layers, last = range(model.cfg.n_layers), len(tokens) - 1
    states: dict[str, Tensor] = {}
    names = {layer: (key_name(layer), state_name("resid", layer)) for layer in layers}
    reading = [(name, _keep_last(states, name)) for pair in names.values() for name in pair]
    with torch.no_grad():
        _, whole = run_with_past(model, torch.tensor([tokens], device=model.cfg.device), hooks=reading)
    past = {layer: whole[layer].upto(last) for layer in layers} if last else None
    scales = torch.arange(1, steps + 1, device=model.cfg.device)[:, None] / steps
    rows = []
    with frozen(model), torch.enable_grad():
        for layer in layers:
            key, after = (states[name] for name in names[layer])
            key, after = key.to(scales.device), after.to(scales.device)
            scaled = (scales * key.float()).requires_grad_()
            output = mlp_output(model, layer, key).expand(steps, -1)
            change = contribution_change(model, layer, output, mlp_output(model, layer, scaled) - output)
            residual = (after + change.to(after.dtype))[:, None]
            residual = run_blocks(model, residual, layer + 1, model.cfg.n_layers, past=past)
            probability = logits(model, residual[:, 0]).softmax(-1)[:, answer]
            (gradient,) = torch.autograd.grad(probability.sum(), scaled)
            rows.append((key[0].float() * gradient.mean(0)).cpu())
    return torch.stack(rows)


def _keep_last(states: dict[str, Tensor], name: str) -> Hook:
    return lambda value, hook: states.update({name: value[:, -1]})


def _refined(
    attributions: Float[Tensor, "prompt layer neuron"], text: str, config: KnowledgeNeuronsConfig
) -> tuple[tuple[int, int], ...]:
    """The neurons that are coarse in enough prompts, the strongest first."""
    largest = attributions.amax(dim=(1, 2))
    if not (largest > 0).all():
        raise EditError(
            f"No neuron brings any of the answer's probability after {text!r} or a paraphrase (the largest attribution "
            f"is {largest.min().item():.3g}). Check the model's weights (NaN?) and the answer."
        )
    coarse = attributions > config.threshold * largest[:, None, None]
    shared = (coarse.sum(0) > config.sharing * len(coarse)).nonzero().tolist()
    if not shared:
        raise EditError(
            f"None of the {int(coarse.any(0).sum())} coarse neurons of {text!r} is one for more than "
            f"{config.sharing:.0%} of the {len(coarse)} prompts. Lower sharing or threshold, or give paraphrases that "
            "are more alike."
        )
    mean = attributions.mean(0)
    ordered = sorted(((layer, neuron) for layer, neuron in shared), key=lambda place: (-mean[place].item(), place))
    return tuple(ordered[: config.most_neurons])


def _answer_rows(model: Model, prompts: Sequence[str], answer: str | None, space: bool | None) -> list[TargetRow]:
    """Each prompt with the answer; if it is None, with the model's most probable token after the first prompt."""
    if answer is not None:
        return target_rows(model, [Continuation(prompt, answer, space=space) for prompt in prompts])
    predicted = int(next_token_log_probabilities(model, prompts[:1]).argmax(-1))
    return [((*ids, predicted), len(ids)) for ids in (tokenize(model, prompt).ids for prompt in prompts)]


@checked
def kn(
    model: Model,
    request: Requests,
    *,
    paraphrases: Sequence[str] = (),
    config: KnowledgeNeuronsConfig | None = None,
    on_unhealthy: OnUnhealthy = "warn",
    progress: bool = True,
) -> Edit:
    """Edits the rows of the MLP output matrices that belong to the old answer's knowledge neurons.

    Each refined neuron's row becomes W_i - lambda_1 t + lambda_2 t', where t is the embedding of the old answer's first
    token and t' the sum of the embeddings of the new answer's tokens (paper section 5.1, for answers of one token; the
    sum is the released code's for GPT-2). Tokens have their leading space, as they follow the prompt; the released code
    tokenises the target without it. For t it always takes the model's own most probable token, which this does only if
    `request.true_answer` is None.

    Args:
        request: What to write: an EditRequest, or a list of one. Its `true_answer` is the old answer; None: the model's
            most probable next token.
        paraphrases: Other prompts with the old answer, as in `knowledge_neurons`.

    Returns:
        An Edit with an update for each layer that has a refined neuron; each column of `left` is 1 for one neuron and 0
        for all others.

    Raises:
        EditError: a weight is not finite, no neuron is found, or the edit is unhealthy and `on_unhealthy` is "raise".
            No weight is changed.
        ValueError: several requests, a prompt that exceeds the model's context, or an MLP without a single output
            matrix.
    """
    request = only_request(request, "kn")
    config = KnowledgeNeuronsConfig() if config is None else config
    for layer in range(model.cfg.n_layers):
        finite_matrix(model, layer)
    whole, start = tokenize_continuation(model, request.text, request.target, space=request.space)
    found = knowledge_neurons(model, request, paraphrases=paraphrases, config=config, progress=progress)
    table = embeddings(model).float()
    added = config.new_weight * table[list(whole.ids[start:])].sum(0) - config.old_weight * table[found.answer[0]]
    factors = {}
    for layer in sorted({layer for layer, _ in found.neurons}):
        rows = [neuron for where, neuron in found.neurons if where == layer]
        left = torch.eye(len(output_matrix(model, layer)), device=added.device)[:, rows]
        factors[layer] = left, added.expand(len(rows), -1)
    return Edit.of(model, [request], factors, method="kn", config=as_json(config), on_unhealthy=on_unhealthy)
