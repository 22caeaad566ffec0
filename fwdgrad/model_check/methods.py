"""Which of the shipped methods can make a step with a model: each is tried on a copy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fwdgrad.engines import ENGINES, Dual, Func
from fwdgrad.estimators import Estimator
from fwdgrad.functional import Closure
from fwdgrad.model_check.report import MethodLine
from fwdgrad.randomness import global_random_state


def try_methods(
    model: nn.Module,
    closure: Closure,
    methods: Mapping[str, Callable[[], Estimator]],
    prepare: Mapping[str, Callable[[nn.Module], nn.Module]],
    wrong: Collection[str] = (),
) -> list[MethodLine]:
    """Let each method estimate the gradient once on a copy, and say what stopped it or what came out wrong.

    Args:
        model: left as it is.
        closure: as for an estimator.
        methods: from a word to what makes the estimator.
        prepare: what turns the model into one that a method trains, for those that need it.
        wrong: the engines, by word, that have been found to give wrong derivatives of this model.
    """
    lines = []
    replay = global_random_state(model.parameters())
    for word, make in methods.items():
        replay()
        prepared = prepare.get(word, _as_it_is)
        estimator = make()
        reason = _objection(model, closure, estimator, prepared, wrong)
        if reason and isinstance(getattr(estimator, "engine", None), Func):
            replay()
            other: Any = make()
            other.engine = Dual(fallback="silent")
            works = not _objection(model, closure, other, prepared, wrong)
            reason += "; engine=dual works" if works else ""
        lines.append(MethodLine(word, not reason, reason))
    replay()
    return lines


def _as_it_is(model: nn.Module) -> nn.Module:
    return model


def _objection(
    model: nn.Module,
    closure: Closure,
    estimator: Estimator,
    prepare: Callable[[nn.Module], nn.Module],
    wrong: Collection[str],
) -> str:
    """Return why an estimator cannot train the model, or an empty text."""
    engine = getattr(estimator, "engine", None)
    for word in wrong:
        if isinstance(engine, ENGINES[word]):  # type: ignore[arg-type]
            return f"engine={word} gives a wrong derivative of this model"
    duplicate = copy.deepcopy(model)
    duplicate.zero_grad(set_to_none=True)
    try:
        duplicate = prepare(duplicate)
        loss = estimator(duplicate, closure)
    except Exception as error:  # whatever a model or an engine raises: it is the answer
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return _outcome(duplicate, loss)


def _outcome(model: nn.Module, loss: Tensor) -> str:
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if not torch.isfinite(loss).all():
        return f"the loss is {loss.item()}"
    bad = [name for name, grad in grads.items() if not torch.isfinite(grad).all()]
    if bad:
        return f"the estimate of {bad[0]} is not finite"
    return "" if any(grad.any() for grad in grads.values()) else "the estimate is zero everywhere"
