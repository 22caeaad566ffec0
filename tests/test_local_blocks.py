"""Models in blocks: how they are made, what they compute, and what local losses refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import samples
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fwdgrad
from fwdgrad import LocalBlocks, LocalLosses, local_blocks
from fwdgrad.models import GroupLinear, PartedLinear, conv, local_mixer, logistic, mlp
from fwdgrad.models.mixer import Patches

X, Y = samples.random(6, 1, 8, 8), torch.tensor([0, 2, 1, 2, 0, 1])


def closure(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(X), Y, reduction="none")


def number_of_weights(model: nn.Module) -> int:
    return sum(param.numel() for param in model.parameters())


def test_the_local_mixers_have_the_sizes_of_the_paper_but_for_its_second_classifier() -> None:
    head = 10 * 256 + 10
    assert number_of_weights(local_mixer((1, 28, 28), 10, channels=256, groups=1)) + head == 271_892  # S/1/1: 272K
    head = 10 * 512 + 10
    assert number_of_weights(local_mixer((1, 28, 28), 10)) + head == 429_076  # M/1/16: 429K
    assert number_of_weights(local_mixer((3, 32, 32), 10, blocks=4, patches=8)) + head == 918_770  # M/8/16: 919K


def test_patches_are_squares_of_the_image() -> None:
    images = torch.arange(2 * 3 * 8 * 4).view(2, 3, 8, 4)
    patches = Patches(2)(images)
    assert patches.shape == (2, 4, 3 * 4 * 2)
    assert torch.equal(patches[1, 3], images[1, :, 4:, 2:].flatten())
    assert torch.equal(patches[0, 1], images[0, :, :4, 2:].flatten())


def test_linear_layers_in_groups_and_parts() -> None:
    x = samples.random(5, 4, 6)
    layer = samples.seeded(lambda: PartedLinear(6, 2, groups=3))
    parts = layer(x)
    assert parts.shape == (5, 4, 3, 2)
    torch.testing.assert_close(parts.sum(2), F.linear(x, layer.weight, layer.bias))
    alone = torch.cat([torch.zeros(5, 4, 2).double(), x[..., 2:4], torch.zeros(5, 4, 2).double()], -1)
    torch.testing.assert_close(parts[:, :, 1], F.linear(alone, layer.weight, layer.bias / 3))
    groups = samples.seeded(lambda: GroupLinear(3, 2, 4))
    torch.testing.assert_close(
        groups(x.unflatten(-1, (3, 2)))[:, :, 2], F.linear(x[..., 4:], groups.weight[2], groups.bias[2])
    )


@pytest.mark.parametrize("make", [mlp, conv, logistic])
def test_a_network_cut_into_blocks_computes_what_it_did_and_shares_its_layers(make: Callable[..., nn.Module]) -> None:
    network = samples.seeded(lambda: make((1, 8, 8), 3))
    blocks = samples.seeded(lambda: local_blocks(network.float(), X.float()))
    torch.testing.assert_close(blocks(X), network.double()(X))
    own = {id(param) for param in network.parameters()}
    assert own <= {id(param) for param in blocks.parameters()}
    assert local_blocks(blocks, X) is blocks
    assert len(blocks.blocks) == max(len([p for p in network.parameters() if p.dim() > 1]) - 1, 1)


def test_other_methods_train_the_same_network_through_the_last_head() -> None:
    model = samples.seeded(lambda: local_blocks(mlp((1, 8, 8), 3, [4, 4]), X.float()))
    fwdgrad.Backprop()(model, closure)
    assert [name for name, param in model.named_parameters() if param.grad is None] == [
        "heads.0.1.weight",
        "heads.0.1.bias",
    ]


def linear_blocks(**options: Any) -> LocalBlocks:
    return samples.seeded(
        lambda: LocalBlocks(
            [nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), nn.Tanh()], [nn.Linear(4, 3), nn.Linear(4, 3)], **options
        )
    )


class Detour(LocalBlocks):
    """Does not call its blocks."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3]


def twice(model: nn.Module) -> Tensor:
    return closure(model) + closure(model)


def penalty(model: nn.Module) -> Tensor:
    return closure(model) + 0.1 * sum(param.square().sum() for param in model.parameters())


