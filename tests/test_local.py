"""Local losses: exact per block, unbiased with the variance of a piece, and nothing crosses a block."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import samples
import torch
import torch.nn.functional as F
from guard import assert_no_autograd
from samples import assert_same, flatten, gradients
from torch import Tensor, nn

from fwdgrad import ActivityPerturbation, Backprop, LocalBlocks, LocalLosses, local_blocks
from fwdgrad.estimators import local_gradients
from fwdgrad.models import GroupLinear, PartedLinear, conv, local_mixer, mlp

X, Y = samples.random(6, 1, 8, 8), torch.tensor([0, 2, 1, 2, 0, 1])


def closure(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(X), Y, reduction="none")


def own() -> LocalBlocks:
    """Return blocks as a user may write them, without parts, one of them with dropout and one without parameters."""
    first = nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.Tanh(), nn.Dropout(0.3))
    heads = [nn.Linear(7, 3), nn.Sequential(nn.Dropout(0.2), nn.Linear(7, 3)), nn.Linear(5, 3)]
    return LocalBlocks([first, nn.Tanh(), nn.Linear(7, 5)], heads)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "own": own,
    "mixer": lambda: local_mixer((1, 8, 8), 3, blocks=3, patches=4, channels=8, groups=2),
    "M/1/4": lambda: local_mixer((1, 8, 8), 3, channels=16, groups=4),
    "mlp": lambda: local_blocks(mlp((1, 8, 8), 3, [16, 12]), X.float()),
    "conv": lambda: local_blocks(conv((1, 8, 8), 3, channels=4, hidden=8), X.float()),
}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def exact_local_gradients(model: LocalBlocks, crossing: bool = False) -> dict[str, Tensor]:
    """Return the gradient of each block's loss by autograd; with ``crossing``, that of the sum of all losses."""
    with torch.random.fork_rng(devices=[]):
        state, x, total = torch.get_rng_state(), X, torch.zeros(())
        for block, head in zip(model.blocks, model.heads, strict=True):
            torch.set_rng_state(state)  # heads do not disturb the masks of the blocks
            x = block(x if crossing else x.detach())
            state = torch.get_rng_state()
            total = total + closure(lambda _, x=x, head=head: model.join(head(x))).mean()
        values = torch.autograd.grad(total, list(samples.trainable(model).values()), materialize_grads=True)
    return dict(zip(samples.trainable(model), values, strict=True))


def assert_exact(model: nn.Module, expected: dict[str, Tensor]) -> None:
    """Assert that, with a direction for each value of the widest piece, the estimate is the gradient."""
    model.zero_grad()
    torch.manual_seed(3)
    with assert_no_autograd():
        LocalLosses(num_directions=2000)(model, closure)
    assert_same(gradients(model), expected, tolerance=1e-10)


@every_model
def test_exact_where_there_are_as_many_directions_as_values_in_a_piece(make: Callable[[], LocalBlocks]) -> None:
    model = samples.seeded(make)
    torch.manual_seed(3)
    assert_exact(model, exact_local_gradients(model))


@every_model
def test_a_gradient_that_crosses_a_block_fails_that_test(make: Callable[[], LocalBlocks]) -> None:
    model = samples.seeded(make)
    torch.manual_seed(3)
    expected = exact_local_gradients(model, crossing=True)
    if len(model.blocks) == 1:
        assert_exact(model, expected)
    else:
        with pytest.raises(AssertionError):
            assert_exact(model, expected)


@pytest.mark.parametrize("layer", [GroupLinear, nn.Linear])
def test_a_gradient_off_by_a_thousandth_fails_that_test(monkeypatch: pytest.MonkeyPatch, layer: type) -> None:
    model = samples.seeded(MODELS["mixer"])
    honest = local_gradients.LOCAL_GRADIENTS[layer]
    off = lambda *arguments: {name: 1.001 * value for name, value in honest(*arguments).items()}  # noqa: E731
    monkeypatch.setitem(local_gradients.LOCAL_GRADIENTS, layer, off)
    with pytest.raises(AssertionError):
        assert_exact(model, exact_local_gradients(model))


