"""Editing knowledge neurons, a baseline of the ROME paper (Table 4; Dai et al. 2022, arXiv 2104.08696, section 5.1)."""

from collections.abc import Sequence

import torch

from rome_lens.checking import checked
from rome_lens.edit.health import EditHealth, OnUnhealthy, report_problems, update_norms
from rome_lens.edit.neurons import KnowledgeNeuronsConfig, knowledge_neurons
from rome_lens.edit.weights import Edit, as_json, finite_matrix
from rome_lens.facts import EditRequest
from rome_lens.models import Model, embeddings, key_width
from rome_lens.tokens import tokenize_continuation


@checked
def kn(
    model: Model,
    request: EditRequest,
    *,
    true_target: str | None = None,
    paraphrases: Sequence[str] = (),
    config: KnowledgeNeuronsConfig | None = None,
    on_unhealthy: OnUnhealthy = "warn",
    progress: bool = True,
) -> Edit:
    """Writes the new answer into the rows of the MLP output matrices that the old answer's neurons read.

    Each refined neuron's row becomes W_i - lambda_1 t + lambda_2 t', where t is the embedding of the old answer's first
    token and t' that of the new answer, summed over its tokens (paper section 5.1, for answers of one token; the sum is
    the released code's for GPT-2). The tokens are those that follow the prompt, with their leading space: the released
    code tokenises the target without it. It always takes the model's own token for t, as this does without
    `true_target`.

    Args:
        model: is run, not changed.
        request: what to write.
        true_target: the old answer; None: the token that the model says.
        paraphrases: other texts that the old answer follows, as `knowledge_neurons` takes them.
        config: the numbers; None: `KnowledgeNeuronsConfig()`.
        on_unhealthy: what to do if the edit's `health` has problems: an EditWarning, an EditError, or nothing.
        progress: shows a bar.

    Returns:
        An Edit with an update for each layer that holds a refined neuron: a column of `left` is one for one neuron and
        zero for all others.

    Raises:
        EditError: a weight is not finite, no neuron is found, or the edit is unhealthy and `on_unhealthy` is "raise".
            No weight is changed.
        ValueError: a prompt that does not fit, or an MLP without a single output matrix.
    """
    config = KnowledgeNeuronsConfig() if config is None else config
    for layer in range(model.cfg.n_layers):
        finite_matrix(model, layer)
    whole, start = tokenize_continuation(model, request.text, request.target, space=request.space)
    found = knowledge_neurons(
        model, request, answer=true_target, paraphrases=paraphrases, config=config, progress=progress
    )
    table = embeddings(model).float()
    added = config.new_weight * table[list(whole.ids[start:])].sum(0) - config.old_weight * table[found.answer[0]]
    factors = {}
    for layer in sorted({layer for layer, _ in found.neurons}):
        rows = [neuron for where, neuron in found.neurons if where == layer]
        left = torch.eye(key_width(model, layer), device=added.device)[:, rows]
        factors[layer] = left, added.expand(len(rows), -1)
    changes = ((left @ right, finite_matrix(model, layer)) for layer, (left, right) in factors.items())
    health = EditHealth(**update_norms(changes))
    edit = Edit.of(model, [request], factors, method="kn", config=as_json(config), health=health)
    report_problems(health, on_unhealthy, edit=edit)
    return edit
