"""Mixtures of experts: what they add to the residual stream is traced as an MLP's output; edits refuse them at once."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rome_lens as rl
from rome_lens import models
from tests.conformance.configurations import save
from tests.conformance.plain import FACT, NOISE, REQUEST, trace
from tests.conformance.zoo import hugging_face
from tests.tiny import CORPUS

FAMILIES = ["mixtral", "qwen3-moe"]
LAYER = 1


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return save(tmp_path_factory.mktemp("mixture"), request.param)


@pytest.fixture(scope="module")
def mixture(folder):
    return rl.load_model(folder, device="cpu")


@contextmanager
def changed(module: nn.Module, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Inside, the module's output is what `change` makes of it (None: as it was)."""

    def hook(_: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...] | None:
        state, *more = output if isinstance(output, tuple) else (output,)  # some versions give the router's logits too
        new = change(state)
        return output if new is None else (new, *more) if isinstance(output, tuple) else new

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def test_the_experts_joint_output_is_traced_as_hooks_on_hugging_faces_model_do(folder, mixture):
    found, plain = trace(mixture, "mlp"), hugging_face(folder)
    row = torch.tensor([mixture.tokenizer(FACT.text)["input_ids"]])
    start, end = found.subject_range
    noise = torch.from_numpy(
        NOISE.scale(mixture) * NOISE._unit(np.random.RandomState(1), (2, end - start, mixture.cfg.d_model))
    )
    clean: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for layer, block in enumerate(plain.model.layers):
            stack.enter_context(changed(block.mlp, lambda state, layer=layer: clean.update({layer: state.clone()})))
        answer = int(plain(row).logits[0, -1].argmax())

    def corrupt(state: Tensor) -> Tensor:
        return torch.cat([state[:, :start], state[:, start:end] + noise.to(state), state[:, end:]], dim=1)

    def restored(position: int, layer: int) -> Callable[[Tensor], Tensor]:
        def put_back(state: Tensor) -> Tensor:
            state = state.view(2, row.shape[1], -1).clone()
            state[:, position] = clean[layer].view(1, row.shape[1], -1)[:, position]
            return state

        return put_back

    for position in range(start, row.shape[1], 2):
        for layer, window in enumerate([[0], [0, 1], [1, 2]]):
            with ExitStack() as stack:
                stack.enter_context(changed(plain.model.embed_tokens, corrupt))
                for each in window:
                    stack.enter_context(changed(plain.model.layers[each].mlp, restored(position, each)))
                expected = plain(row.expand(2, -1)).logits[:, -1].softmax(-1)[:, answer].mean().item()
            assert found.restored[position, layer].item() == pytest.approx(expected, abs=2e-5), (position, layer)


def edits() -> dict[str, Callable[[models.Model], object]]:
    made = rl.KeyCovariance.from_matrix(torch.eye(64), layer=LAYER, tokens=1000)
    layers = (LAYER,)
    return {
        "rome": lambda m: rl.rome(m, REQUEST, covariance=made, config=rl.RomeConfig(layer=LAYER)),
        "memit": lambda m: rl.memit(m, [REQUEST], covariances={LAYER: made}, config=rl.MemitConfig(layers=layers)),
        "alphaedit": lambda m: rl.edit.alphaedit(
            m, [REQUEST], covariances={LAYER: made}, config=rl.edit.AlphaEditConfig(layers=layers)
        ),
        "emmet": lambda m: rl.edit.emmet(
            m, [REQUEST], covariances={LAYER: made}, config=rl.edit.EmmetConfig(layers=layers)
        ),
        "ultraedit": lambda m: rl.edit.ultraedit(m, [REQUEST], config=rl.edit.UltraEditConfig(layers={"out": layers})),
        "ultraedit gate": lambda m: rl.edit.ultraedit(
            m, [REQUEST], config=rl.edit.UltraEditConfig(layers={"gate": layers})
        ),
        "finetune": lambda m: rl.edit.finetune(m, REQUEST, config=rl.edit.FinetuneConfig(layers=layers)),
        "knowledge_neurons": lambda m: rl.edit.knowledge_neurons(m, REQUEST),
        "kn": lambda m: rl.edit.kn(m, REQUEST),
        "collect_covariance": lambda m: rl.collect_covariance(m, [LAYER], texts=CORPUS, tokens=10),
        "recommend_layers": lambda m: rl.recommend_layers(m, texts=CORPUS, tokens=10),
    }


@pytest.mark.parametrize("name", edits())
def test_no_edit_begins_on_a_mixture_of_experts(mixture, name, monkeypatch):
    passes = []
    for module in (mixture, *([mixture.original_model] if hasattr(mixture, "original_model") else [])):
        monkeypatch.setattr(module, "forward", lambda *args, **kwargs: passes.append(args))
    with pytest.raises(ValueError, match="mixture of experts, where a router picks some of 4"):
        edits()[name](mixture)
    assert not passes
