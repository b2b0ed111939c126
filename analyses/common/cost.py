"""What tracing, covariances and edits cost, counted from a model's shape: operations, and memory on top of the weights.

Operations are floating-point ones in products of matrices, two for each multiplication; all else is left out. They are
those of HookedTransformer; a Bridge runs the other positions of its last block as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from rome_lens.edit.search.settings import SearchConfig
from rome_lens.locate.grid import restored_layers
from rome_lens.models import Kind

_ROWS_OF_LOGITS = 64  # of a trace, computed at once
_COPIES = 6  # of each state that a block holds at a time, in float32


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder.

    Attributes:
        n_layers, d_model, d_mlp, d_vocab: as TransformerLens calls them.
        heads: width of the queries of all heads together.
        keys_and_values: width of their keys and values together, which groups of heads may share.
        in_block: how many numbers a block's matrices hold: each token is multiplied with all of them.
        parameters: how many numbers the weights hold; tied embeddings count twice, as HookedTransformer keeps them.
    """

    n_layers: int
    d_model: int
    d_mlp: int
    d_vocab: int
    heads: int
    keys_and_values: int
    in_block: int
    parameters: int


def shape_of_config(config: PretrainedConfig) -> Shape:
    """The sizes that a configuration of Hugging Face's gives a model. No weight takes memory.

    Raises:
        ValueError: it is not a decoder's whose blocks have one MLP each.
    """
    config = config.get_text_config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    blocks = next((module for module in model.modules() if isinstance(module, nn.ModuleList)), None)
    if blocks is None or len(blocks) != config.num_hidden_layers or "experts" in str(blocks[0]).lower():
        raise ValueError(
            f"The configuration is of a {type(model).__name__}, expected a decoder of blocks with one dense MLP each."
        )
    heads, d_model = config.num_attention_heads, config.hidden_size
    width = getattr(config, "head_dim", None) or d_model // heads
    widest = max(max(p.shape) for p in blocks[0].parameters() if p.ndim == 2 and min(p.shape) == d_model)
    untied = config.vocab_size * d_model if config.tie_word_embeddings else 0
    return Shape(
        n_layers=len(blocks),
        d_model=d_model,
        d_mlp=getattr(config, "intermediate_size", None) or widest,
        d_vocab=config.vocab_size,
        heads=heads * width,
        keys_and_values=2 * (getattr(config, "num_key_value_heads", None) or heads) * width,
        in_block=_matrices(blocks) // len(blocks),
        parameters=_numbers(model) + untied,
    )


@dataclass(frozen=True)
class Prompt:
    """A prompt's length in tokens, with those of the answer but the last, and where its subject is."""

    length: int
    subject: range
    answer: int = 1


def in_contexts(prompt: Prompt, target: int, config: SearchConfig) -> list[Prompt]:
    """The prompt before a target of so many tokens, by itself and in each context of an edit.

    Contexts that are to be sampled have a full stop after them; of given ones, only their number is known here.
    """
    before = [length + 1 for length, count in config.context_lengths for _ in range(count)]
    if config.contexts is not None:
        before = [0] * (len(config.contexts) - 1)
    subject, whole = prompt.subject, prompt.length + target - 1
    return [Prompt(n + whole, range(n + subject.start, n + subject.stop), target) for n in (0, *before)]


def block_operations(shape: Shape, queries: int, keys: int, *, only: int | None = None) -> float:
    """Of one block for `queries` tokens that see `keys`; with `only`, the first of them have but keys and values."""
    run = queries if only is None else only
    of_past = shape.d_model * shape.keys_and_values
    return 2.0 * (run * (shape.in_block - of_past) + queries * of_past + 2 * run * keys * shape.heads)


def logit_operations(shape: Shape, rows: int) -> float:
    """Of the unembedding."""
    return 2.0 * rows * shape.d_model * shape.d_vocab


def trace_operations(
    shape: Shape,
    prompt: Prompt,
    *,
    kind: Kind = "resid",
    window: int = 10,
    samples: int = 10,
    positions: Sequence[int] | None = None,
) -> float:
    """Of an exact trace over all layers, cell by cell as `locate/grid.py` runs them, in one batch for each position."""
    whole = shape.n_layers * block_operations(shape, prompt.length, prompt.length)
    total = (1 + samples) * (whole + logit_operations(shape, prompt.answer))
    if kind != "resid":
        total += samples * whole
    windows = [restored_layers(kind, layer, window, shape.n_layers) for layer in range(shape.n_layers)]
    longest = {each.start: each for each in windows}
    shorter = [each for each in windows if each != longest[each.start]]
    places = range(prompt.length) if positions is None else positions
    for position in (place for place in places if place >= prompt.subject.start):
        for layer in range(shape.n_layers):
            begun, ended = sum(start < layer for start in longest), sum(each.stop <= layer for each in shorter)
            last = prompt.answer if layer == shape.n_layers - 1 else None
            rows = samples * (begun + ended)
            total += rows * block_operations(shape, prompt.length - position, prompt.length, only=last)
        total += logit_operations(shape, (len(longest) + len(shorter)) * samples * prompt.answer)
    return total


def covariance_operations(shape: Shape, layers: Sequence[int], tokens: int, *, length: int = 512) -> float:
    """Of the covariances of some layers, in one pass over pieces of `length` tokens."""
    each = (max(layers) + 1) * block_operations(shape, 1, length) + len(layers) * 2.0 * shape.d_mlp**2
    return tokens * each


