"""The forward gradient: random directions, their directional derivatives, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from fwdgrad.directions import Direction, Guided, Replay, SampleFunction, is_per_example, make_direction
from fwdgrad.engines import Engine, Evaluation, Func, Function, make_engine
from fwdgrad.estimators.base import StepRecord, check_positive_integer, deposit
from fwdgrad.estimators.control_variates import ControlVariate, GuessFunction, dots, make_control_variate
from fwdgrad.estimators.projection import projection_coefficients
from fwdgrad.estimators.stability import Safeguard
from fwdgrad.functional import BoundModel, Closure, FunctionalModel, check_independent_examples, check_loss
from fwdgrad.optim import FactoredSGD
from fwdgrad.randomness import KeyedGenerator, global_random_state
from fwdgrad.tangents import Dense, Tangent
from fwdgrad.words import check_word

AGGREGATIONS = ("mean", "projection")
Tangents: TypeAlias = Mapping[str, Tangent]


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
        aggregation: ``mean``, or ``projection``: the orthogonal projection of the gradient onto the K directions, times
            P/K; see :func:`~fwdgrad.estimators.projection.projection_coefficients` for when it is unbiased. It holds
            all K directions of a step at once, even where they are evaluated in chunks.
        control_variate: a guess c of the gradient: ``momentum`` (an average of past estimates), a function of the
            parameters, or an object; the estimate is then ``c`` plus the one of ``grad f - c``, unbiased for every c.
        momentum_bias: a, between 0 and 1: each direction becomes ``sqrt(1 - a) v + sqrt(a P) e m / |m|`` with a sign e
            and the running mean m of past estimates. **The estimate is then biased**: given m its mean is ``(1 - a)
            grad f + a P (grad f . m) m / |m|^2``; see :class:`~fwdgrad.directions.Guided`. None for none.
        clip_derivatives: clip each ``|grad f . v_k|`` at so many running medians; see
            :class:`~fwdgrad.estimators.stability.Safeguard` for the bias. None not to clip.
        patience: a derivative that is not finite is left out; stop after so many steps in a row with one.

    Raises:
        ValueError: if a word is not known, a number is out of range, or the engine cannot be compiled.

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
        aggregation: str = "mean",
        control_variate: str | ControlVariate | GuessFunction | None = None,
        momentum_bias: float | None = None,
        clip_derivatives: float | None = None,
        patience: int = 10,
    ) -> None:
        made = make_direction(direction)
        self.guided = None if momentum_bias is None else Guided(made, momentum_bias)
        self.direction: Direction = self.guided or (Replay(made) if replay else made)
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
        check_word("aggregation", aggregation, AGGREGATIONS)
        self.aggregation = aggregation
        self.control_variate = None if control_variate is None else make_control_variate(control_variate)
        if self.guided is not None:
            _check_guided(replay, aggregation, control_variate)
        self.safeguard = Safeguard(clip_derivatives, patience)
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
        for position, (tangents, coefficients) in enumerate(self._terms(function, function.params, chunks)):
            if position == 0 and is_per_example(tangents):
                check_independent_examples(model, "a per-example direction")
            for name, tangent in tangents.items():
                deposit(function.parameters[name], tangent, coefficients, self.optimizer)
        self.last = _record(chunks, self.safeguard.skipped)
        function.write_buffers(chunks[-1].aux)
        self.step += 1
        value = self.last.value
        return value if value.dim() == 0 else value.mean()

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"seed": self.seed, "step": self.step, "safeguard": self.safeguard.state_dict()}
        if self.control_variate is not None:
            state["control_variate"] = self.control_variate.state_dict()
        if self.guided is not None:
            state["guided"] = self.guided.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seed, self.step = state["seed"], state["step"]
        self.safeguard.load_state_dict(state["safeguard"])
        if self.control_variate is not None and "control_variate" in state:
            self.control_variate.load_state_dict(state["control_variate"])
        if self.guided is not None and "guided" in state:
            self.guided.load_state_dict(state["guided"])

    def _terms(
        self, fn: Function, params: Mapping[str, Tensor], chunks: list[Evaluation]
    ) -> Iterator[tuple[Tangents, Tensor]]:
        """Yield tangents and coefficients of which the estimate is the sum; append each evaluation to ``chunks``."""
        variate = self.control_variate
        guess = variate.guess(params, self.num_directions) if variate is not None else None
        if self.guided is not None:
            self.guided.start(params)
        residuals = []
        for evaluation, tangents in self._evaluate(fn, params):
            chunks.append(evaluation)
            derivatives = _derivatives(evaluation, tangents)
            if self.reduce is not None:
                derivatives = self.reduce(derivatives)
            if guess is not None:
                derivatives = derivatives - dots(tangents, guess).to(derivatives)
            residuals.append(derivatives)
            if self.aggregation == "mean":
                coefficients = self.safeguard.apply(derivatives)
                count = self.num_directions * derivatives.shape[1:].numel()
                if count != 1:
                    coefficients = coefficients / count
                yield tangents, coefficients
                if variate is not None:
                    variate.observe(tangents, coefficients)
                if self.guided is not None:
                    self.guided.observe(tangents, coefficients)
        seen = residuals[0] if len(residuals) == 1 else torch.cat(residuals)
        if self.aggregation == "projection":
            if len(residuals) > 1:
                tangents = self._sample(params, range(self.num_directions))
            kept = torch.where(torch.isfinite(seen), self.safeguard.apply(seen), torch.nan)
            coefficients = projection_coefficients(kept, tangents)
            yield tangents, coefficients
            if variate is not None:
                variate.observe(tangents, coefficients)
        if guess is not None:
            yield {name: Dense(value.unsqueeze(0)) for name, value in guess.items()}, seen.new_ones(1)
        if self.guided is not None:
            self.guided.finish()
        self.safeguard.observe(seen)

    def _evaluate(self, fn: Function, params: Mapping[str, Tensor]) -> Iterator[tuple[Evaluation, Tangents]]:
        """Yield, for each chunk of directions, the evaluation and the tangents."""
        starts = range(0, self.num_directions, self.chunk_size)
        # Each chunk runs the closure again and must see the same dropout masks as the first.
        replay = global_random_state(params.values()) if len(starts) > 1 else None
        for start in starts:
            if replay is not None and start > 0:
                replay()
            tangents = self._sample(params, range(start, min(start + self.chunk_size, self.num_directions)))
            yield self.engine(fn, params, tangents), tangents

    def _sample(self, params: Mapping[str, Tensor], indices: range) -> Tangents:
        return self.direction.sample(params, KeyedGenerator(self.seed, self.step, indices))


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
    aggregation: str = "mean",
    control_variate: str | ControlVariate | GuessFunction | None = None,
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
        aggregation: as in :class:`ForwardGradient`, like the next.
        control_variate: a guess of the gradient.

    Returns:
        The value, the estimate on the same names, and the directional derivatives.

    Raises:
        ValueError: if ``params`` is empty, or as in :class:`ForwardGradient`.
    """
    if not params:
        raise ValueError("params must have at least one entry, got an empty dict")
    estimator = ForwardGradient(
        direction, num_directions, engine, chunk_size, seed, aggregation=aggregation, control_variate=control_variate
    )
    estimator.step = step
    params = {name: param.detach() for name, param in params.items()}
    gradient = {name: torch.zeros_like(param) for name, param in params.items()}
    chunks: list[Evaluation] = []
    for tangents, coefficients in estimator._terms(lambda p: (check_loss(fn(p)), {}), params, chunks):
        for name, tangent in tangents.items():
            tangent.add_to_(gradient[name], coefficients)
    record = _record(chunks)
    assert record.directional_derivatives is not None
    return GradientEstimate(record.value, gradient, record.directional_derivatives)