@every_model
def test_backprop_within_the_blocks_is_exact(make: Callable[[], LocalBlocks]) -> None:
    model = samples.seeded(make)
    torch.manual_seed(3)
    expected = exact_local_gradients(model)
    LocalLosses(Backprop)(model, closure)
    assert_same(gradients(model), expected)


def estimates_of_delta(monkeypatch: pytest.MonkeyPatch, parts: int, repeats: int) -> tuple[Tensor, Tensor]:
    """Return independent estimates of ``dL_b / dz_b``, (repeats, B, 12), and the exact one, (B, 12).

    The model is one layer of 12 outputs z, a nonlinearity, and a head in ``parts`` parts. Every example is repeated,
    and gets noise of its own each time.
    """
    model = samples.seeded(
        lambda: LocalBlocks(
            [nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh())], [PartedLinear(12, 3, parts)], part_dims=1
        )
    )
    z = model.blocks[0][:2](X).detach().requires_grad_()
    exact = torch.autograd.grad(closure(lambda _: model.join(model.heads[0](torch.tanh(z)))).sum(), z)[0]
    seen: list[Tensor] = []
    honest = local_gradients.LOCAL_GRADIENTS[nn.Linear]

    def note(layer: nn.Linear, x: Tensor, delta: Tensor) -> dict[str, Tensor]:
        seen.append(delta * len(x))
        return honest(layer, x, delta)

    monkeypatch.setitem(local_gradients.LOCAL_GRADIENTS, nn.Linear, note)
    x, y = X.repeat(repeats, 1, 1, 1), Y.repeat(repeats)
    LocalLosses(num_directions=1, seed=1)(model, lambda model: F.cross_entropy(model(x), y, reduction="none"))
    return seen[0].view(repeats, *exact.shape), exact


def assert_moments(estimates: Tensor, exact: Tensor, size: int) -> None:
    """Assert the mean of the estimates, and that their variance is ``(n - 1) |delta_b|^2`` for pieces of n values."""
    count = len(estimates)
    variance = (size - 1) * exact.square().sum()
    assert (estimates.mean(0) - exact).norm() <= 6 * (variance / count).sqrt() + 1e-10
    squares = (estimates - exact).square().sum((1, 2))
    assert (squares.mean() - variance).abs() <= 6 * squares.std() / count**0.5 + 1e-12


@pytest.mark.parametrize("parts", [1, 2, 3, 12])
def test_unbiased_with_the_variance_of_a_piece(monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
    assert_moments(*estimates_of_delta(monkeypatch, parts, 2048), size=12 // parts)


def test_another_size_and_another_scale_fail_that_test(monkeypatch: pytest.MonkeyPatch) -> None:
    estimates, exact = estimates_of_delta(monkeypatch, 2, 2048)
    for wrong in ((estimates, exact, 5), (estimates, exact, 12), (1.1 * estimates, exact, 6)):
        with pytest.raises(AssertionError):
            assert_moments(*wrong)


def test_weight_directions_within_the_blocks_are_unbiased() -> None:
    model = samples.seeded(
        lambda: LocalBlocks([nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)], [nn.Linear(n, 2) for n in (3, 3, 2)])
    )
    x, y, count = samples.random(4, 3), torch.tensor([0, 1, 1, 0]), 65536
    loss = lambda model: F.cross_entropy(model(x), y, reduction="none")  # noqa: E731
    LocalLosses(Backprop)(model, loss)
    expected = flatten(gradients(model))
    model.zero_grad()
    LocalLosses("weights", num_directions=count, chunk_size=4096)(model, loss)
    estimate = flatten(gradients(model))
    # Each block has directions of its own, in fewer than P parameters: a variance below P |g|^2 / N.
    error = 6 * (len(expected) / count) ** 0.5 * expected.norm()
    assert (estimate - expected).norm() <= error
    assert (1.25 * estimate - expected).norm() > error


@pytest.mark.parametrize("method", ["activity", "weights"])
def test_nothing_crosses_a_block(method: str) -> None:
    def of_first_block(model: LocalBlocks) -> dict[str, Tensor]:
        model.zero_grad()
        LocalLosses(method, seed=2)(model, closure)
        values = gradients(model)
        return {name: values[name] for name in values if name.startswith(("blocks.0.", "heads.0."))}

    model = samples.seeded(MODELS["mlp"])
    before = of_first_block(model)
    through = ActivityPerturbation(seed=2)
    through(model, closure)
    crossed = model.blocks[0][1].weight.grad.clone()
    with torch.no_grad():
        for module in (model.blocks[1], model.heads[1]):
            for param in module.parameters():
                param.mul_(-2)
    assert_same(of_first_block(model), before, tolerance=0.0)
    model.zero_grad()
    through(model, closure)
    assert not torch.allclose(model.blocks[0][1].weight.grad, crossed)  # end to end it does


def test_a_frozen_block_is_passed_through() -> None:
    model = samples.seeded(MODELS["mlp"])
    model.blocks[0].requires_grad_(False)
    model.heads[0].requires_grad_(False)
    expected = exact_local_gradients(model)
    assert_exact(model, expected)
    assert not any(name.startswith(("blocks.0.", "heads.0.")) for name in expected)


def test_what_a_user_writes_in_five_lines() -> None:
    blocks = [nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU()), nn.Sequential(nn.Linear(32, 16), nn.ReLU())]
    model = samples.seeded(lambda: LocalBlocks(blocks, heads=[nn.Linear(32, 3), nn.Linear(16, 3)]))
    optimizer, estimator = torch.optim.Adam(model.parameters(), 0.01), LocalLosses(num_directions=8)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        losses.append(estimator(model, closure).item())
        optimizer.step()
    assert losses[-1] < 0.1 * losses[0]


