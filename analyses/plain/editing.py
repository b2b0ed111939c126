"""v* the plain way: in every step one whole forward and backward pass over all prompts, as the paper's code does it.

The tests compare the library's search with it, and the benchmark its speed.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

import rome_lens as rl
from rome_lens.edit.search.settings import SearchConfig
from rome_lens.edit.search.suffix import Place
from rome_lens.models import Model, frozen, pad, state_name


def plain_value(
    model: Model,
    layer: int,
    request: rl.EditRequest,
    contexts: Sequence[str],
    config: SearchConfig,
    *,
    at: Place = "mlp",
    progress: bool = False,
) -> Tensor:
    """v* of Eq. 4, or MEMIT's z if `at` is "resid": [d_model]. The model's blocks add the MLP's output as it is."""
    target = torch.tensor(model.tokenizer(" " + request.target, add_special_tokens=False)["input_ids"])
    given = model.tokenizer.decode(target[:-1].tolist())
    prompts = [c.replace("{}", request.text) + given for c in contexts] + [f"{request.subject} is a"]
    rows, _ = pad([model.to_tokens(prompt)[0].tolist() for prompt in prompts])
    ends = torch.tensor([model.to_tokens(prompt).shape[1] for prompt in prompts[:-1]])
    predicting = ends[:, None] - len(target) + torch.arange(len(target))
    edited = [_edited_position(model, p, request.subject, config.token, len(given)) for p in prompts[:-1]]
    edited.append(_edited_position(model, prompts[-1], request.subject, config.token, 0))
    where = torch.arange(len(prompts))
    delta = torch.zeros(model.cfg.d_model, requires_grad=True)
    initial, scale = torch.empty(0), torch.empty(())
    essence: Tensor | None = None
    optimizer = torch.optim.Adam([delta], lr=config.learning_rate)

    def add(value: Tensor, hook: object) -> Tensor:
        nonlocal initial, scale
        if len(initial) == 0:
            initial = value[0, edited[0]].detach().clone()
            norms = value[where[:-1], edited[:-1]].detach().norm(dim=-1)
            scale = norms.mean() if config.norm_over_contexts else norms[0]
        value = value.clone()
        value[where, edited] += delta
        return value

    with frozen(model):
        for step in tqdm(range(config.steps), desc="plain v*", unit="step", disable=not progress):
            logits = model.run_with_hooks(rows, fwd_hooks=[(state_name(at, layer), add)]).log_softmax(-1)
            now = logits[-1, edited[-1]]
            essence = now.detach() if essence is None else essence
            nll = -logits[where[:-1, None], predicting, target].mean()
            kl = nn.functional.kl_div(essence, now, log_target=True, reduction="sum")
            loss = nll + config.kl_factor * kl + config.weight_decay * delta.norm() / scale**2
            if loss < config.early_stop_loss or step == config.steps - 1:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                delta *= min(1.0, config.clamp_norm_factor * scale / delta.norm())
    return (initial + delta).detach()


def _edited_position(model: Model, prompt: str, subject: str, token: str, after: int) -> int:
    """Counted in tokens of what comes before; `after` characters follow the prompt."""
    start = prompt.rindex(subject)
    until = {
        "subject_end": prompt[: start + len(subject)],
        "subject_first": prompt[:start].rstrip(),
        "subject_last": prompt[: start + len(subject)],
        "subject_first_after_last": prompt[: start + len(subject)],
        "last": prompt[: len(prompt) - after],
    }[token]
    read = len(model.tokenizer(until, add_special_tokens=False)["input_ids"]) + model.cfg.default_prepend_bos
    return read if "first" in token else read - 1
