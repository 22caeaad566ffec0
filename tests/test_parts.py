"""Losses in parts: pieces of a layer's output that have influence on one part each are found, and only those."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import samples
import torch
from samples import assert_same, exact_gradient, gradients
from torch import Tensor, nn

from fwdgrad import ActivityPerturbation
from fwdgrad.estimators import sites
from fwdgrad.estimators.parts import find_parts, piece_basis, pieces, separating_masks, sum_parts, weigh

X = samples.random(5, 6, 8)


class Mixes(nn.Module):
    """Applies one layer, then what makes some of its outputs meet; six positions by two halves of eight channels."""

    def __init__(self, tail: Callable[[Tensor], Tensor], zero: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.gate = nn.Parameter(torch.zeros(()) if zero else torch.ones(()), requires_grad=zero)
        self.tail = tail

    def forward(self, x: Tensor) -> Tensor:
        z = self.layer(x)
        return (torch.tanh(z) + self.gate * self.tail(z)).unflatten(-1, (2, 4)).square().sum(-1)


def one_to_the_next(z: Tensor) -> Tensor:
    """Move only the last position into the first, behind a ReLU."""
    return torch.cat([z[:, -1:].relu(), 0 * z[:, 1:]], 1)


TAILS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, int]]] = {
    "nothing": (lambda z: z, (6, 2)),
    "positions": (lambda z: z.mean(1, keepdim=True), (1, 2)),
    "two positions": (one_to_the_next, (1, 2)),
    "channels": (lambda z: torch.softmax(z, -1), (6, 1)),
    "a neighbour across the halves": (lambda z: z.roll(1, -1), (6, 1)),
    "within the halves": (lambda z: torch.softmax(z.unflatten(-1, (2, 4)), -1).flatten(2), (6, 2)),
    "everything": (lambda z: z.mean((1, 2), keepdim=True), (1, 1)),
}


@pytest.mark.parametrize("zero", [False, True], ids=["", "zero at the start"])
@pytest.mark.parametrize(("tail", "expected"), TAILS.values(), ids=TAILS)
def test_pieces_are_found_where_they_do_not_meet_and_only_there(
    tail: Callable[[Tensor], Tensor], expected: tuple[int, int], zero: bool
) -> None:
    model = samples.seeded(lambda: Mixes(tail, zero))
    estimator = ActivityPerturbation(num_directions=48)
    estimator(model, lambda model: model(X))
    assert [site.parts for group in estimator.plan.groups for site in group] == [expected]
    gradient = exact_gradient(model, lambda model: model(X).flatten(1).sum(1))
    estimate = gradients(model)
    for name in ("layer.weight", "layer.bias"):  # at most 48 values in a piece: exact
        torch.testing.assert_close(estimate[name], gradient[name], rtol=1e-10, atol=1e-10)


def test_pieces_that_meet_after_all_would_make_it_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    model = samples.seeded(lambda: Mixes(TAILS["channels"][0]))
    monkeypatch.setattr(sites, "find_parts", lambda *arguments: (6, 2))
    ActivityPerturbation(num_directions=48)(model, lambda model: model(X))
    gradient = exact_gradient(model, lambda model: model(X).flatten(1).sum(1))
    with pytest.raises(AssertionError):
        assert_same(gradients(model), gradient, tolerance=1e-2)


def test_losses_of_parts_add_up() -> None:
    model = samples.seeded(lambda: Mixes(lambda z: z))
    estimator = ActivityPerturbation()
    loss = estimator(model, lambda model: model(X))
    torch.testing.assert_close(loss, model(X).flatten(1).sum(1).mean())
    torch.testing.assert_close(estimator.last.value, model(X).flatten(1).sum(1))
    assert sum_parts(loss) is loss


def test_pieces_of_an_output() -> None:
    output = torch.zeros(2, 4, 6, 5)
    assert pieces(output.shape, (2, 3)) == [(2, 2), (3, 2), (1, 5)]
    assert pieces(torch.Size((2, 4)), (2, 1)) == [(2, 2)]
    basis = piece_basis(output, (2, 3))
    assert basis.shape == (20, 2, 4, 6, 5)
    assert torch.equal(basis.sum(0), torch.ones(2, 4, 6, 5))
    assert (basis[:, 1, 2:, 4:].flatten(1).sum(1) == 1).all()  # one value of each piece


def test_each_piece_of_the_noise_is_weighed_by_its_own_derivative() -> None:
    derivatives, noise = samples.random(3, 2, 2, 3), samples.random(3, 2, 4, 6, 5, seed=1)
    spread = derivatives.repeat_interleave(2, 2).repeat_interleave(2, 3).unsqueeze(-1)
    torch.testing.assert_close(weigh(derivatives, noise, (2, 3)), (spread * noise).sum(0))
    spread = derivatives.sum(3, keepdim=True).repeat_interleave(2, 2).unsqueeze(-1)
    torch.testing.assert_close(weigh(derivatives, noise, (2, 1)), (spread * noise).sum(0))


def test_values_that_are_not_finite_count_as_influence() -> None:
    nan = lambda directions: torch.full((len(directions), 2, 3), float("nan"))  # noqa: E731
    assert find_parts(torch.Size((2, 3)), (3,), nan) == (1,)
    assert find_parts(torch.Size((2, 3)), (3,), lambda directions: 2 * directions) == (3,)
    assert find_parts(torch.Size((2, 4)), (3,), lambda directions: directions[:, :, :3]) == (1,)


@pytest.mark.parametrize("count", [2, 3, 6, 7, 16, 64])
def test_some_direction_tells_any_two_pieces_apart(count: int) -> None:
    masks = separating_masks(count)
    apart = (masks.unsqueeze(2) & ~masks.unsqueeze(1)).any(0)
    assert torch.equal(apart, ~torch.eye(count, dtype=torch.bool))
    assert len(masks) <= 8
