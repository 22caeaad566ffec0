"""Activity perturbation: noise on what layers compute, weight gradients formed locally from their own inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fwdgrad.directions import LowRank
from fwdgrad.dual import directional_derivatives, even_blocks, perturb, perturbed
from fwdgrad.estimators.base import StepRecord, check_positive_integer
from fwdgrad.estimators.noise import ActivityNoise, BlockNoise, Noise, WeightNoise
from fwdgrad.estimators.parts import sum_parts
from fwdgrad.estimators.sites import (
    MEMORY,
    Site,
    at_sites,
    check_per_example,
    find_pieces,
    find_sites,
    find_unit,
    group_sites,
)
from fwdgrad.functional import BoundModel, Closure, FunctionalModel, check_independent_examples
from fwdgrad.randomness import KeyedGenerator, global_random_state
from fwdgrad.words import check_word

_EXACT_OUTPUT_WIDTH = 256  # a wider output layer is perturbed like the others
_MOST_DIRECTIONS = 8.0  # times num_directions, for a layer close to the output
_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Plan:
    """How the gradient of each trainable parameter is estimated."""

    key: object
    groups: list[list[Site]]
    """The layers' calls; those of one group are perturbed in one evaluation."""
    weight: list[str]
    """Parameters that get shared directions."""


