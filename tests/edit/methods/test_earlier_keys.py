"""What AlphaEdit and MEMIT keep of earlier batches' keys, and a sequence for them."""

from dataclasses import replace

import pytest
import torch

import rome_lens as rl
from rome_lens.edit.methods.batch import context_keys
from rome_lens.edit.methods.closed_forms import alphaedit_factor, memit_factor
from tests.edit.methods.test_batch import METHODS, REQUESTS, edit_of, targets_of
from tests.edit.methods.test_closed_forms import KEYS, MISSING, OUT, WIDTH, covariance, made_up

EARLIER = made_up(7, WIDTH, 9)


@pytest.mark.parametrize("ridge", [0.0, 3.0])
def test_memit_with_earlier_keys_and_a_ridge_is_the_minimum_of_its_least_squares(ridge):
    """weight tr(DT C D) + ridge |D|^2 + |K_p D|^2 + |K D - R|^2, as one stacked least-squares problem."""
    found = memit_factor(KEYS, covariance(), 2.0, ridge=ridge, earlier=EARLIER.T @ EARLIER) @ MISSING
    root = torch.linalg.cholesky(covariance().second_moment.double()).T
    zeros = [(2.0**0.5 * root), ridge**0.5 * torch.eye(WIDTH).double(), EARLIER]
    wanted = torch.cat([torch.zeros(2 * WIDTH + len(EARLIER), OUT).double(), MISSING])
    plain = torch.linalg.lstsq(torch.cat([*zeros, KEYS]), wanted).solution
    assert torch.allclose(found, plain, rtol=1e-7, atol=1e-10)


def test_alphaedit_with_earlier_keys_is_the_published_solve():
    """(P (KT K + K_pT K_p) + ridge I)^-1 P KT R, which without earlier keys is what it was."""
    c = covariance(rank=5)
    values, vectors = torch.linalg.eigh(c.second_moment.double())
    projection = vectors[:, values < 1e-3] @ vectors[:, values < 1e-3].T
    found = alphaedit_factor(KEYS, c, 1e-3, 0.5, earlier=EARLIER.T @ EARLIER) @ MISSING
    system = projection @ (KEYS.T @ KEYS + EARLIER.T @ EARLIER) + 0.5 * torch.eye(WIDTH).double()
    assert torch.allclose(found, torch.linalg.solve(system, projection @ KEYS.T @ MISSING), atol=1e-9)
    none = alphaedit_factor(KEYS, c, 1e-3, 0.5, earlier=torch.zeros(WIDTH, WIDTH))
    assert torch.allclose(none, alphaedit_factor(KEYS, c, 1e-3, 0.5), atol=1e-9)


@pytest.mark.parametrize("name", ["memit", "alphaedit"])
def test_a_second_batch_leaves_the_answers_to_the_first_ones_keys_alone(tiny, name):
    """The keys are kept, and the second edit moves their answers less than one that knows nothing of them."""
    config = replace(METHODS[name][1], earlier_keys=True, steps=6)
    memory, first, second = rl.edit.EditMemory(), REQUESTS[:2], REQUESTS[2:]
    edit = edit_of(tiny, name, first, config=config, memory=memory)
    alone = edit_of(tiny, name, first, config=config)
    assert all(torch.equal(a.left, b.left) for a, b in zip(edit.updates, alone.updates, strict=True))
    keys = context_keys(tiny, 0, targets_of(tiny, first)).mean(1).double()
    torch.testing.assert_close(memory.tensors["keys.0"], (keys.T @ keys).float())
    with edit.applied(tiny):
        knowing = edit_of(tiny, name, second, config=config, memory=memory)
        forgetful = edit_of(tiny, name, second, config=config)
    moved = [(keys.float() @ each.updates[0].left @ each.updates[0].right).norm() for each in (knowing, forgetful)]
    assert moved[0] < 0.5 * moved[1]
    assert torch.linalg.matrix_rank(memory.tensors["keys.0"], rtol=1e-6) == len(REQUESTS)


def test_a_memory_is_saved_and_loaded_and_kept_by_nobody_else(tiny, tmp_path):
    config = replace(METHODS["memit"][1], earlier_keys=True, steps=2)
    memory = rl.edit.EditMemory()
    edit_of(tiny, "memit", REQUESTS[:1], config=config, memory=memory)
    memory.save(tmp_path / "memory.safetensors")
    loaded = rl.edit.EditMemory.load(tmp_path / "memory.safetensors")
    assert (loaded.method, loaded.config) == (memory.method, memory.config)
    assert all(torch.equal(value, loaded.tensors[name]) for name, value in memory.tensors.items())
    other = replace(METHODS["alphaedit"][1], earlier_keys=True, steps=2)
    with pytest.raises(ValueError, match="begun by memit, and now alphaedit"):
        edit_of(tiny, "alphaedit", REQUESTS[1:2], config=other, memory=loaded)
    with pytest.raises(ValueError, match="begun by memit, .*other: covariance_weight"):
        edit_of(tiny, "memit", REQUESTS[1:2], config=replace(config, covariance_weight=9.0), memory=loaded)
    assert all(torch.equal(value, loaded.tensors[name]) for name, value in memory.tensors.items())
    with pytest.raises(ValueError, match="frobenius_weight"):
        replace(config, frobenius_weight=-1.0)
