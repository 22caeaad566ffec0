"""Losses, softmax, pooling, batch normalisation and matrix products, each in every option."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from checks import check, directions
from torch import Tensor, nn

GENERATOR = torch.Generator().manual_seed(0)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=GENERATOR)


def rand(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=GENERATOR) * 0.8 + 0.1


X, Y, Z, P, Q = randn(5, 3), randn(5, 3), randn(5, 3), rand(5, 3), rand(5, 3)
SIGNS = torch.tensor([1.0, -1, 1, 1, -1], dtype=torch.float64)
CLASSES = torch.tensor([0, 2, 1, 1, 0])
SOME_IGNORED = torch.tensor([0, -100, 1, 1, 0])
LABELS = torch.tensor([[0, 2, -1], [1, -1, 0], [2, -1, -1], [0, 1, 2], [-1, 0, 1]])
IMAGES, PIXELS = randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4), generator=GENERATOR)

LOSSES = {
    "mse": (F.mse_loss, X, Y),
    "weighted mse": (lambda x, y, **r: F.mse_loss(x, y, weight=P, **r), X, Y),
    "l1": (F.l1_loss, X, Y),
    "huber": (lambda x, y, **r: F.huber_loss(x, y, delta=0.3, **r), X, Y),
    "smooth_l1": (lambda x, y, **r: F.smooth_l1_loss(x, y, beta=0.3, **r), X, Y),
    "smooth_l1(0)": (lambda x, **r: F.smooth_l1_loss(x, Y, beta=0.0, **r), X),
    "bce": (F.binary_cross_entropy, P, Q),
    "weighted bce": (lambda x, **r: F.binary_cross_entropy(x, Q, weight=P, **r), P),
    "bce_with_logits": (F.binary_cross_entropy_with_logits, X, Q),
    "weighted bce_with_logits": (lambda x, **r: F.binary_cross_entropy_with_logits(x, Q, P, pos_weight=P[0], **r), X),
    "kl_div": (F.kl_div, X, P),
    "kl_div(log)": (lambda x, y, **r: F.kl_div(x, y, log_target=True, **r), X, Y),
    "poisson": (lambda x, **r: F.poisson_nll_loss(x, 4 * P, full=True, **r), X),
    "poisson(mean)": (lambda x, y, **r: F.poisson_nll_loss(x, y, log_input=False, **r), P, Q),
    "gaussian": (F.gaussian_nll_loss, X, Y, P),
    "soft margin": (lambda x, **r: F.soft_margin_loss(x, SIGNS[:, None].expand(5, 3), **r), X),
    "hinge": (lambda x, **r: F.hinge_embedding_loss(x, SIGNS[:, None].expand(5, 3), **r), X),
    "ranking": (lambda x, y, **r: F.margin_ranking_loss(x, y, SIGNS[:, None], 0.1, **r), X, Y),
    "cosine": (lambda x, y, **r: F.cosine_embedding_loss(x, y, SIGNS, 0.1, **r), X, Y),
    "triplet": (F.triplet_margin_loss, X, Y, Z),
    "triplet(swap)": (lambda x, y, z, **r: F.triplet_margin_loss(x, y, z, swap=True, **r), X, Y, Z),
    "triplet with distance": (F.triplet_margin_with_distance_loss, X, Y, Z),
    "multi margin": (lambda x, **r: F.multi_margin_loss(x, CLASSES, **r), X),
    "multi margin(2)": (lambda x, **r: F.multi_margin_loss(x, CLASSES, p=2, weight=P[0], margin=0.5, **r), X),
    "multi margin of one": (lambda x, **r: F.multi_margin_loss(x, CLASSES[0], **r), X[0]),
    "multilabel margin": (lambda x, **r: F.multilabel_margin_loss(x, LABELS, **r), X),
    "multilabel margin of one": (lambda x, **r: F.multilabel_margin_loss(x, LABELS[0], **r), X[0]),
    "multilabel soft margin": (lambda x, **r: F.multilabel_soft_margin_loss(x, (LABELS > 0).double(), P[0], **r), X),
    "probabilities": (lambda x, y, **r: F.cross_entropy(x, y, P[0], label_smoothing=0.1, **r), X, P),
    "pixels": (lambda x, **r: F.cross_entropy(x, PIXELS, **r), IMAGES),
    "smoothed pixels": (lambda x, **r: F.cross_entropy(x, PIXELS, label_smoothing=0.1, **r), IMAGES),
    "pixel probabilities": (lambda x, **r: F.cross_entropy(x, IMAGES.softmax(1), **r), IMAGES),
    "nll of pixels": (lambda x, **r: F.nll_loss(x, PIXELS, **r), IMAGES),
    "one example": (lambda x, **r: F.cross_entropy(x, CLASSES[0], **r), X[0]),
    "an ignored class": (lambda x, **r: F.cross_entropy(x, CLASSES, ignore_index=1, **r), X),
}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", LOSSES)
def test_loss(name: str, reduction: str) -> None:
    function, *inputs = LOSSES[name]
    mean = name.startswith("kl_div") and reduction == "mean"  # PyTorch advises against it
    check(lambda *x: function(*x, reduction="batchmean" if mean else reduction), *inputs, num_directions=2)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("target", [CLASSES, SOME_IGNORED], ids=["all", "some ignored"])
@pytest.mark.parametrize("weight", [None, P[0]], ids=["equal", "weighted"])
def test_cross_entropy(weight, target, smoothing: float, reduction: str) -> None:
    options = {"reduction": reduction, "label_smoothing": smoothing}
    check(lambda x: F.cross_entropy(x, target, weight, **options), X)


def test_the_weights_of_a_loss_carry_tangents_too() -> None:
    check(lambda x, w: F.cross_entropy(x, SOME_IGNORED, w), X, P[0], reverse=False)
    check(lambda x, y, w, v: F.binary_cross_entropy_with_logits(x, y, w, pos_weight=v), X, Q, P, Q[0], reverse=False)


@pytest.mark.parametrize("function", [F.softmax, F.log_softmax, F.softmin, torch.softmax, torch.logsumexp])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_softmax(function, dim: int) -> None:
    check(lambda x: function(x, dim), IMAGES)


POOLS = ({}, {"stride": 1}, {"padding": 1}, {"kernel_size": 4, "ceil_mode": True})


@pytest.mark.parametrize("layout", ["batch", "channels_last", "unbatched"])
@pytest.mark.parametrize("options", POOLS, ids=str)
def test_pooling(options, layout: str) -> None:
    options = {"kernel_size": 2, **options}
    x = randn(3, 4, 6, 6)
    x = {"batch": x, "unbatched": x[0], "channels_last": x.to(memory_format=torch.channels_last)}[layout]
    check(lambda x: F.max_pool2d(x, **options), x)
    check(lambda x: F.max_pool2d(F.relu(x), return_indices=True, **options), x)
    check(lambda x: F.avg_pool2d(x, **options), x)


def test_pooling_of_sequences_and_volumes() -> None:
    x = randn(2, 3, 6, 4, 4)
    check(lambda x: (F.max_pool3d(x, 2), F.max_pool3d(x, 2, return_indices=True), F.avg_pool3d(x, 2)), x)
    check(lambda x: (F.max_pool1d(x, 2), F.max_pool1d(x, 2, return_indices=True), F.avg_pool1d(x, 2)), x[0, 0])


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5), (3, 4, 2, 3)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm(shape, training: bool) -> None:
    def normalise(x, *parameters):
        mean, variance = torch.zeros(4, dtype=torch.float64), torch.full((4,), 1.3, dtype=torch.float64)
        return F.batch_norm(x, mean, variance, *parameters, training=training)

    x, weight, bias = randn(*shape), randn(4), randn(4)
    check(normalise, x, weight, bias)
    check(normalise, x)
    check(lambda x: normalise(x, weight, bias), x)


def test_running_statistics_are_those_of_one_plain_forward_pass() -> None:
    first, second = nn.BatchNorm2d(3).double(), nn.BatchNorm2d(3).double()
    directions(first, (IMAGES,), (randn(4, *IMAGES.shape),))
    second(IMAGES)
    torch.testing.assert_close(first.state_dict(), second.state_dict())


SHAPES = [
    ((3,), (3,)), ((4, 3), (3,)), ((3,), (3, 4)), ((2, 3), (3, 4)), ((5, 2, 3), (3, 4)), ((2, 3), (5, 3, 4)),
    ((6, 1, 2, 3), (5, 3, 4)), ((6, 5, 2, 3), (3,)), ((3,), (6, 5, 3, 4)),
]  # fmt: skip


@pytest.mark.parametrize(("left", "right"), SHAPES, ids=str)
def test_matmul_of_every_shape(left, right) -> None:
    check(torch.matmul, randn(*left), randn(*right))
    check(lambda x, y: (x @ y).real, randn(*left) * (1 + 1j), randn(*right) * (1 - 2j))


EQUATIONS = {
    "ij,jk->ik": ((2, 3), (3, 4)), "ij,jk": ((2, 3), (3, 4)), "...ij,kj->i...k": ((2, 5, 3), (4, 3)),
    "ii->i": ((3, 3),), "ii": ((3, 3),), "ij->ji": ((2, 3),), "i,j,k->ijk": ((2,), (3,), (4,)),
    "bhqd,bhkd->bhqk": ((2, 2, 3, 4), (2, 2, 5, 4)),
}  # fmt: skip


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum(equation: str) -> None:
    check(lambda *x: torch.einsum(equation, *x), *[randn(*shape) for shape in EQUATIONS[equation]])


def test_other_products() -> None:
    a, b, c = randn(5, 2, 3), randn(5, 3, 4), randn(2, 4)
    check(torch.bmm, a, b)
    check(torch.mm, a[0], b[0])
    check(torch.mv, a[0], b[0, :, 0])
    check(lambda *x: torch.addmm(*x, alpha=2, beta=3), c, a[0], b[0])
    check(torch.addmm, c[0], a[0], b[0])
    check(torch.baddbmm, c, a, b)
    check(torch.addbmm, c, a, b)
    check(torch.addmv, c[:, 0], a[0], b[0, :, 0])
    check(lambda c, a, b: (c * 1).addmm_(a, b), c, a[0], b[0])
    check(torch.addr, c, c[:, 0], c[0])
    check(torch.outer, c[0], c[1])
    check(torch.dot, c[0], c[1])
    check(lambda x, y: (torch.vdot(x, y), torch.linalg.vecdot(x, y)), c[0] * (1 + 1j), c[1] * (2 - 1j))
    check(torch.inner, a, randn(4, 3))
    check(lambda x, y: torch.tensordot(x, y, dims=([1, 0], [0, 2])), randn(3, 4, 5), randn(4, 2, 3))
    check(lambda x, y: torch.tensordot(x, y, 2), randn(5, 3, 4), randn(3, 4, 2))
    check(F.bilinear, randn(5, 3), randn(5, 4), randn(2, 3, 4), randn(2))
    check(torch.linalg.cross, randn(5, 3), randn(5, 3))
    check(torch.kron, randn(2, 3), randn(3, 2))
    check(F.linear, randn(3), randn(4, 3), randn(4))