class ActivityPerturbation:
    """Estimate the gradient of each layer by perturbing its output.

    Every output z_j of a layer is moved, for each example b on its own, by a random sign e_j along one of K
    directions. With the derivative s of that example's loss along this direction, ``s e_j`` is an unbiased estimate of
    ``dL_b/dz_j``, since ``E[e_i e_j]`` vanishes unless i = j and no example sees another's noise. The layer's
    parameters get it times their own local derivative, an outer product with the layer's input; nothing travels
    backwards through the network. Where z goes into a ReLU and nowhere else, entries with ``z <= 0`` have no influence
    and get no noise. The second moment grows as n / K with the n perturbed outputs of one example, instead of with the
    number of weights; at K = n the estimate is exact. The noise of different layers never adds up: each has its own
    directions, all in one evaluation where a layer's output is all that the next one depends on, else in one for each.
    Directions in blocks pass the next product all at the price of one (``fwdgrad.dual.Blocks``).

    Linear, convolution, normalisation and embedding layers are perturbed. A linear or convolution layer with fewer
    weights than outputs for one example (an early convolution) gets per-example directions in its weights instead,
    and parameters outside of such layers get shared ones; ``plan`` says which.

    Args:
        num_directions: K of the layer whose directions cost most, mostly the first. With the cost c of a direction, in
            products and passes through memory from its layer to the loss, the noise of all layers is least for a given
            time at K proportional to ``1 / sqrt(c)``; so other layers get more, up to 8 times as many. The last layer
            gets its exact gradient.
        allocation: ``cost``, as above, or ``equal``: K directions for every layer.
        exact_output: differentiate the last layer exactly, if it has at most 256 outputs for one example.
        space: ``auto``, or ``activity`` or ``weight`` to perturb the outputs, or the weights, of every layer that
            can be.
        chunk_size: most directions that one evaluation carries, where it carries those of several layers; 1 takes each
            layer by itself, None all at once that can be. The estimate does not depend on it. Memory does, in deep
            models: each layer more in an evaluation saves a forward pass, and makes all behind it carry more.
        seed: seed of the noise.

    Raises:
        ValueError: if a number is out of range or a word not known; when called, if the closure returns no per-example
            losses, or examples are not independent.

    Source: Ren et al., "Scaling Forward Gradient With Local Losses", 2023, arXiv:2210.03310, section 3. The sharing out
        of outputs among directions and the allocation of directions to layers are ours.
    """

    def __init__(
        self,
        num_directions: int = 16,
        allocation: str = "cost",
        exact_output: bool = True,
        space: str = "auto",
        chunk_size: int | None = 512,
        seed: int = 0,
    ) -> None:
        self.num_directions = check_positive_integer("num_directions", num_directions)
        check_word("allocation", allocation, ("cost", "equal"))
        check_word("space", space, ("auto", "activity", "weight"))
        self.allocation = allocation
        self.exact_output = exact_output
        self.space = space
        self.chunk_size = None if chunk_size is None else check_positive_integer("chunk_size", chunk_size)
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
        runs = [partial(self._run_sites, model, function, group) for group in plan.groups]
        if plan.weight:
            runs.append(partial(self._run_weights, function, plan.weight))
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

    def _run_sites(self, model: nn.Module, function: FunctionalModel, group: list[Site]) -> tuple[Tensor, Tensor, Any]:
        """Perturb some layers, form their gradients; return the losses, their derivatives and the buffers."""
        generator = KeyedGenerator(self.seed, self.step)
        started: list[tuple[nn.Module, Tensor, Noise]] = []

        def perturb_output(site: Site, layer: nn.Module, x: Tensor, output: Tensor) -> Tensor:
            active = output > 0 if site.into_relu else None
            name = f"{site.layer}/{site.call}"
            x = x.detach()
            noise: Noise
            if site.space == "weight":
                noise = WeightNoise(layer, x, output, site.count, active, generator, name)
            elif site.unit:
                size = site.unit * even_blocks(site.width // site.unit, site.count)[1]
                noise = BlockNoise(output, size, active, generator, name)
            else:
                noise = ActivityNoise(output, site.count, active, generator, name, site.parts)
            started.append((layer, x, noise))
            return perturb(output, noise.tangents())

        with at_sites(model, group, perturb_output):
            losses, derivatives, buffers = perturbed(lambda: function(function.params))
        row = 0
        for (layer, x, noise), site in zip(started, group, strict=True):
            check_per_example(losses, x.shape[0], site.layer)
            slopes = derivatives[row : row + noise.count]
            row += noise.count
            for name, gradient in noise.gradients(layer, x, slopes / len(losses)).items():
                param = getattr(layer, name)
                if param is not None and param.requires_grad:
                    _accumulate(param, gradient)
        return losses, sum_parts(derivatives, 2), buffers

    def _run_weights(self, function: FunctionalModel, names: list[str]) -> tuple[Tensor, Tensor, Any]:
        """Give parameters outside of layers shared directions."""
        generator = KeyedGenerator(self.seed, self.step, range(self.num_directions))
        tangents = LowRank().sample({name: function.params[name] for name in names}, generator)

        def total(params: dict[str, Tensor]) -> tuple[Tensor, Any]:
            losses, buffers = function(params)
            return sum_parts(losses), buffers

        losses, derivatives, buffers = directional_derivatives(total, function.params, tangents)
        check_per_example(losses, losses.numel(), names[0])
        coefficients = derivatives.mean(1) / self.num_directions
        for name, tangent in tangents.items():
            param = function.parameters[name]
            if param.grad is None:
                param.grad = torch.zeros_like(param, requires_grad=False)
            tangent.add_to_(param.grad, coefficients.float())
        return losses, derivatives, buffers

    def _make_plan(self, model: nn.Module, function: FunctionalModel, replay: Callable[[], None]) -> Plan:
        """Find the layers by plain forward passes, unless the model is as it was in the step before."""
        key = (function.bound, model.training, tuple(function.parameters))
        if self.plan is not None and self.plan.key == key:
            return self.plan
        check_independent_examples(model, "activity perturbation")
        sites, losses = find_sites(model, function)
        if losses.dim() > 1:
            replay()
            sites = find_pieces(model, function, sites, losses)
        sites = self._allocate(model, function, sites)
        groups = group_sites(model, function, sites)
        if self.chunk_size is not None:
            groups = [chunk for group in groups for chunk in _chunks(group, self.chunk_size)]
        replay()
        owned = {id(param) for site in sites for param in model.get_submodule(site.layer).parameters(recurse=False)}
        outside = [name for name, param in function.parameters.items() if id(param) not in owned]
        self.plan = Plan(key, groups, outside)
        return self.plan

    def _allocate(self, model: nn.Module, function: FunctionalModel, sites: list[Site]) -> list[Site]:
        """Choose for each site what is perturbed, and its number of directions."""
        sites = [self._choose_space(model, function, site, site is sites[-1]) for site in sites]
        costs = _direction_costs(sites)
        chosen = []
        for site, cost in zip(sites, costs, strict=True):
            if site is sites[-1] and self.exact_output and site.width <= _EXACT_OUTPUT_WIDTH:
                chosen.append(replace(site, space="activity", count=site.width))
                continue
            more = min(math.sqrt(max(costs) / cost), _MOST_DIRECTIONS) if self.allocation == "cost" else 1.0
            count = max(round(self.num_directions * more), 1)
            if site.space == "weight":
                # Beyond one for each row, every direction adds as many numbers to the gradient as there are weights.
                layer: Any = model.get_submodule(site.layer)
                count = min(count, max(self.num_directions, len(layer.weight)))
            elif site.unit:
                count = even_blocks(site.width // site.unit, count)[0]
            chosen.append(replace(site, count=count))
        return chosen

    def _choose_space(self, model: nn.Module, function: FunctionalModel, site: Site, last: bool) -> Site:
        """Choose whether the weights of a layer are perturbed rather than its output, and whether in blocks."""
        layer = model.get_submodule(site.layer)
        weights = sum(param.numel() for param in layer.parameters(recurse=False))
        if type(layer) in _PRODUCTS and (
            self.space == "weight"
            or (self.space == "auto" and weights < site.width and self.num_directions < site.width)
        ):
            site = replace(site, space="weight")
        if last or site.parts or len(site.shape) < 2:
            return site
        unit = find_unit(model, function, site)
        by_entry = unit == 1 and site.space == "activity"
        return replace(site, unit=unit) if by_entry or self.num_directions * unit <= site.width else site


def _chunks(group: list[Site], chunk_size: int) -> list[list[Site]]:
    """Cut a group where the directions of its next layer would be more than an evaluation may carry."""
    chunks: list[list[Site]] = []
    carried = 0
    for site in group:
        carried += site.count
        if not chunks or carried > chunk_size:
            chunks.append([])
            carried = site.count
        chunks[-1].append(site)
    return chunks


def _direction_costs(sites: list[Site]) -> list[float]:
    """Return what one direction of each site costs from there to the loss, in products for one example.

    A direction is made as large as the output it starts from, and passes through all layers behind. In blocks, all
    directions together are made that large, and pass the products of the next layer so.
    """
    costs: list[float] = []
    behind = 0.0
    for site, after in zip(reversed(sites), [None, *reversed(sites[1:])], strict=True):
        if site.unit and after is not None:
            costs.append(behind - after.products)
        else:
            costs.append(site.width * MEMORY + behind)
        behind += site.products + site.shape[1:].numel() * MEMORY
    return costs[::-1]


def _accumulate(param: nn.Parameter, gradient: Tensor) -> None:
    gradient = gradient.to(param.dtype)
    param.grad = gradient if param.grad is None else param.grad.add_(gradient)
