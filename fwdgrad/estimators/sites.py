"""Sites: the calls of layers in a forward pass whose outputs can be perturbed and whose gradients are local."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fwdgrad.dual import Blocks, bypasses, keeps_blocks, perturb, perturbed
from fwdgrad.estimators.local_gradients import LOCAL_GRADIENTS
from fwdgrad.estimators.parts import find_parts, piece_size
from fwdgrad.functional import FunctionalModel
from fwdgrad.randomness import KeyedGenerator

_RELU = {F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}
MEMORY = 64  # as many products as passing a value through memory takes: to make it, add to it, cut it off
_PROBES = 3  # how often to look for influence, with other random weights: a ReLU may be off by chance


@dataclass(frozen=True)
class Site:
    """One call of a layer in a forward pass."""

    layer: str
    """Name of the layer in the model."""
    call: int
    """Which call of the layer in the pass, from 0."""
    width: int
    """Outputs for one example, in one piece if they are in pieces."""
    into_relu: bool
    """The output goes into a ReLU and nowhere else."""
    shape: torch.Size
    """Shape of the output."""
    products: int
    """Products that make the output for one example."""
    parts: tuple[int, ...] = ()
    """In how many pieces each dimension is, each with influence on one part of the losses only."""
    space: str = "activity"
    """What is perturbed: ``activity``, the output, or ``weight``."""
    unit: int = 0
    """The directions share out the output in blocks of multiples of this many entries; 0: not in blocks."""
    count: int = 1
    """Number of directions."""


@contextmanager
def at_sites(
    model: nn.Module, sites: list[Site], act: Callable[[Site, nn.Module, Tensor, Tensor], Tensor]
) -> Iterator[None]:
    """Call ``act(site, layer, input, output)`` in each site's forward pass; what it returns becomes the output."""
    handles = []
    for name in dict.fromkeys(site.layer for site in sites):
        chosen = {site.call: site for site in sites if site.layer == name}
        counter = count()

        def hook(
            layer: nn.Module,
            inputs: tuple[Any, ...],
            output: Tensor,
            chosen: dict[int, Site] = chosen,
            calls: Iterator[int] = counter,
        ) -> Tensor | None:
            site = chosen.get(next(calls))
            return None if site is None else act(site, layer, inputs[0], output)

        handles.append(model.get_submodule(name).register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def find_sites(model: nn.Module, function: FunctionalModel) -> tuple[list[Site], Tensor]:
    """Run the function once on plain tensors; return the calls of the layers with a local gradient, and the losses."""
    found: list[tuple[str, int, Tensor]] = []
    handles = []
    for name, layer in model.named_modules():
        if type(layer) in LOCAL_GRADIENTS and any(p.requires_grad for p in layer.parameters(recurse=False)):

            def hook(layer: nn.Module, inputs: Any, output: Tensor, name: str = name) -> None:
                found.append((name, sum(other == name for other, _, _ in found), output))

            handles.append(layer.register_forward_hook(hook))
    readers = _Readers()
    try:
        with torch.no_grad(), readers:
            losses = function(function.params)[0]
    finally:
        for handle in handles:
            handle.remove()
    sites = [
        Site(
            name,
            call,
            output.shape[1:].numel(),
            readers.only_relu(output),
            output.shape,
            output.shape[1:].numel() * _fan_in(model.get_submodule(name)),
        )
        for name, call, output in found
    ]
    return sites, losses


def find_pieces(model: nn.Module, function: FunctionalModel, sites: list[Site], losses: Tensor) -> list[Site]:
    """Find out which pieces of each site have influence on one part of the losses only.

    Parameters are random meanwhile: a weight that is zero at the start will not stay so.
    """
    found = []
    for site in sites:
        parts = tuple(losses.shape[1:])
        for draw in range(_PROBES):
            params = _random_params(function.params, draw)

            def derive(directions: Tensor, site: Site = site, params: Mapping[str, Tensor] = params) -> Tensor:
                def act(site: Site, layer: nn.Module, x: Tensor, output: Tensor) -> Tensor:
                    return perturb(output, directions.to(output))

                with at_sites(model, [site], act):
                    return perturbed(lambda: function(params))[1]

            parts = find_parts(site.shape, parts, derive)
        found.append(replace(site, parts=parts, width=piece_size(site.shape, parts)))
    return found


def find_unit(model: nn.Module, function: FunctionalModel, site: Site) -> int:
    """Find out in what units the next product takes a site's output in blocks: entries (1), channels, or not (0).

    Of one in the weights, the rows of the weight are shared out, each of which makes a channel.
    """
    channels, entries = site.shape[1], site.shape[1:].numel()
    positions = entries // channels
    if site.space == "activity" and _keeps_blocks(model, function, site, entries // 2 // positions * positions + 1):
        return 1
    return positions if _keeps_blocks(model, function, site, -(-channels // 2) * positions) else 0


def _keeps_blocks(model: nn.Module, function: FunctionalModel, site: Site, size: int) -> bool:
    def act(site: Site, layer: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        return perturb(output, Blocks(torch.ones_like(output), size))

    with at_sites(model, [site], act):
        return keeps_blocks(lambda: function(function.params))


def group_sites(model: nn.Module, function: FunctionalModel, sites: list[Site]) -> list[list[Site]]:
    """Cut the sites, in their order, into groups in which each site's output has influence through the next only."""
    groups: list[list[Site]] = []
    for i, site in enumerate(sites):
        if i > 0 and not _bypasses(model, function, sites[i - 1], site):
            groups[-1].append(site)
        else:
            groups.append([site])
    return groups


def _bypasses(model: nn.Module, function: FunctionalModel, first: Site, second: Site) -> bool:
    """Say whether what the first site puts out has influence on the losses by a path around the second."""

    def act(site: Site, layer: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        return perturb(output, torch.ones_like(output).unsqueeze(0)) if site is first else output.detach()

    with at_sites(model, [first, second], act):
        return bypasses(lambda: function(function.params))


def _fan_in(layer: Any) -> int:
    """Return how many products of a layer make one of its outputs."""
    plain_product = isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    return layer.weight.shape[1:].numel() if plain_product else 1


def _random_params(params: Mapping[str, Tensor], draw: int) -> dict[str, Tensor]:
    """Return random values for parameters, of the size that keeps what a layer computes of order one."""
    generator = KeyedGenerator(0, draw)
    sizes = {
        name: math.sqrt(max(param.numel() // max(len(param), 1), 1)) for name, param in params.items() if param.dim()
    }
    return {name: generator.normal(name, param)[0] / sizes.get(name, 1.0) for name, param in params.items()}


def check_per_example(losses: Tensor, batch: int, layer: str) -> None:
    """Raise ValueError unless there is one loss for each example."""
    if losses.dim() == 0:
        raise ValueError(
            "activity perturbation needs per-example losses: return a vector from the closure, "
            "for instance F.cross_entropy(model(x), y, reduction='none')"
        )
    if losses.shape[0] != batch:
        raise ValueError(
            f"{layer}: the first dimension of its output must be the batch of {losses.shape[0]} examples, got {batch}"
        )


class _Readers(TorchFunctionMode):
    """Notes which PyTorch functions read each tensor."""

    def __init__(self) -> None:
        super().__init__()
        self._readers: dict[int, list[Any]] = {}

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(result)):  # not a shape or a dtype
            for leaf in pytree.tree_leaves((args, kwargs)):
                if isinstance(leaf, Tensor):
                    self._readers.setdefault(id(leaf), []).append(func)
        return result

    def only_relu(self, output: Tensor) -> bool:
        """Say whether a tensor, still alive, went into one ReLU and nowhere else."""
        readers = self._readers.get(id(output), [])
        return len(readers) > 0 and all(func in _RELU for func in readers)
