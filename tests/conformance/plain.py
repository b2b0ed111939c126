"""What the conformance tests do with every model, and tracing as a plain loop of hooked passes."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import rome_lens as rl
from rome_lens import models
from rome_lens.models import Model
from tests.tiny import CORPUS

FACT = rl.Fact("{} is located in the city of", "The Eiffel Tower")
REQUEST = rl.EditRequest("{} is located in the city of", "The Eiffel Tower", target="Rome")
NOISE = rl.GaussianNoise(std=0.5)  # a width of its own, which no centring of the embeddings changes
LAYER = 1


def trace(model: Model, kind: str) -> rl.CausalTrace:
    return rl.causal_trace(model, FACT, kind=kind, window=2, samples=2, corruption=NOISE, progress=False)


def covariance(model: Model, tokens: int = 3000) -> rl.KeyCovariance:
    texts = (" ".join(CORPUS.split()[i:]) for i in range(60))
    options = {"tokens": tokens, "sequence_length": 64, "progress": False}  # n_ctx is not the same in both classes
    collected = rl.collect_covariance(model, [LAYER], texts=texts, **options)
    return collected[LAYER].shrunk(0.1)


def edit(model: Model, tokens: int = 3000, steps: int = 8) -> rl.Edit:
    config = rl.RomeConfig(layer=LAYER, contexts=["{}"], steps=steps)
    options = {"covariance": covariance(model, tokens), "config": config, "on_unhealthy": "ignore", "progress": False}
    return rl.rome(model, REQUEST, **options)


@torch.no_grad()
def answer_probability(model: Model, tokens: Tensor, answer: int, hooks: models.HookList = ()) -> float:
    """By the model's own whole pass, the mean over the rows."""
    with model.hooks(fwd_hooks=list(hooks)):
        return model(tokens)[:, -1].float().softmax(-1)[:, answer].mean().item()


def plain_trace(model: Model, found: rl.CausalTrace) -> dict[tuple[int, int], float]:
    """Cells (position, layer) of the trace `found` of `FACT`, every second position, each by a pass of its own."""
    row = model.tokenizer(FACT.text, add_special_tokens=False)["input_ids"]
    start, end = found.subject_range
    tokens, width = torch.tensor([row, row]), models.embed(model, torch.tensor(row)).shape[-1]
    noise = torch.from_numpy(NOISE.scale(model) * NOISE._unit(np.random.RandomState(1), (2, end - start, width)))
    clean: dict[str, Tensor] = {}

    def corrupt(value: Tensor, hook: object) -> Tensor:
        value = value.clone()
        value[:, start:end] += noise.to(value)
        return value

    def keep(name: str) -> tuple[str, Callable]:
        return name, lambda value, hook: clean.update({name: value.clone()})

    def put_back(name: str, position: int) -> tuple[str, Callable]:
        def restore(value: Tensor, hook: object) -> Tensor:
            value = value.clone()
            value[:, position] = clean[name][:1, position]
            return value

        return name, restore

    names = [models.state_name(found.kind, layer) for layer in range(3)]
    with torch.no_grad(), model.hooks(fwd_hooks=[keep(name) for name in names]):
        answer = int(model(tokens[:1])[0, -1].argmax())
    windows = [[0], [1], [2]] if found.kind == "resid" else [[0], [0, 1], [1, 2]]
    cells = {}
    for position in range(start, len(row), 2):
        for layer, window in enumerate(windows):
            hooks = [("hook_embed", corrupt), *(put_back(names[i], position) for i in window)]
            cells[position, layer] = answer_probability(model, tokens, answer, hooks)
    return cells
