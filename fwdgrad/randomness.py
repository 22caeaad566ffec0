"""Random numbers keyed by (seed, step, direction index, parameter name).

The same key gives the same numbers, whatever the chunk, the rank or the order of the calls, so a direction can be drawn
again instead of being stored. PyTorch's global generator is neither read nor advanced.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

import torch
from torch import Tensor

_FEW = 256  # bytes


class KeyedGenerator:
    """Draw the random numbers of a few directions of one step.

    Args:
        seed: seed of the run.
        step: number of the training step.
        indices: the directions to draw, as indices among the K of this step; K' = len(indices) of them.
    """

    def __init__(self, seed: int, step: int, indices: range = range(1)) -> None:
        self.seed = seed
        self.step = step
        self.indices = indices
        self._generators: dict[torch.device, torch.Generator] = {}

    def __repr__(self) -> str:
        return f"KeyedGenerator(seed={self.seed}, step={self.step}, indices={self.indices})"

    def at(self, indices: range) -> KeyedGenerator:
        """Return a generator of other directions of the same step."""
        return KeyedGenerator(self.seed, self.step, indices)

    def key(self, name: str, index: int) -> int:
        """Return the 63-bit key of one parameter in one direction."""
        return int.from_bytes(self._bytes(name, index, 8), "big") >> 1

    def torch_generator(self, name: str, index: int, device: torch.device) -> torch.Generator:
        """Return a generator set to the key; it serves until the next call for the same device."""
        generator = self._generators.get(device)
        if generator is None:
            generator = self._generators[device] = torch.Generator(device)
        # The CPU generator keeps 32 bits of the seed: that two keys of a run meet is possible and harmless.
        return generator.manual_seed(self.key(name, index))

    def _bytes(self, name: str, index: int, size: int) -> bytes:
        """Return random bytes that are a function of the key alone, by the extendable hash function SHAKE128."""
        return hashlib.shake_128(f"{self.seed}/{self.step}/{index}/{name}".encode()).digest(size)

    def normal(self, name: str, like: Tensor) -> Tensor:
        """Draw standard normals of shape (K', *like.shape)."""
        values = torch.empty((len(self.indices), *like.shape), dtype=like.dtype, device=like.device)
        for slot, index in zip(values, self.indices, strict=True):
            slot.normal_(generator=self.torch_generator(name, index, like.device))
        return values

    def uniform(self, name: str, like: Tensor) -> Tensor:
        """Draw uniform numbers in [0, 1) of shape (K', *like.shape)."""
        values = torch.empty((len(self.indices), *like.shape), dtype=like.dtype, device=like.device)
        for slot, index in zip(values, self.indices, strict=True):
            slot.uniform_(generator=self.torch_generator(name, index, like.device))
        return values

    def signs(self, name: str, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Draw independent signs, +1 or -1 with probability 1/2 each, of shape (K', count)."""
        return self.all_signs({name: count}, dtype, device)[name]

    def all_signs(self, counts: Mapping[str, int], dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """Draw ``signs`` for several names at once, name -> (K', counts[name]), the same on every device.

        Eight signs come from one random byte, which selects them from a table; a hash function makes the bytes.
        """
        sizes = {name: -(-count // 8) for name, count in counts.items()}
        raw = b"".join([self._bytes(name, index, size) for index in self.indices for name, size in sizes.items()])
        rows = _expand(raw, dtype, device).view(len(self.indices), 8 * sum(sizes.values()))
        signs, start = {}, 0
        for name, count in counts.items():
            signs[name] = rows.narrow(1, start, count)
            start += 8 * sizes[name]
        return signs


def global_random_state(tensors: Iterable[Tensor]) -> Callable[[], None]:
    """Remember PyTorch's global random state, on the CPU and on the tensors' CUDA devices; return what restores it."""
    devices = {tensor.device for tensor in tensors if tensor.is_cuda}
    cpu = torch.get_rng_state()
    cuda = [(device, torch.cuda.get_rng_state(device)) for device in devices]

    def restore() -> None:
        torch.set_rng_state(cpu)
        for device, state in cuda:
            torch.cuda.set_rng_state(state, device)

    return restore


def _expand(raw: bytes, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the eight signs that each byte stands for, in one dimension."""
    if not raw:
        return torch.empty(0, dtype=dtype, device=device)
    if len(raw) <= _FEW:  # looking them up in Python is quicker than to start the operations below
        table = _sign_bytes(dtype)
        signs = torch.frombuffer(bytearray(b"".join([table[byte] for byte in raw])), dtype=dtype)
        return signs if device.type == "cpu" else signs.to(device)
    random = torch.frombuffer(bytearray(raw), dtype=torch.uint8).to(device)
    return torch.embedding(_sign_table(dtype, device), random.int()).view(-1)


@lru_cache(maxsize=16)
def _sign_table(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the eight signs that each byte stands for, shape (256, 8)."""
    bits = torch.arange(256).unsqueeze(1) >> torch.arange(8) & 1
    return (1 - 2 * bits).to(dtype=dtype, device=device)


@lru_cache(maxsize=16)
def _sign_bytes(dtype: torch.dtype) -> list[bytes]:
    """Return the same table as each row's bytes in memory."""
    return [bytes(row.view(torch.uint8).tolist()) for row in _sign_table(dtype, torch.device("cpu"))]
