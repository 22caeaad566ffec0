"""What a layer's output, or its weight, is perturbed by: K directions that share out the outputs among them."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fwdgrad.dual import Blocks, even_blocks, pushforward
from fwdgrad.estimators.local_gradients import LOCAL_GRADIENTS
from fwdgrad.estimators.parts import piece_basis, piece_size, sum_parts, weigh
from fwdgrad.randomness import KeyedGenerator
from fwdgrad.tangents import PerExample, Tangent


class Noise(Protocol):
    """Perturbs a layer along some directions and makes the layer's gradients from the derivatives along them."""

    count: int
    """K, the number of directions."""

    def tangents(self) -> Tensor | Blocks:
        """Return what the directions do to the layer's output, (K, *output.shape)."""

    def gradients(self, layer: nn.Module, x: Tensor, derivatives: Tensor) -> dict[str, Tensor]:
        """Return, by parameter name, the sum over examples of their gradients' estimates.

        Args:
            layer: the layer.
            x: its input.
            derivatives: of each example's loss along each direction, (K, B), or of its parts, (K, B, *parts).
        """


class BlockNoise:
    """Signs on the outputs of each example, shared out among K directions in blocks of neighbours.

    Direction k moves the outputs of its block S_k by independent signs e_j.
    With the derivative ``s_k = sum_{j in S_k} e_j g_j`` the estimate ``s_k e_j`` of g_j, j in S_k, is unbiased, since
    ``E[e_i e_j]`` vanishes unless i = j, and its second moment is ``sum_k |S_k| |g_{S_k}|^2``: about ``n / K |g|^2``
    for n outputs with influence, where K directions that each move all of them have ``(n + K - 1) / K |g|^2``. With a
    direction for each output the estimate is the exact gradient. Outputs without influence (``active`` false: a ReLU
    cuts them off) are not moved, nor counted in S_k. All K directions pass the next layer at the price of one
    (``dual.blocks``).

    Args:
        output: what is perturbed, (B, ...).
        size: outputs of one example in a block.
        active: which outputs have influence, of the output's shape; None: all.
        generator: draws the signs, one for each output.
        name: their name.
    """

    def __init__(self, output: Tensor, size: int, active: Tensor | None, generator: KeyedGenerator, name: str) -> None:
        signs = generator.signs(name, output.numel(), output.dtype, output.device).view(output.shape)
        self._signs = signs if active is None else signs * active
        self._blocks = Blocks(self._signs, size)
        self.count = len(self._blocks)

    def tangents(self) -> Blocks:
        """Return the directions, (K, *output.shape)."""
        return self._blocks

    def estimate(self, derivatives: Tensor) -> Tensor:
        """Return the estimate of each example's gradient by the output, from derivatives (K, B)."""
        each = derivatives.T.repeat_interleave(self._blocks.size, 1)[:, : self._signs[0].numel()]
        return each.reshape(self._signs.shape) * self._signs.to(derivatives.dtype)

    def gradients(self, layer: nn.Module, x: Tensor, derivatives: Tensor) -> dict[str, Tensor]:
        """Return the estimates of the sums over examples of the gradients by the layer's parameters."""
        return LOCAL_GRADIENTS[type(layer)](layer, x, self.estimate(derivatives))


class ActivityNoise:
    """As ``BlockNoise``, for any number of directions, outputs of any shape and losses in parts.

    Outputs with influence are dealt out one by one to the K directions, evenly.

    Args:
        output: what is perturbed, (B, ...).
        count: K; the number of values in a piece, and no signs, if there are no more of them.
        active: which outputs have influence, of the output's shape; None: all.
        generator: draws the signs, one for each output.
        name: their name.
        parts: in how many pieces each dimension is (``parts.py``).
    """

    def __init__(
        self,
        output: Tensor,
        count: int,
        active: Tensor | None,
        generator: KeyedGenerator,
        name: str,
        parts: tuple[int, ...] = (),
    ) -> None:
        batch, width = output.shape[0], output.shape[1:].numel()
        self._shape, self._parts = output.shape, parts
        self.count = min(count, piece_size(output.shape, parts))
        self._basis = piece_basis(output, parts) if self.count == piece_size(output.shape, parts) else None
        if self._basis is not None:
            return
        self._signs = generator.signs(name, batch * width, output.dtype, output.device).view(batch, width)
        if active is None:
            self._share = (torch.arange(width, device=output.device) % self.count).expand(batch, width)
        else:
            active = active.reshape(batch, width)
            self._signs = self._signs * active
            self._share = (active.cumsum(1) - 1).clamp_(min=0).remainder_(self.count)

    def tangents(self) -> Tensor:
        """Return the directions, (K, *output.shape)."""
        if self._basis is not None:
            return self._basis
        tangents = self._signs.new_zeros((self.count, *self._signs.shape))
        return tangents.scatter_(0, self._share.unsqueeze(0), self._signs.unsqueeze(0)).view(self.count, *self._shape)

    def estimate(self, derivatives: Tensor) -> Tensor:
        """Return the estimate of each example's gradient by the output, from derivatives (K, B) or (K, B, *parts)."""
        if derivatives.dim() > 2:
            return weigh(derivatives, self.tangents(), self._parts)
        if self._basis is not None:
            return derivatives.T.reshape(self._shape)
        return (derivatives.T.gather(1, self._share) * self._signs.to(derivatives.dtype)).view(self._shape)

    def gradients(self, layer: nn.Module, x: Tensor, derivatives: Tensor) -> dict[str, Tensor]:
        """Return the estimates of the sums over examples of the gradients by the layer's parameters."""
        return LOCAL_GRADIENTS[type(layer)](layer, x, self.estimate(derivatives))


