"""Tiny models that each have one ailment, and healthy ones that look as if they had it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Closure = Callable[[Any], Tensor]
Built = tuple[nn.Module, Closure]

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])


class Applies(nn.Module):
    """A layer, a function of what it returns, and a layer."""

    def __init__(self, function: Callable[..., Tensor], *rest: nn.Module) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 5), nn.Linear(5, 3)
        self.function = function
        self.rest = nn.ModuleList(rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.first(x)))


def classify(model: nn.Module) -> Built:
    return model, lambda m: F.cross_entropy(m(X), Y, reduction="none")


def applies(function: Callable[..., Tensor]) -> Built:
    return classify(Applies(function))


class Scaled(nn.Module):
    """Multiplies by a parameter, in the way that is given."""

    def __init__(self, read: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.scale, self.read = nn.Parameter(torch.full((1,), 1.5)), read

    def forward(self, x: Tensor) -> Tensor:
        return x * self.read(self.scale)


def scaled(read: Callable[[Tensor], Any]) -> Built:
    return classify(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), Scaled(read), nn.Linear(5, 3)))


def under_no_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x * 2


class NoForwardMode(torch.autograd.Function):
    """A function of a user's own with a backward and no jvp."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class Counts(nn.Module):
    """Counts its calls; with ``uses`` the count is part of what it returns."""

    def __init__(self, uses: bool) -> None:
        super().__init__()
        self.calls, self.uses = 0, uses

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * (1 + self.calls) if self.uses else x


class Caches(nn.Module):
    """Makes its mask at the first call."""

    mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.mask is None:
            self.mask = torch.ones(x.shape[1])
        return x * self.mask


class Idle(nn.Module):
    """Holds a parameter that its forward does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.spare = nn.Linear(4, 3), nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def inverse(x: Tensor) -> Tensor:
    """Go through an operation whose forward mode is wrong in PyTorch."""
    factor = torch.linalg.cholesky(torch.eye(5) + x.T @ x)
    return x @ torch.cholesky_inverse(factor)


def with_integers() -> Built:
    model = nn.Sequential(nn.Linear(4, 3))
    model.register_parameter("steps", nn.Parameter(torch.zeros(1, dtype=torch.int64), requires_grad=False))
    return classify(model)


def with_a_frozen_layer() -> Built:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    model[0].requires_grad_(False)
    return classify(model)


def with_a_shared_weight() -> Built:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 3))
    model[2].weight = model[0].weight
    return classify(model)


def ignoring_its_argument() -> Built:
    model = nn.Linear(4, 3)
    other = nn.Linear(4, 3)
    return model, lambda _: F.cross_entropy(other(X), Y)


def embedding_bag() -> Built:
    """Go through an operation that torch.func.jvp refuses and we have a rule for."""
    model = nn.Sequential(nn.EmbeddingBag(7, 4), nn.Linear(4, 3))
    tokens = torch.randint(7, (6, 3), generator=torch.Generator().manual_seed(1))
    return model, lambda m: F.cross_entropy(m(tokens), Y, reduction="none")


# name -> (how to build it, level, kind, subject, a place, a part of the text or the remedy)
AILMENTS: dict[str, tuple[Callable[[], Built], str, str, str, str, str]] = {
    "cut by item": (lambda: scaled(lambda s: s.item()), "problem", "derivative cut", "Tensor.item", "2", "2.scale"),
    "cut by numpy": (
        lambda: scaled(lambda s: torch.from_numpy(s.detach().numpy().copy())),
        "problem",
        "derivative cut",
        "Tensor.detach, Tensor.numpy",
        "2",
        "2.scale",
    ),
    "cut by a new tensor": (
        lambda: scaled(lambda s: torch.tensor([float(s)])),
        "problem",
        "derivative cut",
        "Tensor.__float__",
        "2",
        "keep the computation in PyTorch",
    ),
    "cut by data": (lambda: scaled(lambda s: s.data), "problem", "derivative cut", "Tensor.data", "2", "2.scale"),
    "cut by detach": (lambda: scaled(lambda s: s.detach()), "warning", "derivative cut", "Tensor.detach", "2", "meant"),
    "cut by no_grad": (
        lambda: applies(lambda x: x + under_no_grad(x)),
        "warning",
        "derivative cut",
        "torch.no_grad",
        "the model itself",
        "central differences",
    ),
    "a custom function": (
        lambda: applies(NoForwardMode.apply),
        "problem",
        "unsupported by engine=dual",
        "",
        "the model itself",
        "NoForwardMode",
    ),
    "wrong in PyTorch": (
        lambda: applies(inverse),
        "problem",
        "wrong in torch.func.jvp",
        "torch.cholesky_inverse",
        "the model itself",
        "known to be wrong in PyTorch everywhere",
    ),
    "refused by PyTorch": (
        embedding_bag,
        "warning",
        "unsupported by torch.func.jvp",
        "torch.nn.functional.embedding_bag",
        "0",
        "use engine=dual",
    ),
    "falls back": (
        lambda: applies(lambda x: torch.ops.aten._softmax_backward_data(x, x, 1, torch.float64)),
        "note",
        "falls back to PyTorch's forward mode",
        "aten::_softmax_backward_data",
        "the model itself",
        "no rule in fwdgrad.dual",
    ),
    "random numbers of Python": (
        lambda: applies(lambda x: x * random.random()),
        "problem",
        "not deterministic",
        "",
        "the model itself",
        "global generator of Python or NumPy",
    ),
    "random numbers of NumPy": (
        lambda: applies(lambda x: x + float(np.random.rand())),
        "problem",
        "not deterministic",
        "",
        "the model itself",
        "draw with torch's",
    ),
    "state that matters": (
        lambda: classify(nn.Sequential(nn.Linear(4, 3), Counts(uses=True))),
        "problem",
        "not deterministic",
        "",
        "1",
        "changes 1.calls",
    ),
    "state that does not matter": (
        lambda: classify(nn.Sequential(nn.Linear(4, 3), Counts(uses=False))),
        "warning",
        "hidden state",
        "",
        "1.calls",
        "register",
    ),
    "a cache": (
        lambda: classify(nn.Sequential(nn.Linear(4, 3), Caches())),
        "note",
        "kept from the first pass",
        "",
        "1.mask",
        "the next leaves",
    ),
    "no influence": (lambda: classify(Idle()), "warning", "parameters without influence", "", "spare", "noise"),
    "nothing to train": (ignoring_its_argument, "problem", "nothing to train", "", "", "no trainable parameter"),
    "integers": (with_integers, "warning", "integer parameters", "", "steps", "buffers"),
    "frozen": (with_a_frozen_layer, "note", "frozen parameters", "", "0.weight", "2 of 4 parameters"),
    "shared": (with_a_shared_weight, "note", "shared parameter", "", "2.weight", "one gradient"),
    "batch norm": (
        lambda: classify(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))),
        "note",
        "BatchNorm in training",
        "",
        "1",
        "GroupNorm",
    ),
    "a loss that is not finite": (
        lambda: applies(lambda x: (x - x) / (x - x)),
        "problem",
        "loss not finite",
        "",
        "",
        "the loss is nan",
    ),
    "padding": (
        lambda: (
            nn.Sequential(nn.Embedding(7, 4, padding_idx=0), nn.Flatten(), nn.Linear(8, 3)),
            lambda m: F.cross_entropy(m(torch.tensor([[0, 1], [2, 3], [4, 0]])), Y[:3]),
        ),
        "note",
        "derivative by convention",
        "torch.nn.functional.embedding",
        "0",
        "definition",
    ),
}


class NewGELU(nn.Module):
    """Casts to float32 and back, as many models do."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        return (0.5 * y * (1 + torch.tanh(0.8 * (y + 0.04 * y**3)))).to(x.dtype)


