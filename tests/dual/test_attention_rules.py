"""Attention: the functional form and the modules, in training and in evaluation, against reverse mode."""

import math

import pytest
import torch
import torch.nn.functional as F
from checks import check, directions
from torch import nn


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape)))


def attend(**options):
    def run(q, k, v, *mask):
        torch.manual_seed(2)
        return F.scaled_dot_product_attention(q, k, v, *mask, **options)

    return run


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
@pytest.mark.parametrize("options", [{}, {"scale": 0.3}, {"is_causal": True}, {"dropout_p": 0.4}], ids=str)
def test_attention(lead: tuple[int, ...], options: dict) -> None:
    check(attend(**options), randn(*lead, 4, 3), randn(*lead, 5, 3), randn(*lead, 5, 6))


def test_masks() -> None:
    q, k, v = randn(2, 3, 4, 3), randn(2, 3, 5, 3), randn(2, 3, 5, 6)
    allowed = randn(4, 5) > -0.5
    allowed[1] = False  # a query that sees nothing
    check(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, allowed), q, k, v)
    check(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, randn(2, 1, 4, 5) > -1, dropout_p=0.0), q, k, v)
    check(attend(), q, k, v, randn(4, 5))
    check(attend(), q, k, v, randn(2, 1, 1, 5))
    additive = torch.zeros(4, 5, dtype=torch.float64).masked_fill(~allowed, -math.inf)
    check(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, additive), q, k, v)


def test_mask_and_causal_are_refused_as_by_pytorch() -> None:
    q = randn(2, 4, 3)
    with pytest.raises(RuntimeError, match="attn_mask"):
        directions(
            lambda q: F.scaled_dot_product_attention(q, q, q, randn(4, 4), is_causal=True), (q,), (randn(1, 2, 4, 3),)
        )


def test_grouped_queries() -> None:
    check(attend(enable_gqa=True), randn(2, 6, 4, 3), randn(2, 2, 5, 3), randn(2, 2, 5, 3))


def test_broadcast_heads() -> None:
    check(attend(), randn(2, 3, 4, 3), randn(1, 3, 5, 3), randn(2, 1, 5, 3))


def test_value_and_generator_are_those_of_a_plain_pass() -> None:
    q, k, v = randn(2, 3, 4, 3), randn(2, 3, 5, 3), randn(2, 3, 5, 6)
    expected, after = attend(dropout_p=0.3)(q, k, v), torch.get_rng_state()
    (value,), _ = directions(attend(dropout_p=0.3), (q, k, v), (randn(2, 2, 3, 4, 3), None, None))
    torch.testing.assert_close(value, expected)
    assert torch.equal(torch.get_rng_state(), after)


def call(module: nn.Module, **options):
    """Return a function of the module's parameters and inputs."""
    names = [name for name, _ in module.named_parameters()]

    def run(*args):
        torch.manual_seed(1)
        parameters = dict(zip(names, args[: len(names)], strict=True))
        return torch.func.functional_call(module, parameters, args[len(names) :], options)

    return run


def check_module(module: nn.Module, *inputs: torch.Tensor, differences: bool = False, **options) -> None:
    parameters = [p.detach() for p in module.parameters()]
    check(call(module, **options), *parameters, *inputs, num_directions=2, differences=differences)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_multihead_attention(training: bool, need_weights: bool, batch_first: bool) -> None:
    module = nn.MultiheadAttention(6, 2, dropout=0.3, batch_first=batch_first).double().train(training)
    for x in (randn(3, 4, 6), randn(4, 6)):
        run = call(module, need_weights=need_weights)
        parameters = [p.detach() for p in module.parameters()]
        check(lambda *a, run=run: run(*a, a[-1], a[-1]), *parameters, x, num_directions=2, differences=False)


def test_multihead_attention_with_every_option() -> None:
    module = nn.MultiheadAttention(6, 2, kdim=3, vdim=5, add_bias_kv=True, add_zero_attn=True).double()
    mask = torch.zeros(2, 5, dtype=torch.float64)
    mask[0, 3:] = -math.inf
    check_module(
        module,
        randn(4, 2, 6),
        randn(5, 2, 3),
        randn(5, 2, 5),
        key_padding_mask=mask,
        attn_mask=randn(4, 5),
        average_attn_weights=False,
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_encoder_layer(training: bool, norm_first: bool, activation: str) -> None:
    module = nn.TransformerEncoderLayer(
        6, 2, 8, 0.2, activation, batch_first=True, norm_first=norm_first, dtype=torch.float64
    )
    check_module(module.train(training), randn(2, 4, 6))
    frozen = module.requires_grad_(False)
    check(lambda x: call(frozen)(*frozen.parameters(), x), randn(2, 4, 6), differences=False)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # from the plain pass that it is compared with
def test_encoder_with_padding_in_evaluation() -> None:
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, dtype=torch.float64)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    padding = torch.tensor([[False, False, False, False], [False, False, True, True]])
    visible = ~padding.unsqueeze(-1)  # PyTorch's fast path, which the plain pass takes, leaves zeros in the padding
    name, weight = next(encoder.requires_grad_(False).named_parameters())

    def run(x, weight):
        return torch.func.functional_call(encoder, {name: weight}, x, {"src_key_padding_mask": padding}) * visible

    check(run, randn(2, 4, 6), weight, differences=False)


@pytest.mark.parametrize("training", [True, False])
def test_decoder_layer(training: bool) -> None:
    module = nn.TransformerDecoderLayer(6, 2, 8, 0.2, dtype=torch.float64).train(training)
    check_module(module, randn(3, 2, 6), randn(4, 2, 6), tgt_mask=nn.Transformer.generate_square_subsequent_mask(3))


@pytest.mark.parametrize("training", [True, False])
def test_transformer(training: bool) -> None:
    module = nn.Transformer(6, 2, 1, 1, 8, 0.2, batch_first=True, dtype=torch.float64).train(training)
    check_module(module, randn(2, 3, 6), randn(2, 4, 6))
