"""The forward gradient: random directions, their directional derivatives, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fwdgrad.directions import Direction, Replay, SampleFunction, is_per_example, make_direction
from fwdgrad.engines import Engine, Evaluation, Func, Function, make_engine
from fwdgrad.estimators.base import StepRecord, check_positive_integer, deposit
from fwdgrad.functional import BoundModel, Closure, FunctionalModel, check_independent_examples, check_loss
from fwdgrad.optim import FactoredSGD
from fwdgrad.randomness import KeyedGenerator, global_random_state
from fwdgrad.tangents import Tangent


class ForwardGradient:
    """Estimate the gradient as ``1/K sum_k (grad f . v_k) v_k`` with K random directions ``v_k``.

    The estimate is unbiased because ``E[v v^T] = I``. Each directional derivative comes from one forward evaluation in
    forward-mode AD; no backward pass is run and no activation is kept.

    Args:
        direction: a word (``normal``, ``rademacher``, ``sphere``, ``sparse``, ``coordinate``, ``orthogonal``,
            ``low_rank``, ``per_example``; a number may follow, as in ``low_rank:4``), an object with
            ``sample(params, generator)``, or such a function.
        num_directions: K.
        engine: a word (``func``, ``dual``, ``finite_difference``) or an engine object.
        chunk_size: how many directions to evaluate together, all by default. The estimate does not depend on it, the
            memory does.
        seed: seed of the directions, which depend on nothing but (seed, step, direction index, parameter name).
        optimizer: the optimizer that will apply the estimate. A ``FactoredSGD`` is given it as factors; for any other
            it is accumulated into ``p.grad``, as without this argument.
        replay: hold no direction: draw each parameter's when the engine reaches it, and again for the update. With
            ``engine="dual"`` or ``"finite_difference"`` the directions then take the memory of one layer's; ``func``
            needs all of them at once. The numbers are the same.
        compile: run the engine through ``torch.compile``; for ``engine="func"`` only.
        reduce: for replicas of the model that see different examples: called with each chunk's derivatives, a tensor of
            shape (K,) or (K, B), returns their mean over all replicas. Replicas with the same seed draw the same
            directions, so these few numbers are all they have to exchange to stay equal.

    Raises:
        ValueError: if a word is not known, a number is not a positive integer, or the engine cannot be compiled.

    Source: Baydin et al., "Gradients without Backpropagation", 2022, arXiv:2202.08587, algorithm 1 (K = 1, normal).
    """

    def __init__(
        self,
        direction: str | Direction | SampleFunction = "normal",
        num_directions: int = 1,
        engine: str | Engine = "func",
        chunk_size: int | None = None,
        seed: int = 0,
        optimizer: torch.optim.Optimizer | None = None,
        replay: bool = False,
        compile: bool = False,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        made = make_direction(direction)
        self.direction: Direction = Replay(made) if replay else made
        self.num_directions = check_positive_integer("num_directions", num_directions)
        self.chunk_size = check_positive_integer(
            "chunk_size", self.num_directions if chunk_size is None else chunk_size
        )
        if compile and engine != "func":
            raise ValueError(f"compile=True needs engine='func', got engine={engine!r}")
        self.engine = Func(compile=True) if compile else make_engine(engine)
        self.seed = seed
        self.optimizer = optimizer if isinstance(optimizer, FactoredSGD) else None
        self.reduce = reduce
        self.step = 0
        self.last: StepRecord | None = None
        self._bound: BoundModel | None = None

    def __call__(self, model: nn.Module, closure: Closure) -> Tensor:
        """Return the detached loss ``closure(model)`` and accumulate the estimate of its gradient.

        Args:
            model: the module to train; its trainable parameters get directions.
            closure: called with the model, returns a scalar loss or per-example losses (B,), whose mean is the loss.

        Raises:
            ValueError: if nothing is trainable, or the loss has more than one dimension.
            TypeError: if the closure returns no floating-point tensor.
        """
        function = FunctionalModel(model, closure, self._bound)
        self._bound = function.bound
        chunks: list[Evaluation] = []
        for evaluation, tangents in self._evaluate(function, function.params):
            if not chunks and is_per_example(tangents):
                check_independent_examples(model, "a per-example direction")
            chunks.append(evaluation)
            coefficients = _coefficients(evaluation, tangents, self.num_directions)
            if self.reduce is not None:
                coefficients = self.reduce(coefficients)
            for name, tangent in tangents.items():
                deposit(function.parameters[name], tangent, coefficients, self.optimizer)
        self.last = _record(chunks)
        function.write_buffers(chunks[-1].aux)
        self.step += 1
        value = self.last.value
        return value if value.dim() == 0 else value.mean()

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seed, self.step = state["seed"], state["step"]

    def _evaluate(
        self, fn: Function, params: Mapping[str, Tensor]
    ) -> Iterator[tuple[Evaluation, Mapping[str, Tangent]]]:
        """Yield, for each chunk of directions, the evaluation and the tangents."""
        starts = range(0, self.num_directions, self.chunk_size)
        # Each chunk runs the closure again and must see the same dropout masks as the first.
        replay = global_random_state(params.values()) if len(starts) > 1 else None
        for start in starts:
            if replay is not None and start > 0:
                replay()
            indices = range(start, min(start + self.chunk_size, self.num_directions))
            tangents = self.direction.sample(params, KeyedGenerator(self.seed, self.step, indices))
            yield self.engine(fn, params, tangents), tangents


class GradientEstimate(NamedTuple):
    """What ``forward_gradient`` returns."""

    value: Tensor
    """The function's value: a scalar, or a vector (B,) of per-example values."""
    gradient: dict[str, Tensor]
    """The estimate of the gradient of the (mean) value, by parameter name."""
    directional_derivatives: Tensor
    """The directional derivatives of the (mean) value, shape (K,)."""