class WeightNoise:
    """Signs in the weight of each example, ``v_b = a_b c_b^T``, shared out among K directions like ``BlockNoise``.

    The rows of the weight (n, *rest) are cut into K_o blocks and its columns dealt out to K_i shares, ``K = K_o K_i``;
    direction (k, l) moves the rows of block k by a and the columns of share l by c. The estimate ``s_{kl} a_i c_j`` is
    unbiased for each entry, with a second moment of about ``P / K |g|^2``; at K = P it is exact. Rows whose output is
    cut off by a ReLU, and columns whose input is zero, have no influence and are not moved.

    Args:
        layer: a linear layer or a convolution.
        x: its input.
        output: its output.
        count: K, rounded down to a product; up to n only the rows are shared out.
        active: which outputs have influence; None: all.
        generator: draws the signs.
        name: their name.
    """

    def __init__(
        self,
        layer: Any,
        x: Tensor,
        output: Tensor,
        count: int,
        active: Tensor | None,
        generator: KeyedGenerator,
        name: str,
    ) -> None:
        weight = layer.weight
        batch, rows, columns = output.shape[0], weight.shape[0], weight[0].numel()
        biased = layer.bias is not None  # a bias is one more column, whose input is 1
        self._outer, self._size = even_blocks(rows, count)
        inner = max(min(count // self._outer, columns + biased), 1) if self._outer == rows else 1
        self.count = self._outer * inner
        self._a = generator.signs(f"{name}/left", batch * rows, x.dtype, x.device).view(batch, rows)
        c = generator.signs(f"{name}/right", batch * columns, x.dtype, x.device).view(batch, columns)
        if isinstance(layer, nn.Linear) and x.dim() == 2:
            self._a, c = self._a if active is None else self._a * active, c * (x != 0)
        members = _members(columns + biased, inner, c)
        self._right = c * members[..., :columns]
        self._bias = members[..., columns:].expand(inner, batch, biased)
        self._layer, self._input = layer, x

    def tangents(self) -> Tensor | Blocks:
        """Return what the directions do to the layer's output, (K, *output.shape)."""
        layer, x, inner = self._layer, self._input, len(self._right)
        # One product for each share of the columns; the blocks of the rows only pick outputs from it.
        left, right = self._a.expand(inner, *self._a.shape), self._right.unflatten(2, layer.weight.shape[1:])
        directions: dict[str, Tangent] = {"weight": PerExample(layer.weight.shape, inner, lambda _: (left, right))}
        params = {"weight": layer.weight}
        if layer.bias is not None:
            directions["bias"] = PerExample(layer.bias.shape, inner, lambda _: (left * self._bias, None))
            params["bias"] = layer.bias
        product = F.linear if isinstance(layer, nn.Linear) else layer._conv_forward
        moved = pushforward(lambda p: product(x, p["weight"], p.get("bias")), params, directions)
        assert moved is not None
        in_rows = not isinstance(layer, nn.Linear) or x.dim() == 2  # then dimension 1 of the output is that of the rows
        if inner == 1 and in_rows:
            return Blocks(moved[0], self._size * moved.shape[3:].numel())
        axis = 2 if in_rows else -1
        blocks = torch.arange(moved.shape[axis], device=x.device) // self._size
        members = (blocks == torch.arange(self._outer, device=x.device).unsqueeze(1)).to(moved.dtype)
        shape = [self._outer, *[1] * moved.dim()]
        shape[axis + 1 if axis > 0 else axis] = moved.shape[axis]
        return (moved * members.view(shape)).flatten(0, 1)

    def gradients(self, layer: nn.Module, x: Tensor, derivatives: Tensor) -> dict[str, Tensor]:
        """Return the estimates of the sums over examples of the gradients by the layer's parameters."""
        s = sum_parts(derivatives, 2).view(self._outer, len(self._right), -1)
        s = s.repeat_interleave(self._size, 0)[: self._a.shape[1]]
        rows = s.permute(1, 2, 0) * self._a.to(s.dtype)
        weight = rows.flatten(0, 1).T @ self._right.to(s.dtype).flatten(0, 1)
        gradients = {"weight": weight.view(self._layer.weight.shape)}
        if self._layer.bias is not None:
            gradients["bias"] = (rows * self._bias.to(s.dtype)).sum((0, 1))
        return gradients


def _members(size: int, shares: int, like: Tensor) -> Tensor:
    """Return who is in which of some even shares, as 0 and 1, shape (shares, 1, size)."""
    members = torch.arange(size, device=like.device) % shares == torch.arange(shares, device=like.device).unsqueeze(1)
    return members.unsqueeze(1).to(like.dtype)
