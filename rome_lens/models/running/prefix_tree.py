"""Rows of tokens as a tree of their prefixes: a prefix that several rows share is computed once, with little padding.

A tree is run as one sequence. The rows "A B C" and "A B D" become

    token       A  B  C  .  D      each token attends to the prefix that it continues, and to nothing else
    position    0  1  2  3  2      ".": a filler that no token attends to
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.models.hook_points import Hook
from rome_lens.models.kinds import Model, is_bridge
from rome_lens.models.running.forward import pad, run

_LARGEST = 256  # tokens in a tree; more would waste time on attention scores between its branches, which are masked


@dataclass
class _Tree:
    """A sequence of tokens, each with its position in its rows; and for each row's number, where its tokens are."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    paths: dict[int, list[int]] = field(default_factory=dict)

    def place(self, token: int, position: int) -> int:
        """Appends a token, and returns where it is."""
        if self.positions and self.positions[-1] == position:
            self.place(0, position + 1)  # a filler, since a step of 0 would hide the token
        self.tokens.append(token)
        self.positions.append(position)
        return len(self.tokens) - 1

    @property
    def steps(self) -> list[int]:
        """TransformerLens' attention mask, from whose cumulative sum it computes positions; 0 hides a token."""
        return [now - before for now, before in zip(self.positions, [-1, *self.positions], strict=False)]


def run_tree(model: Model, rows: Sequence[tuple[int, ...]]) -> list[Float[Tensor, "_ d_model"]]:
    """The residual stream before the final norm of each row, as if each were run alone.

    Models whose attention counts positions by itself (ALiBi, Hugging Face's code) run the rows as a padded batch.
    """
    if is_bridge(model):
        return _side_by_side(model, rows)
    cfg = model.cfg
    largest = min(_LARGEST, cfg.n_ctx, cfg.window_size if cfg.use_local_attn else cfg.n_ctx)
    trees = _grow(rows, largest if cfg.positional_embedding_type in ("standard", "rotary") else 1)
    width = max(len(tree.tokens) for tree in trees)
    tokens, steps = torch.zeros(2, len(trees), width, dtype=torch.long)
    seen = torch.zeros(len(trees), 1, width, width, dtype=torch.bool)
    for i, tree in enumerate(trees):
        tokens[i, : len(tree.tokens)] = torch.tensor(tree.tokens)
        steps[i, : len(tree.tokens)] = torch.tensor(tree.steps)
        for path in tree.paths.values():
            where = torch.tensor(path)
            seen[i, 0, where[:, None], where] = True  # later tokens too: the model's causal mask hides them
    device = model.cfg.device
    hidden = ~seen.to(device)
    see: Hook = lambda scores, hook: scores.masked_fill(hidden.to(scores.device), -torch.inf)  # noqa: E731
    hooks = [(f"blocks.{layer}.attn.hook_attn_scores", see) for layer in range(cfg.n_layers)]
    residual = run(model, tokens.to(device), mask=steps.to(device), hooks=hooks)
    states = {number: residual[i, path] for i, tree in enumerate(trees) for number, path in tree.paths.items()}
    return [states[number] for number in range(len(rows))]


def _side_by_side(model: Model, rows: Sequence[tuple[int, ...]]) -> list[Float[Tensor, "_ d_model"]]:
    tokens, mask = pad(rows)
    residual = run(model, tokens.to(model.cfg.device), mask=mask.to(model.cfg.device))
    return [states[: len(row)] for states, row in zip(residual, rows, strict=True)]


def _grow(rows: Sequence[tuple[int, ...]], largest: int) -> list[_Tree]:
    """Trees of about equal size, with at most `largest` tokens unless a single row is longer."""
    order = sorted(range(len(rows)), key=rows.__getitem__)  # a row shares most with the one before it
    shared = [0, *(_alike(rows[i], rows[j]) for i, j in pairwise(order))]
    most = sum(len(rows[number]) - same + 1 for number, same in zip(order, shared, strict=True))  # 1: see `place`
    enough = math.ceil(most / math.ceil(most / largest))
    trees: list[_Tree] = []
    path: list[int] = []
    for number, same in zip(order, shared, strict=True):
        row = rows[number]
        new = len(row) - same
        held = len(trees[-1].tokens) if trees else largest
        if new and (held >= enough or held + new >= largest):
            trees.append(_Tree())
            path, same = [], 0
        path = path[:same] + [trees[-1].place(token, i) for i, token in enumerate(row[same:], start=same)]
        trees[-1].paths[number] = path
    return trees


def _alike(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """The length of the common prefix."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
