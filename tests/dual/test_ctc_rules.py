"""CTC: the derivative by the log-probabilities, which are free variables here, and behind a log-softmax."""

import pytest
import torch
import torch.nn.functional as F
from checks import check

LENGTHS = (torch.tensor([6, 5, 6]), torch.tensor([3, 2, 0]))
PADDED = torch.tensor([[1, 1, 2], [3, 2, 0], [0, 0, 0]])
CONCATENATED = torch.tensor([1, 1, 2, 3, 2])


def logits(times: int = 6, *rest: int) -> torch.Tensor:
    return torch.randn((times, *rest), dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("targets", [PADDED, CONCATENATED], ids=["padded", "concatenated"])
def test_loss(reduction: str, targets: torch.Tensor) -> None:
    x = logits(6, 3, 4)
    check(lambda x: F.ctc_loss(x.log_softmax(-1), targets, *LENGTHS, reduction=reduction), x)
    check(lambda p: F.ctc_loss(p, targets, *LENGTHS, reduction=reduction), x.log_softmax(-1), reverse=False)


def test_lengths_as_lists_and_another_blank() -> None:
    x = logits(6, 3, 4)
    lengths = [length.tolist() for length in LENGTHS]
    check(lambda x: F.ctc_loss(x.log_softmax(-1), PADDED, *lengths), x)
    check(lambda x: F.ctc_loss(x.log_softmax(-1), (PADDED - 1) % 4, *LENGTHS, blank=3), x)


def test_without_a_batch() -> None:
    check(lambda x: F.ctc_loss(x.log_softmax(-1), PADDED[0], torch.tensor(6), torch.tensor(3)), logits(6, 4))


def test_impossible_targets_have_no_tangent_where_infinity_is_zero() -> None:
    lengths = (torch.tensor([6, 1, 6]), LENGTHS[1])
    x = logits(6, 3, 4)
    check(lambda x: F.ctc_loss(x.log_softmax(-1), PADDED, *lengths, zero_infinity=True), x)
    check(lambda x: F.ctc_loss(x.log_softmax(-1), PADDED, *lengths, reduction="none", zero_infinity=True), x)
