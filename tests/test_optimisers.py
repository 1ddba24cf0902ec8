"""Adam and clipping on flat vectors against torch's."""

import pytest
import torch
from torch import Tensor, nn

from trimtab.optimisers import FlatAdam, clip_flat_gradients


def vectors(seed: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(n, generator=generator, dtype=torch.float64)) for n in (7, 3, 5)]


def set_gradients(parameters: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters[:2]:  # the last one has none
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("eps", [1e-8, 1e-1])
def test_steps_are_those_of_torch(weight_decay: float, eps: float) -> None:
    """With two learning rates, which fall; what has no gradient stays."""
    mine, theirs = vectors(0), vectors(0)
    memory = [parameter.data_ptr() for parameter in mine]
    options = {"weight_decay": weight_decay, "eps": eps}

    def groups(parameters: list[nn.Parameter]) -> list[dict[str, object]]:
        return [{"params": parameters[:1], "lr": 0.1}, {"params": parameters[1:], "lr": 0.01}]

    flat = FlatAdam(groups(mine), **options)
    torchs = torch.optim.AdamW(groups(theirs), **options)  # type: ignore[arg-type]
    for step in range(20):
        for optimiser, parameters in ((flat, mine), (torchs, theirs)):
            for group in optimiser.param_groups:
                group["lr"] *= 0.9
            set_gradients(parameters, seed=step)
            optimiser.step()
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert torch.equal(mine[2], vectors(0)[2])
    assert float((mine[0] - vectors(0)[0]).detach().abs().min()) > 1e-3
    assert [parameter.data_ptr() for parameter in mine] == memory  # others read it too


def test_the_first_step_by_hand() -> None:
    """Moments over their corrections are g and g^2: the step is the learning rate against the sign of g."""
    parameter = nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.float64))
    parameter.grad = torch.tensor([0.5, -2.0], dtype=torch.float64)
    FlatAdam([{"params": [parameter], "lr": 0.1}], weight_decay=0.0, eps=0.0).step()
    assert parameter.tolist() == pytest.approx([0.9, 1.1])


def norm_of(parameters: list[nn.Parameter]) -> float:
    return float(torch.cat([p.grad for p in parameters if p.grad is not None]).norm())


@pytest.mark.parametrize("most", [0.5, 3.0, 1e3, float("inf")])
def test_gradients_are_scaled_down_together_as_by_torch(most: float) -> None:
    mine, theirs = vectors(1), vectors(1)
    for parameters in (mine, theirs):
        set_gradients(parameters, seed=2)
    before = norm_of(mine)
    found, expected = clip_flat_gradients(mine, most), torch.nn.utils.clip_grad_norm_(theirs, most)
    assert found == pytest.approx(before) == float(expected)
    for one, other in zip(mine[:2], theirs[:2], strict=True):
        assert isinstance(one.grad, Tensor) and isinstance(other.grad, Tensor)
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-12)
    assert norm_of(mine) == pytest.approx(min(before, most), rel=1e-5)