class AutocastRegion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.layer(x).float()


def ties() -> Built:
    """Go through a maximum over equal values and a ReLU exactly at zero."""
    model = nn.Sequential(nn.Unflatten(1, (1, 4)), nn.ConstantPad1d(2, 0.0), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten())
    return classify(nn.Sequential(nn.Linear(4, 4), model, nn.Linear(4, 3)))


def zero_initialised() -> Built:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[0].bias)
    return classify(model)


HEALTHY: dict[str, Callable[[], Built]] = {
    "mlp": lambda: classify(nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3))),
    "dropout": lambda: classify(nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 3))),
    "scalar loss": lambda: (nn.Linear(4, 3), lambda m: F.cross_entropy(m(X), Y)),
    "kinks": lambda: applies(lambda x: F.relu(x) + x.abs() + x.clamp(-0.1, 0.1) + F.relu(x.round())),
    "ties": ties,
    "layers that begin at zero": zero_initialised,
    "item for a message only": lambda: applies(lambda x: (f"{x.mean().item():.2f}", x)[1]),
    "detach of what does not matter": lambda: applies(lambda x: x - 0 * x.detach()),
    "casts": lambda: classify(nn.Sequential(nn.Linear(4, 5), NewGELU(), nn.Linear(5, 3))),
    "autocast": lambda: classify(nn.Sequential(nn.Linear(4, 5), AutocastRegion(), nn.Linear(5, 3))),
    "half": lambda: classify(nn.Sequential(nn.Linear(4, 3)).bfloat16()),
    "in place": lambda: classify(nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3))),
    "masked": lambda: applies(lambda x: x.masked_fill(x > 0.5, -torch.inf).softmax(1)),
    "a sum of squares": lambda: (nn.Linear(4, 3), lambda m: m(X).square().sum()),
    "flat at first": lambda: (
        nn.Linear(4, 3, bias=False),
        lambda m: m(torch.zeros(2, 4)).sum() + m.weight.pow(2).sum(),
    ),
}


def detached_logistic(input_shape: list[int], num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(int(np.prod(list(input_shape))), num_classes), Scaled(lambda s: s.item())
    )
