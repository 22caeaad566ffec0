"""How much memory a step takes, counted in bytes above what exists before it."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler is talkative otherwise


def peak_bytes(step: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Return the most memory that ``step()`` holds at once above what exists before it, in bytes.

    Parameters, the batch and an optimizer's state exist before it; activations, directions, gradients and temporary
    results do not. On the CPU the allocations are read from PyTorch's profiler, on CUDA from its allocator. A step that
    has run before is measured best: the first one also makes what is kept for the next.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as trace:
        step()
    held = peak = 0
    for event in trace.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak
