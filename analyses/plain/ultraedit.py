"""UltraEdit's equations (arXiv 2505.14679), written down as they stand, on a model in Hugging Face's classes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

EPSILON = torch.finfo(torch.float32).eps


def plain_ultraedit(
    model: PreTrainedModel,
    modules: Sequence[str],
    turns: Sequence[Sequence[Sequence[tuple[list[int], int]]]],
    learning_rate: float,
) -> list[dict[str, Tensor]]:
    """The changes [d_in, d_out] of each turn by module; they are added to the model's weights.

    A turn is a list of mini-batches, which are lists of (tokens, where the answer starts).
    """
    statistics: dict[tuple[int, int], list[Any]] = {}
    changes = []
    for turn in turns:
        seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in modules}
        for batch in turn:
            for name, pair in _answer_rows(model, modules, batch).items():
                seen[name].append(pair)
                z = torch.cat(pair, dim=1)
                n, mean, squares = statistics.setdefault(
                    (pair[0].shape[1], pair[1].shape[1]), [0, torch.zeros(z.shape[1]), torch.zeros(z.shape[1])]
                )
                m, d = len(z), z.mean(0) - mean
                squares = squares + m * z.var(0) + n * m * d**2 / (n + m)
                statistics[pair[0].shape[1], pair[1].shape[1]] = [n + m, mean + m * d / (n + m), squares]
        found = {}
        for name in modules:
            h, g = (torch.cat(each) for each in zip(*seen[name], strict=True))
            n, mean, squares = statistics[h.shape[1], g.shape[1]]
            z = (torch.cat([h, g], dim=1) - mean) / ((squares / (n - 1 + EPSILON)).sqrt() + EPSILON)
            h_hat, g_hat = z[:, : h.shape[1]], z[:, h.shape[1] :]
            v = torch.stack([-learning_rate * (h_hat[i] @ h_hat[i]) * g_hat[i] for i in range(len(h))])
            found[name] = torch.linalg.solve(h.T @ h + torch.eye(h.shape[1]), h.T @ v)
        with torch.no_grad():
            for name, change in found.items():
                module = model.get_submodule(name)
                module.weight += change.T if isinstance(module, nn.Linear) else change
        changes.append(found)
    return changes


def _answer_rows(
    model: PreTrainedModel, modules: Sequence[str], batch: Sequence[tuple[list[int], int]]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Inputs, and gradients by the output, where tokens of the answers are predicted; text by text, no padding."""
    inputs: dict[str, list[Tensor]] = {name: [] for name in modules}
    outputs: dict[str, list[Tensor]] = {name: [] for name in modules}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            output.retain_grad()
            inputs[name].append(args[0])
            outputs[name].append(output)

        return hook

    handles = [model.get_submodule(name).register_forward_hook(note(name)) for name in modules]
    losses = []
    for tokens, start in batch:
        log_probs = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
        losses += [-log_probs[i - 1, tokens[i]] for i in range(start, len(tokens))]
    torch.stack(losses).mean().backward()
    for handle in handles:
        handle.remove()
    model.zero_grad()
    where = [slice(start - 1, len(tokens) - 1) for tokens, start in batch]
    return {
        name: (
            torch.cat([each[0, at].detach() for each, at in zip(inputs[name], where, strict=True)]),
            torch.cat(
                [each.grad[0, at] for each, at in zip(outputs[name], where, strict=True) if each.grad is not None]
            ),
        )
        for name in modules
    }
