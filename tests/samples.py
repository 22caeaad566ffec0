"""Small models, losses and directions that several tests share; all in float64, all from fixed seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fwdgrad.randomness import KeyedGenerator
from fwdgrad.tangents import PerExample

Closure = Callable[[nn.Module], Tensor]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Make a module with the given initial weights, leaving the global random state alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().double()


# One weight with factors, one too small for them, a vector and a scalar.
PARAMS = {"w": random(3, 4), "small": random(2, 2), "b": random(3), "s": random()}


class TiedEmbedding(nn.Module):
    """One matrix is the embedding and the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(3, 3)
        self.out = nn.Linear(3, 3, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(torch.tanh(self.embed(tokens)))


class TiedLinear(nn.Module):
    """One matrix is the weight of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def linear() -> tuple[nn.Module, Closure]:
    """Return a linear classifier with 9 weights and its per-example losses."""
    x, y = random(4, 3), torch.tensor([0, 2, 1, 2])
    return seeded(lambda: nn.Linear(3, 3, bias=False)), lambda m: F.cross_entropy(m(x), y, reduction="none")


def tied() -> tuple[nn.Module, Closure]:
    x, y = random(4, 3), torch.tensor([0, 2, 1, 2])
    return seeded(TiedLinear), lambda m: F.cross_entropy(m(x), y, reduction="none")


def tied_embedding() -> tuple[nn.Module, Closure]:
    tokens = torch.tensor([0, 1, 2, 1])
    return seeded(TiedEmbedding), lambda m: F.cross_entropy(m(tokens), tokens.roll(1), reduction="none")


def mlp() -> tuple[nn.Module, Closure]:
    x, y = random(5, 3), torch.tensor([0, 1, 0, 1, 1])
    make = lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))  # noqa: E731
    return seeded(make), lambda m: F.cross_entropy(m(x), y, reduction="none")


def dropout() -> tuple[nn.Module, Closure]:
    x, y = random(5, 3), torch.tensor([0, 1, 0, 1, 1])
    make = lambda: nn.Sequential(nn.Linear(3, 6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 2))  # noqa: E731
    return seeded(make), lambda m: F.cross_entropy(m(x), y, reduction="none")


def batch_norm() -> tuple[nn.Module, Closure]:
    x, y = random(5, 3), torch.tensor([0, 1, 0, 1, 1])
    make = lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))  # noqa: E731
    return seeded(make), lambda m: F.cross_entropy(m(x), y, reduction="none")


def images() -> tuple[nn.Module, Closure]:
    """Return a network with convolution and pooling, in which no example sees another."""
    x, y = random(4, 1, 6, 6), torch.tensor([0, 1, 1, 0])

    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 2))

    return seeded(make), lambda m: F.cross_entropy(m(x), y, reduction="none")


def conv() -> tuple[nn.Module, Closure]:
    """Return a network with convolution, BatchNorm, pooling and dropout."""
    x, y = random(4, 1, 6, 6), torch.tensor([0, 1, 1, 0])

    def make() -> nn.Module:
        features = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
        return nn.Sequential(*features, nn.Dropout(0.25), nn.Linear(12, 2))

    return seeded(make), lambda m: F.cross_entropy(m(x), y, reduction="none")


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: param for name, param in model.named_parameters() if param.requires_grad}


def exact_gradient(model: nn.Module, closure: Closure) -> dict[str, Tensor]:
    """Return the gradient of the mean loss by autograd; buffers and the global random state stay as they are."""
    params, buffers = trainable(model), {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.random.fork_rng(devices=[]):
        values = torch.autograd.grad(closure(model).mean(), list(params.values()), materialize_grads=True)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return dict(zip(params, values, strict=True))


def orthogonal_basis(params: Mapping[str, Tensor], generator: KeyedGenerator) -> dict[str, Tensor]:
    """Draw, as P directions, an orthogonal basis times sqrt(P): the mean of (g.v) v over it is g exactly."""
    count = sum(param.numel() for param in params.values())
    matrix = torch.linalg.qr(random(count, count, seed=generator.seed))[0] * count**0.5
    return unflatten(matrix[list(generator.indices)], params)


def flatten(values: Mapping[str, Tensor], lead: int = 0) -> Tensor:
    """Join the entries of all tensors after their ``lead`` leading dimensions."""
    return torch.cat([value.reshape(*value.shape[:lead], -1) for value in values.values()], dim=-1)


def unflatten(flat: Tensor, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split (K, P) into name -> (K, *shape)."""
    pieces = flat.split([param.numel() for param in params.values()], dim=-1)
    return {
        name: piece.unflatten(-1, p.shape) if p.dim() else piece.squeeze(-1)
        for piece, (name, p) in zip(pieces, params.items(), strict=True)
    }


def per_example_vectors(drawn: Mapping[str, PerExample], batch: int) -> Tensor:
    """Return the vectors of all examples, shape (K, B, P)."""
    parts = {}
    for name, tangent in drawn.items():
        left, right = tangent.factors(batch)
        parts[name] = left if right is None else left.unsqueeze(-1) * right.flatten(2).unsqueeze(-2)
    return flatten(parts, lead=2)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of what is in ``.grad``."""
    return {name: param.grad.clone() for name, param in trainable(model).items() if param.grad is not None}


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the parameters."""
    return {name: param.detach().clone() for name, param in model.named_parameters()}


def assert_same(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = 1e-12) -> None:
    assert list(actual) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name], value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
