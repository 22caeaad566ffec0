"""What a tape is made of: values, the linear operations between them, and the sweep that transposes these.

A ``Value`` is one linear function of the inputs, a ``Node`` the operation that made it of others. Nothing holds the
nodes but the values that come after them: what does not lead to a result is gone at once, what does when it is used.
"""

from __future__ import annotations

import heapq
import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.errors import DualError

_numbers = itertools.count()


class Value:
    """A linear function of the inputs of which only the shape is known.

    It is output number ``index`` of a node; without a node it is an input, or, if ``is_zero``, zero.
    """

    __slots__ = ("device", "dtype", "index", "is_transposed", "is_zero", "node", "shape")

    def __init__(
        self,
        shape: torch.Size,
        dtype: torch.dtype,
        device: torch.device,
        node: Node | None = None,
        index: int = 0,
        is_zero: bool = False,
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self.device = device
        self.node = node
        self.index = index
        self.is_zero = is_zero
        self.is_transposed = False  # a matrix laid out column by column, as it would be if it had memory

    def dim(self) -> int:
        """Return the number of dimensions."""
        return len(self.shape)

    def zeros(self) -> Tensor:
        """Return the cotangent of a value that took no part in the result."""
        return torch.zeros(self.shape, dtype=self.dtype, device=self.device)


class Node:
    """A linear operation: how to pull its cotangents back, and what it saved for that.

    Args:
        name: of the operation, for messages.
        inputs: the values that it was applied to.
        pull: from the cotangents of its outputs, and its saved arguments, to those of its inputs (None: zero).
        saved: arguments of ``pull``.
        tensors: the plain tensors among them, which must not change until then.
    """

    __slots__ = ("inputs", "name", "number", "outputs", "pull", "saved", "several", "source", "versions")

    def __init__(
        self,
        name: str,
        inputs: Sequence[Value],
        pull: Callable[..., Sequence[Tensor | None]],
        saved: tuple[Any, ...],
        tensors: Sequence[Tensor],
    ) -> None:
        self.name = name
        self.inputs: Sequence[Value] | None = inputs
        self.pull: Callable[..., Sequence[Tensor | None]] | None = pull
        self.saved = saved
        self.several = False  # whether ``pull`` takes a list of cotangents, of as many outputs as there turn out to be
        self.versions = [(x, x._version) for x in tensors]
        self.source = _function_of_torch() if tensors else None
        self.number = next(_numbers)
        self.outputs: list[tuple[torch.Size, torch.dtype, torch.device]] = []

    def output(self, shape: Any, dtype: torch.dtype, device: torch.device) -> Value:
        """Return the next output of the operation."""
        self.outputs.append((shape, dtype, device))
        return Value(shape, dtype, device, self, len(self.outputs) - 1)

    def pulled(self, cotangents: list[Tensor | None]) -> Sequence[Tensor | None]:
        """Return the cotangents of the inputs."""
        assert self.pull is not None
        for x, version in self.versions:
            if x._version != version:
                raise DualError(
                    f"{self._described()}: a tensor of shape {tuple(x.shape)} that its derivative needs was changed in "
                    f"place after it was used (it is at version {x._version}, expected {version}); change a clone() of "
                    "it instead, or use the out-of-place operation"
                )
        if not self.several:
            return self.pull(cotangents[0], *self.saved)
        filled = [
            torch.zeros(shape, dtype=dtype, device=device) if u is None else u
            for u, (shape, dtype, device) in zip(cotangents, self.outputs, strict=True)
        ]
        return self.pull(filled, *self.saved)

    def _described(self) -> str:
        if self.source is None:
            return self.name
        from fwdgrad.dual.tensor import name_of

        return f"{name_of(self.source)} (at {self.name})"

    def release(self) -> None:
        """Forget everything that was saved, and what came before."""
        self.inputs = self.pull = None
        self.saved = ()
        self.versions = []


def _function_of_torch() -> Any:
    """Return the function of PyTorch whose rule is running, as the user knows it, for messages."""
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_code.co_name != "__torch_function__":
        frame = frame.f_back
    return None if frame is None else frame.f_locals.get("func")


def pull_back(
    results: Sequence[Value], cotangents: Sequence[Tensor], inputs: Sequence[Value], retain_graph: bool = False
) -> list[Tensor | None]:
    """Apply the transpose of the linear map from ``inputs`` to ``results``, from the last operation to the first.

    Each operation is forgotten as soon as it has been transposed, unless ``retain_graph``.

    Args:
        results: values.
        cotangents: one for each, of its shape and dtype.
        inputs: values without a node.
        retain_graph: whether the tape will be used again.

    Returns:
        The cotangent of each input, or None where no result depends on it.

    Raises:
        DualError: if a tensor that is needed was changed in place, or the tape has been used up.
    """
    sums = _Sums()
    waiting: dict[Node, list[Tensor | None]] = {}
    order: list[tuple[int, Node]] = []
    wanted = set(inputs)

    def receive(value: Value, u: Tensor) -> None:
        node = value.node
        if node is None:
            if value in wanted:
                sums.add(value, u)
            return
        if node not in waiting:
            waiting[node] = []
            heapq.heappush(order, (-node.number, node))
        sums.add((node, value.index), u)

    for value, u in zip(results, cotangents, strict=True):
        receive(value, u)
    while order:
        node = heapq.heappop(order)[1]
        del waiting[node]
        if node.pull is None or node.inputs is None:
            raise DualError(
                f"{node.name}: the tape was used up by an earlier call; pass retain_graph=True to all but the last"
            )
        given = [sums.pop((node, i)) for i in range(len(node.outputs))]
        inputs_of_node = node.inputs
        pulled = node.pulled(given)
        del given
        if not retain_graph:
            node.release()
        for value, cotangent in zip(inputs_of_node, pulled, strict=True):
            if cotangent is not None:
                receive(value, fitted(cotangent, value))
        del pulled
    return [sums.pop(value) for value in inputs]


class _Sums:
    """Sums of cotangents by key; the first is taken as it is, and only a sum of our own is written to."""

    def __init__(self) -> None:
        self._held: dict[Any, Tensor] = {}
        self._own: set[Any] = set()

    def add(self, key: Any, u: Tensor) -> None:
        held = self._held.get(key)
        if held is None:
            self._held[key] = u
        elif key in self._own:
            held.add_(u)
        else:
            self._held[key] = held + u
            self._own.add(key)

    def pop(self, key: Any) -> Tensor | None:
        self._own.discard(key)
        return self._held.pop(key, None)


def fitted(u: Tensor, value: Value) -> Tensor:
    """Return a cotangent in the shape and dtype of a value: the transpose of broadcasting and of promotion."""
    if u.shape != value.shape:
        u = u.sum_to_size(value.shape)
    if u.dtype is not value.dtype:
        if u.is_complex() and not value.dtype.is_complex:
            u = torch.real(u)
        u = u.to(value.dtype)
    return u