def test_the_state_before_the_first_step_and_after_another_model() -> None:
    model, other = samples.seeded(MODELS["mlp"]), samples.seeded(MODELS["mlp"], seed=1)
    estimator = LocalLosses(num_directions=1, seed=4)
    estimator(model, closure)
    estimator(other, closure)
    state = estimator.state_dict()
    assert [block["step"] for block in state["blocks"]] == [2, 2]
    fresh = LocalLosses(num_directions=1)
    fresh.load_state_dict(state)
    assert fresh.state_dict() == state
    for each in (estimator, fresh):
        model.zero_grad()
        each(model, closure)
        state["gradients"] = [*state.get("gradients", []), gradients(model)]
    assert_same(*state["gradients"], tolerance=0.0)


def test_a_head_may_be_exchanged_between_steps() -> None:
    model = samples.seeded(MODELS["mlp"])
    estimator = LocalLosses(Backprop)
    estimator(model, closure)
    model.heads[0] = samples.seeded(lambda: nn.Sequential(nn.Flatten(), PartedLinear(16, 3, 1)), seed=5)
    model.zero_grad()
    estimator(model, closure)
    assert_same(gradients(model), exact_local_gradients(model))


def test_buffers_of_blocks_and_heads_end_as_after_one_pass() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x

    model = samples.seeded(
        lambda: LocalBlocks(
            [nn.Sequential(nn.Flatten(), nn.Linear(64, 4), Counter()), Counter()],
            [nn.Sequential(Counter(), nn.Linear(4, 3)), nn.Sequential(Counter(), nn.Linear(4, 3))],
        )
    )
    for step in (1, 2):
        LocalLosses(num_directions=2)(model, closure)
        assert [buffer.item() for buffer in model.buffers()] == [step] * 4


@pytest.mark.parametrize("estimator", [LocalLosses(num_directions=64), ActivityPerturbation(num_directions=64)])
def test_autocast_holds_within_the_blocks(estimator: LocalLosses | ActivityPerturbation) -> None:
    model = samples.seeded(MODELS["M/1/4"]).float()  # one block: the local gradient is the gradient
    inputs, types = X.float(), set()

    def loss(model: nn.Module) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(model(inputs), Y, reduction="none")

    handle = model.blocks[0][2].register_forward_hook(lambda layer, args, output: types.add(output.dtype))
    estimator(model, loss)
    handle.remove()
    assert types == {torch.bfloat16}
    estimate = flatten(gradients(model))
    exact = flatten(samples.exact_gradient(model, lambda model: F.cross_entropy(model(inputs), Y)))
    rounded = flatten(samples.exact_gradient(model, loss))
    assert estimate.dtype == torch.float32
    assert 0 < (estimate - exact).norm() < 2 * (rounded - exact).norm() < 0.2 * exact.norm()
