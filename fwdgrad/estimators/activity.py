"""Activity perturbation: noise on what layers compute, weight gradients formed locally from their own inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fwdgrad.directions import LowRank, PerExample
from fwdgrad.dual import directional_derivatives
from fwdgrad.estimators.base import StepRecord, check_positive_integer
from fwdgrad.estimators.local_gradients import LOCAL_GRADIENTS
from fwdgrad.estimators.parts import piece_basis, sum_parts, weigh
from fwdgrad.estimators.sites import Site, check_per_example, find_pieces, find_sites, perturb_site
from fwdgrad.functional import BoundModel, Closure, FunctionalModel, check_independent_examples
from fwdgrad.randomness import KeyedGenerator, global_random_state

_EXACT_OUTPUT_WIDTH = 256  # a wider output layer is perturbed like the others


@dataclass(frozen=True)
class Plan:
    """How the gradient of each trainable parameter is estimated."""

    key: object
    exact: list[Site]
    activity: list[Site]
    per_example: list[str]
    """Parameters that get per-example directions."""
    weight: list[str]
    """Parameters that get shared directions."""


class ActivityPerturbation:
    """Estimate the gradient of each layer by perturbing its output.

    For a layer with output z the estimate of ``dL_b/dz_b`` is ``1/K sum_k s_kb e_kb`` with independent signs ``e_kb``
    for every example b and the derivative ``s_kb`` of that example's loss along them: unbiased, since ``E[e e^T] =
    I`` and no example sees another's noise. The layer's parameters get it times their own local derivative, an outer
    product with the layer's input; nothing travels backwards through the network. Where z goes into a ReLU and
    nowhere else, entries with ``z <= 0`` have no influence and get no noise. The variance grows with the number of
    perturbed outputs of one example instead of the number of weights. Layers are perturbed one at a time.

    Linear, convolution, normalisation and embedding layers are perturbed. A linear or convolution layer with fewer
    weights than outputs for one example (an early convolution) gets per-example directions in its weights instead,
    and parameters outside of such layers get shared ones; ``plan`` says which. The last layer, and any with at most K
    outputs for one example, gets its exact gradient: one direction per output, through what follows it only.

    Args:
        num_directions: K, for each layer.
        exact_output: differentiate the last layer exactly, if it has at most 256 outputs for one example.
        space: ``auto``, or ``activity`` to perturb the outputs of every layer that has a local gradient.
        seed: seed of the noise.

    Raises:
        ValueError: if a number is out of range or a word not known; when called, if the closure returns no per-example
            losses, or examples are not independent.

    Source: Ren et al., "Scaling Forward Gradient With Local Losses", 2023, arXiv:2210.03310, section 3.
    """

    def __init__(self, num_directions: int = 8, exact_output: bool = True, space: str = "auto", seed: int = 0) -> None:
        self.num_directions = check_positive_integer("num_directions", num_directions)
        if space not in ("auto", "activity"):
            raise ValueError(f"space must be one of ['auto', 'activity'], got {space!r}")
        self.exact_output = exact_output
        self.space = space
        self.seed = seed
        self.step = 0
        self.last: StepRecord | None = None
        self.plan: Plan | None = None
        self._bound: BoundModel | None = None

    def __call__(self, model: nn.Module, closure: Closure) -> Tensor:
        """Return the detached loss ``closure(model)`` and accumulate the estimate of its gradient into ``p.grad``.

        Args:
            model: the module to train.
            closure: called with the model, returns per-example losses (B,), whose mean is the loss, or (B, ...) those
                of the parts of each example, which add up to its loss.

        Raises:
            ValueError: if the loss is a single number, an output does not have the batch as its first dimension, or a
                BatchNorm layer in training mode makes examples depend on each other.
        """
        function = FunctionalModel(model, closure, self._bound, parts=True)
        self._bound = function.bound
        replay = global_random_state(function.params.values())
        plan = self._make_plan(model, function, replay)
        runs: list[Callable[[], tuple[Tensor, Tensor, Any]]] = [
            *(lambda site=site: self._run_site(model, function, site, exact=True) for site in plan.exact),
            *(lambda site=site: self._run_site(model, function, site, exact=False) for site in plan.activity),
        ]
        if plan.per_example:
            runs.append(lambda: self._run_weights(function, plan.per_example, per_example=True))
        if plan.weight:
            runs.append(lambda: self._run_weights(function, plan.weight, per_example=False))
        derivatives = []
        for i, run in enumerate(runs):
            if i > 0:
                replay()  # every evaluation sees the same dropout masks
            losses, slopes, buffers = run()
            derivatives.append(slopes)
        function.write_buffers(buffers)
        self.step += 1
        losses = sum_parts(losses)
        self.last = StepRecord(losses, torch.cat(derivatives).mean(1), None)
        return losses.mean()

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seed, self.step = state["seed"], state["step"]

    def _run_site(
        self, model: nn.Module, function: FunctionalModel, site: Site, exact: bool
    ) -> tuple[Tensor, Tensor, Any]:
        """Perturb one output, form its layer's gradient; return the losses, their derivatives and the buffers."""
        layer = model.get_submodule(site.layer)
        count = site.width if exact else self.num_directions
        losses, derivatives, buffers, x, noise = perturb_site(
            model, function, function.params, site, count, self._basis if exact else self._noise
        )
        check_per_example(losses, noise.shape[1], site.layer)
        batch = losses.shape[0]
        if losses.dim() > 1:
            delta = weigh(derivatives, noise, site.parts) / (batch if exact else count * batch)
        elif exact:
            delta = derivatives.T.reshape(noise.shape[1:]) / batch
        else:
            delta = torch.einsum("kb,kb...->b...", derivatives, noise.to(derivatives.dtype)) / (count * batch)
        for name, gradient in LOCAL_GRADIENTS[type(layer)](layer, x, delta).items():
            param = getattr(layer, name)
            if param is not None and param.requires_grad:
                _accumulate(param, gradient)
        return losses, sum_parts(derivatives, 2), buffers

    def _noise(self, site: Site, output: Tensor) -> Tensor:
        """Draw signs of shape (K, *output.shape), zero where a ReLU will cut them off."""
        generator = KeyedGenerator(self.seed, self.step, range(self.num_directions))
        signs = generator.signs(f"{site.layer}/{site.call}", output.numel(), output.dtype, output.device)
        noise = signs.view(-1, *output.shape)
        return noise * (output > 0) if site.into_relu else noise

    def _basis(self, site: Site, output: Tensor) -> Tensor:
        """Return one direction per output of an example, (width, *output.shape)."""
        return piece_basis(output, site.parts)

    def _run_weights(
        self, function: FunctionalModel, names: list[str], per_example: bool
    ) -> tuple[Tensor, Tensor, Any]:
        """Give parameters directions of their own, per example or shared."""
        generator = KeyedGenerator(self.seed, self.step, range(self.num_directions))
        direction = PerExample() if per_example else LowRank()
        tangents = direction.sample({name: function.params[name] for name in names}, generator)

        def total(params: dict[str, Tensor]) -> tuple[Tensor, Any]:
            losses, buffers = function(params)
            return sum_parts(losses), buffers

        losses, derivatives, buffers = directional_derivatives(total, function.params, tangents)
        check_per_example(losses, losses.numel(), names[0])
        coefficients = derivatives / derivatives.numel() if per_example else derivatives.mean(1) / self.num_directions
        for name, tangent in tangents.items():
            param = function.parameters[name]
            if param.grad is None:
                param.grad = torch.zeros_like(param, requires_grad=False)
            tangent.add_to_(param.grad, coefficients.float())
        return losses, derivatives, buffers

    def _make_plan(self, model: nn.Module, function: FunctionalModel, replay: Callable[[], None]) -> Plan:
        """Find the layers by one plain forward pass, unless the model is as it was in the step before."""
        key = (function.bound, model.training, tuple(function.parameters))
        if self.plan is not None and self.plan.key == key:
            return self.plan
        check_independent_examples(model, "activity perturbation")
        sites, losses = find_sites(model, function)
        replay()
        if losses.dim() > 1:
            sites = find_pieces(model, function, sites, losses)
            replay()
        owned = {
            id(param): site for site in sites for param in model.get_submodule(site.layer).parameters(recurse=False)
        }
        space: dict[str, str] = {}
        for name, param in function.parameters.items():
            site = owned.get(id(param))
            space[name] = "weight" if site is None else self._space(model, site, last=site is sites[-1])
        by_layer = {site.layer: space.get(_first_trainable(model, site, function)) for site in sites}
        self.plan = Plan(
            key=key,
            exact=[site for site in sites if by_layer[site.layer] == "exact"],
            activity=[site for site in sites if by_layer[site.layer] == "activity"],
            per_example=[name for name, word in space.items() if word == "per_example"],
            weight=[name for name, word in space.items() if word == "weight"],
        )
        return self.plan

    def _space(self, model: nn.Module, site: Site, last: bool) -> str:
        if site.width <= self.num_directions or (last and self.exact_output and site.width <= _EXACT_OUTPUT_WIDTH):
            return "exact"
        layer = model.get_submodule(site.layer)
        weights = sum(param.numel() for param in layer.parameters(recurse=False))
        plain_product = type(layer) in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
        return "per_example" if self.space == "auto" and plain_product and weights < site.width else "activity"


def _first_trainable(model: nn.Module, site: Site, function: FunctionalModel) -> str:
    own = {id(param) for param in model.get_submodule(site.layer).parameters(recurse=False)}
    return next(name for name, param in function.parameters.items() if id(param) in own)


def _accumulate(param: nn.Parameter, gradient: Tensor) -> None:
    gradient = gradient.to(param.dtype)
    param.grad = gradient if param.grad is None else param.grad.add_(gradient)