REFUSED: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], Tensor], type[Exception], str]] = {
    "no blocks": (lambda: mlp((1, 8, 8), 3), closure, TypeError, r"got Sequential; make it a fwdgrad.LocalBlocks"),
    "no module": (lambda: 3, closure, TypeError, "need a model in blocks with a head each, got int"),  # type: ignore
    "a mean": (linear_blocks, lambda m: closure(m).mean(), ValueError, "need per-example losses: return a vector"),
    "a matrix": (linear_blocks, lambda m: m(X), ValueError, r"the closure must return a scalar loss or a vector"),
    "two calls": (linear_blocks, twice, ValueError, "3 calls of blocks and the last head, got 6"),
    "no call": (linear_blocks, lambda m: X[:, 0, 0, 0], ValueError, "a closure that calls the model once .* got 0"),
    "another order": (lambda: Detour([nn.Tanh()], [nn.Linear(3, 3)]).double(), closure, ValueError, "got 0"),
    "a penalty": (linear_blocks, penalty, ValueError, "must depend on the model through its output only"),
    "batch norm": (
        lambda: LocalBlocks([nn.BatchNorm2d(1)], [nn.Sequential(nn.Flatten(), nn.Linear(64, 3))]).double(),
        closure,
        ValueError,
        "blocks.0: BatchNorm in training mode .* local losses needs them independent",
    ),
}


@pytest.mark.parametrize(("make", "loss", "error", "text"), REFUSED.values(), ids=REFUSED)
def test_what_local_losses_refuse(
    make: Callable[[], nn.Module], loss: Callable[[Any], Tensor], error: type[Exception], text: str
) -> None:
    model = make()
    with pytest.raises(error, match=text):
        LocalLosses()(model, loss)
    assert not isinstance(model, nn.Module) or all(param.grad is None for param in model.parameters())


def test_what_cannot_be_built() -> None:
    with pytest.raises(ValueError, match=r"method must be one of \['activity', 'weights'\], got 'weigths'. Did you"):
        LocalLosses("weigths")
    with pytest.raises(ValueError, match="num_directions must be a positive integer, got 0"):
        LocalLosses(num_directions=0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'directions'"):
        LocalLosses(directions=3)
    with pytest.raises(ValueError, match="each block needs a head, got 2 blocks and 1 heads"):
        LocalBlocks([nn.Tanh(), nn.Tanh()], [nn.Linear(2, 2)])
    with pytest.raises(ValueError, match="each block needs a head, got 0 blocks and 0 heads"):
        LocalBlocks([], [])
    with pytest.raises(ValueError, match="7 features cannot be divided into 2 groups"):
        PartedLinear(7, 2, 2)
    with pytest.raises(TypeError, match=r"got Sequential: only an nn.Sequential that ends in an nn.Linear is cut"):
        local_blocks(nn.Sequential(nn.Linear(2, 2), nn.Softmax(1)), X)
    with pytest.raises(TypeError, match=r"network in blocks, got GRU: .* make the model a fwdgrad.LocalBlocks"):
        local_blocks(nn.GRU(2, 2), X)


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ({"patches": 3}, r"that 3 patches divide, got \(1, 8, 8\)"),
        ({"groups": 7}, "groups must divide the 512 channels into at least 2 each, got 7"),
        ({"groups": 512}, "groups must divide the 512 channels into at least 2 each, got 512"),
        ({"blocks": 0}, "blocks must be a positive integer, got 0"),
    ],
)
def test_sizes_that_make_no_mixer(sizes: dict[str, int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        local_mixer((1, 8, 8), 3, **sizes)


def test_fit_cuts_a_sequential_and_trains_its_own_layers() -> None:
    data = X.float(), Y
    network = mlp((1, 8, 8), 3, [16])
    before = F.cross_entropy(network(data[0]), Y).item()
    fwdgrad.fit(network, data, method="local", epochs=30, lr=0.01, progress=False)
    assert F.cross_entropy(network(data[0]), Y).item() < 0.5 * before
    with pytest.raises(ValueError, match="give an optimizer only with a model in blocks"):
        fwdgrad.fit(network, data, method="local", optimizer=torch.optim.SGD(network.parameters(), 0.1))
    with pytest.raises(TypeError, match="network in blocks, got GRU"):
        fwdgrad.fit(nn.GRU(2, 2), data, method="local")