def forward_gradient(
    fn: Callable[[Mapping[str, Tensor]], Tensor],
    params: Mapping[str, Tensor],
    *,
    direction: str | Direction | SampleFunction = "normal",
    num_directions: int = 1,
    engine: str | Engine = "func",
    chunk_size: int | None = None,
    seed: int = 0,
    step: int = 0,
) -> GradientEstimate:
    """Estimate the gradient of a pure function: ``1/K sum_k (grad f . v_k) v_k``.

    Args:
        fn: maps a name -> tensor dict to a scalar, or to per-example values (B,) whose mean is differentiated.
        params: the evaluation point.
        direction: as in :class:`ForwardGradient`, like the four below.
        num_directions: K.
        engine: how directional derivatives are computed.
        chunk_size: how many directions to evaluate together.
        seed: seed of the directions.
        step: number of the step; other steps draw other directions.

    Returns:
        The value, the estimate on the same names, and the directional derivatives.

    Raises:
        ValueError: if ``params`` is empty, or as in :class:`ForwardGradient`.
    """
    if not params:
        raise ValueError("params must have at least one entry, got an empty dict")
    estimator = ForwardGradient(direction, num_directions, engine, chunk_size, seed)
    estimator.step = step
    params = {name: param.detach() for name, param in params.items()}
    gradient = {name: torch.zeros_like(param) for name, param in params.items()}
    chunks = []
    for evaluation, tangents in estimator._evaluate(lambda p: (check_loss(fn(p)), {}), params):
        chunks.append(evaluation)
        coefficients = _coefficients(evaluation, tangents, num_directions)
        for name, tangent in tangents.items():
            tangent.add_to_(gradient[name], coefficients)
    record = _record(chunks)
    assert record.directional_derivatives is not None
    return GradientEstimate(record.value, gradient, record.directional_derivatives)


def _coefficients(evaluation: Evaluation, tangents: Mapping[str, Tangent], num_directions: int) -> Tensor:
    """Return the weights of the tangents in the estimate: (K',), or (K', B) where each example has its own."""
    derivatives = evaluation.derivatives
    if is_per_example(tangents):
        if derivatives.dim() < 2:
            raise ValueError(
                "per-example directions need per-example losses: return a vector from the closure, "
                "for instance F.cross_entropy(model(x), y, reduction='none')"
            )
        return derivatives / (num_directions * derivatives.shape[1])
    mean = _of_mean(derivatives)
    return mean if num_directions == 1 else mean / num_directions


def _of_mean(derivatives: Tensor) -> Tensor:
    return derivatives.mean(1) if derivatives.dim() > 1 else derivatives


def _record(chunks: list[Evaluation]) -> StepRecord:
    derivatives = chunks[0].derivatives if len(chunks) == 1 else torch.cat([chunk.derivatives for chunk in chunks])
    per_example = derivatives if derivatives.dim() > 1 else None
    return StepRecord(chunks[0].value, _of_mean(derivatives), per_example)
