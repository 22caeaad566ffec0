"""Recurrent layers and cells against reverse mode, with every option of the modules."""

import itertools

import pytest
import torch
from checks import check, directions
from torch import nn
from torch.nn.utils import rnn

from fwdgrad.tangents import LowRank, PerExample

KINDS = [(nn.RNN, {}), (nn.RNN, {"nonlinearity": "relu"}), (nn.LSTM, {}), (nn.LSTM, {"proj_size": 2}), (nn.GRU, {})]
IDS = ["tanh", "relu", "lstm", "projected", "gru"]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape)))


def make(cls, **options):
    torch.manual_seed(0)
    return cls(3, 4, **options).double()


def call(module: nn.Module, *inputs, after=lambda out: out):
    """Return a function of the module's parameters, and of what it is called with."""
    names = [name for name, _ in module.named_parameters()]

    def run(*args):
        parameters, rest = args[: len(names)], args[len(names) :]
        torch.manual_seed(1)
        return after(torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (*inputs, *rest)))

    return run


def values(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach() for p in module.parameters()]


@pytest.mark.parametrize(("cls", "options"), KINDS, ids=IDS)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(("layers", "bidirectional", "bias"), [(1, False, True), (1, True, False), (2, True, True)])
def test_layers(cls, options, batch_first: bool, layers: int, bidirectional: bool, bias: bool) -> None:
    module = make(cls, num_layers=layers, bidirectional=bidirectional, bias=bias, batch_first=batch_first, **options)
    check(call(module), *values(module), randn(2, 5, 3), num_directions=2, differences=layers == 1)


@pytest.mark.parametrize(("cls", "options"), KINDS, ids=IDS)
def test_initial_state_and_unbatched(cls, options) -> None:
    module = make(cls, **options)
    size = options.get("proj_size", 4)
    h, c = randn(1, 2, size), randn(1, 2, 4)
    if cls is nn.LSTM:
        check(lambda x, h, c: module.requires_grad_(False)(x, (h, c)), randn(5, 2, 3), h, c)
    else:
        check(lambda x, h: module.requires_grad_(False)(x, h), randn(5, 2, 3), h)
    check(call(module), *values(module), randn(5, 3), num_directions=2)


@pytest.mark.parametrize(("cls", "options"), KINDS, ids=IDS)
def test_dropout_between_layers(cls, options) -> None:
    module = make(cls, num_layers=3, dropout=0.4, bidirectional=True, **options)
    check(call(module), *values(module), randn(4, 2, 3), num_directions=2, differences=False)
    check(call(module.eval()), *values(module), randn(4, 2, 3), num_directions=2, differences=False)


@pytest.mark.parametrize(("cls", "options"), KINDS, ids=IDS)
@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_packed_sequences(cls, options, enforce_sorted: bool) -> None:
    module = make(cls, num_layers=2, bidirectional=True, dropout=0.3, **options)
    lengths = [5, 3, 1] if enforce_sorted else [3, 5, 1]

    def pad(out):
        packed, state = out
        return rnn.pad_packed_sequence(packed, batch_first=True, padding_value=7.0)[0], state

    run = call(module, after=pad)

    def packed(*args):
        x = rnn.pack_padded_sequence(args[-1], lengths, batch_first=True, enforce_sorted=enforce_sorted)
        return run(*args[:-1], x)

    check(packed, *values(module), randn(3, 5, 3), num_directions=2, differences=False)


@pytest.mark.parametrize("cls", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
@pytest.mark.parametrize("bias", [True, False])
def test_cells(cls, bias: bool) -> None:
    module = make(cls, bias=bias)
    check(call(module), *values(module), randn(2, 3))
    check(call(module), *values(module), randn(3))
    h, c = randn(2, 4), randn(2, 4, seed=1)
    if cls is nn.LSTMCell:
        check(lambda x, h, c: module.requires_grad_(False)(x, (h, c)), randn(2, 3), h, c)
    else:
        check(lambda x, h: module.requires_grad_(False)(x, h), randn(2, 3), h)


def test_relu_cell() -> None:
    module = make(nn.RNNCell, nonlinearity="relu")
    check(call(module), *values(module), randn(2, 3))


@pytest.mark.parametrize(("cls", "options"), KINDS, ids=IDS)
def test_low_rank_directions(cls, options) -> None:
    module = make(cls, num_layers=2, bidirectional=True, **options)
    weights = values(module)
    kinds = [
        LowRank(randn(3, 2, w.shape[0]), randn(3, 2, w.shape[1])) if w.dim() == 2 else randn(3, *w.shape)
        for w in weights
    ]
    plain = [t.materialize() if isinstance(t, LowRank) else t for t in kinds]
    x = randn(5, 2, 3)
    run = call(module, x)
    for t, expected in zip(
        directions(run, tuple(weights), tuple(kinds))[1], directions(run, tuple(weights), tuple(plain))[1], strict=True
    ):
        torch.testing.assert_close(t, expected)


@pytest.mark.parametrize(("cls", "options"), KINDS, ids=IDS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_per_example_directions(cls, options, batch_first: bool) -> None:
    module = make(cls, num_layers=2, bidirectional=True, batch_first=batch_first, **options)
    weights, count = values(module), 2
    factors = [
        (randn(count, 3, w.shape[0], seed=i), randn(count, 3, w.shape[1], seed=i) if w.dim() == 2 else None)
        for i, w in enumerate(weights)
    ]
    kinds = [PerExample(w.shape, count, lambda n, f=f: f) for w, f in zip(weights, factors, strict=True)]
    x = randn(3, 5, 3) if batch_first else randn(5, 3, 3)
    output = directions(call(module, x), tuple(weights), tuple(kinds))[1][0]
    for b in range(3):
        dense = [a[:, b] if c is None else a[:, b].unsqueeze(-1) * c[:, b].unsqueeze(1) for a, c in factors]
        one = x[b : b + 1] if batch_first else x[:, b : b + 1]
        expected = directions(call(module, one), tuple(weights), tuple(dense))[1][0]
        torch.testing.assert_close(output[:, b : b + 1] if batch_first else output[:, :, b : b + 1], expected)


def test_per_example_directions_of_packed_sequences_are_refused() -> None:
    module = make(nn.GRU)
    kinds = [PerExample(w.shape, 1, lambda n: pytest.fail("drawn")) for w in values(module)]
    packed = rnn.pack_padded_sequence(randn(5, 2, 3), [5, 2])
    with pytest.raises(RuntimeError, match="choose a shared direction"):
        directions(call(module, packed), tuple(values(module)), tuple(kinds))


def test_module_is_whole_after_an_evaluation() -> None:
    module = make(nn.LSTM)
    x = randn(5, 2, 3)
    expected = module(x)[0]
    directions(call(module, x), tuple(values(module)), tuple(w.unsqueeze(0) for w in values(module)))
    assert torch.equal(module(x)[0], expected)
    assert all(a is b for a, b in zip(module._flat_weights, module.parameters(), strict=True))


def test_some_weights_frozen() -> None:
    for i in itertools.chain(range(4)):
        module = make(nn.GRU)
        weights = values(module)
        tangents = tuple(w.unsqueeze(0) if i == j else None for j, w in enumerate(weights))
        _, pushed = directions(call(module, randn(5, 2, 3)), tuple(weights), tangents)
        assert pushed[0].abs().sum() > 0
