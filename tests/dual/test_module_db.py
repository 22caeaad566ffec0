"""Every module of torch.nn on PyTorch's own sample inputs: served by rules, right by reverse mode."""

import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from checks import directions
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_modules import module_db

SAMPLES = 6  # of each module and mode, spread evenly
# Differentiated by its log-probabilities as free variables, while PyTorch's gradient supposes a log-softmax in front.
OTHERWISE = {"nn.CTCLoss"}
CONSTANT_TARGETS = {"nn.SoftMarginLoss"}  # that reverse mode refuses
MODULES = [m for m in module_db if "Lazy" not in m.name and m.name not in OTHERWISE]


def cases(info: Any, training: bool) -> Iterator[tuple[Callable[..., Any], list[Tensor]]]:
    """Yield functions of a module's parameters and inputs, and these."""
    inputs = 1 if info.name in CONSTANT_TARGETS else None
    samples = info.module_inputs_func(info, device="cpu", dtype=torch.float64, requires_grad=False, training=training)
    for sample in itertools.islice(samples, 0, None, max(1, len(samples) // SAMPLES)):
        torch.manual_seed(0)
        constructor = sample.constructor_input
        module = info.module_cls(*constructor.args, **constructor.kwargs).double().train(training)
        leaves, spec = tree_flatten((sample.forward_input.args, sample.forward_input.kwargs))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()][:inputs]
        names = [name for name, _ in module.named_parameters()]
        values = [p.detach() for p in module.parameters()] + [leaves[i].detach() for i in places]
        if values:
            yield _pure(module, names, leaves, places, spec), values


def _pure(module: Any, names: list[str], leaves: list[Any], places: list[int], spec: Any) -> Callable[..., Any]:
    def run(*values: Tensor) -> Any:
        torch.manual_seed(1)
        filled = list(leaves)
        for i, value in zip(places, values[len(names) :], strict=True):
            filled[i] = value
        state = dict(zip(names, values[: len(names)], strict=True))
        state |= {name: buffer.clone() for name, buffer in module.named_buffers()}
        return torch.func.functional_call(module, state, *tree_unflatten(filled, spec))

    return run


@pytest.mark.filterwarnings("ignore")  # what PyTorch has to say of its samples
@pytest.mark.parametrize("info", MODULES, ids=lambda info: info.name)
def test_module(info: Any) -> None:
    for training in (True, False) if info.train_and_eval_differ else (True,):
        for run, values in cases(info, training):
            generator = torch.Generator().manual_seed(0)
            leaves = [value.clone().requires_grad_() for value in values]
            expected = tree_leaves(run(*[leaf * 1 for leaf in leaves]))
            vs = [torch.randn((2, *value.shape), dtype=value.dtype, generator=generator) for value in values]
            outputs, pushed = directions(run, tuple(values), tuple(vs), fallback="error")
            for y, t, z in zip(outputs, pushed, expected, strict=True):
                if isinstance(z, Tensor):
                    torch.testing.assert_close(y, z.detach(), rtol=1e-10, atol=1e-12, equal_nan=True)
                    _assert_reverse(z, t, leaves, vs, generator)


def _assert_reverse(z: Tensor, t: Tensor | None, leaves: list[Tensor], vs: list[Tensor], generator: Any) -> None:
    if not z.requires_grad:
        assert t is None or not t.any()
        return
    u = torch.randn(z.shape, dtype=z.dtype, generator=generator)
    gradients = torch.autograd.grad(z, leaves, u, retain_graph=True, allow_unused=True)
    for k in range(2):
        terms = [g * v[k] for g, v in zip(gradients, vs, strict=True) if g is not None]
        backward, scale = sum(float(x.sum()) for x in terms), sum(float(x.abs().sum()) for x in terms)
        forward = 0.0 if t is None else float((u * t[k]).sum())
        assert math.isnan(backward) or abs(forward - backward) <= 1e-9 * max(scale, 1e-3)