def search_operations(shape: Shape, prompts: Sequence[Prompt], layer: int, *, steps: int) -> float:
    """Of ROME's k* and v*, where the search takes all its steps. A prompt for each context; the target is its answer.

    A step runs the positions from the subject's last on through the blocks after `layer`, and goes back through the
    same products, where attention has two for each of its own.
    """
    length = max(prompt.length for prompt in prompts)
    last = [prompt.subject.stop - 1 for prompt in prompts]
    width, past = max(prompt.length - place for prompt, place in zip(prompts, last, strict=True)), max(1, *last)
    rows, read, tried = len(prompts), layer + 1, min(4, length)
    once = rows * (
        read * block_operations(shape, past + 1, past + 1)  # k*
        + read * block_operations(shape, length, length)
        + shape.n_layers * block_operations(shape, past, past)
    )
    once += 2 * read * block_operations(shape, tried, tried)  # `models/running/adding.py`
    once += 2.0 * (rows + tried) * shape.d_mlp * shape.d_model
    attention = 4.0 * width * (past + width) * shape.heads
    forward = block_operations(shape, width, past + width)
    above = rows * (shape.n_layers - 1 - layer)
    needed = logit_operations(shape, rows * prompts[0].answer + 1)
    return once + steps * (above * forward + needed) + (steps - 1) * (above * (forward + attention) + needed)


def trace_weights(shape: Shape, prompt: Prompt, *, kind: Kind = "resid", samples: int = 10) -> float:
    """How many numbers of the weights an exact trace multiplies with, each pass through a block counted."""
    places, runs = prompt.length - prompt.subject.start, 2 if kind == "resid" else 3
    blocks = runs * shape.n_layers + places * (shape.n_layers - 1)
    logits = 2 + places * ceil(shape.n_layers * samples * prompt.answer / _ROWS_OF_LOGITS)
    return float(blocks * shape.in_block + logits * shape.d_model * shape.d_vocab)


def search_weights(shape: Shape, layer: int, *, steps: int) -> float:
    """The same of ROME's k* and v*."""
    above, passes = shape.n_layers - 1 - layer, 2 * steps - 1
    blocks = 4 * (layer + 1) + shape.n_layers + passes * above
    return float(blocks * shape.in_block + passes * shape.d_model * shape.d_vocab)


def sampling_work(shape: Shape, config: SearchConfig) -> tuple[float, float]:
    """Of the contexts that are sampled from the model, a token at a time: operations, and weights as above."""
    lengths = () if config.contexts is not None else config.context_lengths
    tokens = sum(length * count for length, count in lengths)
    each = shape.n_layers * block_operations(shape, 1, 1) + logit_operations(shape, 1)
    passes = sum(length for length, _ in lengths)
    return tokens * each, float(passes * (shape.n_layers * shape.in_block + shape.d_model * shape.d_vocab))


def solving_operations(shape: Shape) -> float:
    """Of C^-1 k: C's Cholesky factor, in float64, of which each counts as two."""
    return 2.0 * shape.d_mlp**3 / 3


@dataclass(frozen=True)
class Speed:
    """How fast blocks run.

    Attributes:
        operations: a second, where there are many rows, with all that lies between the products.
        rows: how many rows more a pass through a block seems to have, by its time: matrices are read first.
        long: operations a second in pieces of text; None: as above.
    """

    operations: float
    rows: float = 0.0
    long: float | None = None

    def seconds(self, operations: float, weights: float = 0.0) -> float:
        """What so many operations take, with matrices of so many numbers."""
        return (operations + 2.0 * self.rows * weights) / self.operations


def loading_bytes(shape: Shape, itemsize: int) -> float:
    """The most that `load_model` holds: the weights, and on top a block, or the unembedding, as it is compared.

    In half precision these are compared in float32, a block or a part of the vocabulary at a time.
    """
    compared = 4 * shape.in_block if itemsize == 2 else 0
    rewritten = itemsize * max(shape.in_block, shape.d_model * shape.d_vocab)
    return float(itemsize * shape.parameters + max(compared, rewritten))


def trace_bytes(shape: Shape, prompt: Prompt, *, itemsize: int, kind: Kind = "resid", samples: int = 10) -> float:
    """What a trace holds on top of the weights where all cells of a position fit into one batch."""
    rows = samples * prompt.length
    kept = (shape.n_layers + 1) * rows * (2 * shape.d_model + shape.keys_and_values)
    largest = shape.n_layers * samples * (prompt.length - prompt.subject.start)
    batch = largest * (_COPIES * shape.d_model + 3 * shape.d_mlp + shape.heads)
    return itemsize * (kept + batch) + 12.0 * _ROWS_OF_LOGITS * shape.d_vocab


def covariance_bytes(shape: Shape, layers: int, *, itemsize: int, batch: int) -> float:
    """What covariances hold on top: sums of both halves in float64, as many bytes again for the result, and a batch."""
    states = itemsize * batch * (_COPIES * shape.d_model + 3 * shape.d_mlp)
    return 32.0 * layers * shape.d_mlp**2 + states


def search_bytes(shape: Shape, prompts: Sequence[Prompt], layer: int, *, itemsize: int) -> float:
    """What an edit holds on top: what each block keeps to go back through it, the logits, and C's factor."""
    width = max(prompt.length - prompt.subject.stop + 1 for prompt in prompts)
    graph = len(prompts) * width * (shape.n_layers - 1 - layer) * (_COPIES * shape.d_model + 5 * shape.d_mlp)
    return itemsize * graph + 16.0 * len(prompts) * shape.d_vocab + 8.0 * shape.d_mlp**2


def _matrices(blocks: nn.Module) -> int:
    """How many numbers the matrices hold; HookedTransformer's for attention have an axis for heads, its biases two."""
    named = ((name.rpartition(".")[2], parameter) for name, parameter in blocks.named_parameters())
    return sum(p.numel() for name, p in named if p.ndim >= 2 and not name.lstrip("_").startswith("b"))


def _numbers(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
