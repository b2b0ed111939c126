"""A TransformerLens model behind the interface of lm-evaluation-harness, which has to be installed."""

from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor, nn
from tqdm.auto import tqdm

from rome_lens.models import Model, pad, prefix_ids, write_on
from rome_lens.models.teacher_forcing import score_targets, target_log_probabilities

_TEXTS_AT_ONCE = 16
_NEW_TOKENS = 256


class HarnessModel(TemplateLM):
    """Answers the harness's three kinds of requests. Texts beyond the model's context are cut at their start."""

    def __init__(self, model: Model, *, progress: bool = True) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = model.tokenizer
        self.progress = progress

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token that precedes a text without context: the last of `prefix_ids`, else EOS."""
        return (self.eot_token_id, *prefix_ids(self.model))[-1]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Tokenises by the model's own rule; without the prefix if `add_special_tokens` is False."""
        before = [] if add_special_tokens is False else prefix_ids(self.model)
        return before + self.tokenizer(string, add_special_tokens=False, verbose=False)["input_ids"]

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """The log-probability of each continuation, and whether greedy decoding would give it."""
        room = self.model.cfg.n_ctx + 1  # the last token is not read
        prefix = prefix_ids(self.model)  # of which the harness can name one token
        wholes = [(prefix if before == prefix[-1:] else before) + after for _, before, after in requests]
        rows = [tuple(whole[-room:]) for whole in wholes]
        starts = [max(1, len(row) - len(after)) for row, (_, _, after) in zip(rows, requests, strict=True)]
        answers: list[tuple[float, bool]] = [(0.0, True)] * len(rows)
        disable = disable_tqdm or not self.progress
        with tqdm(total=len(rows), desc="harness: log-likelihoods", unit="request", disable=disable) as bar:
            for i, found in score_targets(self.model, list(zip(rows, starts, strict=True)), _likelihood_and_greedy):
                answers[i] = found[:, 0].sum().item(), bool(found[:, 1].all())
                bar.update()
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of whole texts, in disjoint windows of the model's context."""
        windows, owners = [], []
        for i, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0], add_special_tokens=False)
            for pair in get_rolling_token_windows(tokens, self.prefix_token_id, self.model.cfg.n_ctx, 1):
                windows.append((None, *make_disjoint_window(pair)))
                owners.append(i)
        sums = [0.0] * len(requests)
        for i, (value, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            sums[i] += value
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations, up to the first of the task's stop strings.

        Raises:
            ValueError: a task asks for sampling.
        """
        jobs = [self._to_write(request) for request in requests]
        texts = [""] * len(jobs)
        order = sorted(range(len(jobs)), key=lambda i: len(jobs[i][0]))
        bar = tqdm(total=len(jobs), desc="harness: texts", unit="text", disable=disable_tqdm or not self.progress)
        for start in range(0, len(order), _TEXTS_AT_ONCE):
            batch = order[start : start + _TEXTS_AT_ONCE]
            length = min(self.model.cfg.n_ctx, max(len(jobs[i][0]) + jobs[i][1] for i in batch))
            tokens, given = (
                nn.functional.pad(each, (0, length - each.shape[1])).to(self.model.cfg.device)
                for each in pad([jobs[i][0] for i in batch])
            )
            written = write_on(
                self.model, tokens, given, chances=torch.zeros(tokens.shape, device=tokens.device), top_k=1
            )
            for i, row in zip(batch, written.tolist(), strict=True):
                before, new_tokens, ends = jobs[i]
                texts[i] = self._until(row[len(before) : len(before) + new_tokens], ends)
            bar.update(len(batch))
        bar.close()
        return texts

    def _to_write(self, request: Instance) -> tuple[list[int], int, list[str]]:
        """The prompt's tokens, the most new tokens, and the stop strings."""
        context, options = request.args
        if options.get("do_sample") and options.get("temperature", 1.0) > 0:
            raise ValueError(
                f"A task wants its texts sampled ({options}), but they are written greedily. Leave it out."
            )
        ends = options.get("until") or []
        new_tokens = options.get("max_gen_toks", _NEW_TOKENS)
        before = self.tok_encode(context)[-max(1, self.model.cfg.n_ctx - new_tokens) :] or [self.prefix_token_id]
        return before, new_tokens, [ends] if isinstance(ends, str) else list(ends)

    def _until(self, tokens: list[int], ends: list[str]) -> str:
        if self.eot_token_id in tokens:
            tokens = tokens[: tokens.index(self.eot_token_id)]
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return text[: min((text.find(end) for end in ends if end and end in text), default=len(text))]


def _likelihood_and_greedy(scores: Tensor, targets: Tensor) -> Tensor:
    """[token, 2], float64: each target token's log-probability, and 1 if it is the most probable one, else 0."""
    return torch.stack([target_log_probabilities(scores, targets).double(), scores.argmax(-1) == targets], dim=-1)