def _check_guided(replay: bool, aggregation: str, control_variate: object) -> None:
    """Raise ValueError if an option cannot be combined with ``momentum_bias``."""
    if replay:
        raise ValueError(
            "momentum_bias keeps the running mean and dense directions, which replay avoids; use replay=False"
        )
    if aggregation != "mean":
        raise ValueError(
            f"aggregation={aggregation!r} needs directions without a preferred one; use aggregation='mean', or leave "
            "momentum_bias out"
        )
    if control_variate is not None:
        raise ValueError(
            "control_variate is unbiased only with E[v v^T] = I, which momentum_bias gives up; use one of the two"
        )


def _derivatives(evaluation: Evaluation, tangents: Tangents) -> Tensor:
    """Return the derivatives that weight the tangents: (K',), or (K', B) where each example has its own."""
    if not is_per_example(tangents):
        return _of_mean(evaluation.derivatives)
    if evaluation.derivatives.dim() < 2:
        raise ValueError(
            "per-example directions need per-example losses: return a vector from the closure, "
            "for instance F.cross_entropy(model(x), y, reduction='none')"
        )
    return evaluation.derivatives


def _of_mean(derivatives: Tensor) -> Tensor:
    return derivatives.mean(1) if derivatives.dim() > 1 else derivatives


def _record(chunks: list[Evaluation], skipped: Tensor | int = 0) -> StepRecord:
    derivatives = chunks[0].derivatives if len(chunks) == 1 else torch.cat([chunk.derivatives for chunk in chunks])
    per_example = derivatives if derivatives.dim() > 1 else None
    return StepRecord(chunks[0].value, _of_mean(derivatives), per_example, skipped)
