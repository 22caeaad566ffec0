"""Training in one call, for a notebook or a first try: ``fwdgrad.fit(model, train, validation, method="activity")``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from fwdgrad.data import Batches, Split
from fwdgrad.estimators import ActivityPerturbation, Backprop, Estimator, ForwardGradient, LocalLosses, ZerothOrder
from fwdgrad.models import LocalBlocks, local_blocks
from fwdgrad.randomness import KeyedGenerator
from fwdgrad.words import check_word

Data = tuple[Tensor, Tensor] | Split | Iterable[tuple[Tensor, Tensor]]

METHODS: dict[str, Callable[..., Estimator]] = {
    "fwdgrad": ForwardGradient,
    "fwdgrad_fast": lambda **options: ForwardGradient(**{"direction": "low_rank", "engine": "dual", **options}),
    "spsa": ZerothOrder,
    "activity": ActivityPerturbation,
    "local": LocalLosses,
    "backprop": Backprop,
}


class History(list[dict[str, float]]):
    """A row per epoch: epoch, train_loss, val_loss and val_accuracy where there are such, seconds since the start."""

    def __str__(self) -> str:
        if not self:
            return "no epoch finished"
        lines = ["  ".join(f"{key:>12}" for key in self[0])]
        lines += ["  ".join(f"{value:12.6g}" for value in row.values()) for row in self]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{self}</pre>"

    def plot(self, axes: Any = None) -> Any:
        """Draw the losses, and the accuracy on a second scale; return the matplotlib axes."""
        if axes is None:
            import matplotlib.pyplot as plt

            axes = plt.subplots(figsize=(6, 4))[1]
        epochs = [row["epoch"] for row in self]
        for key in ("train_loss", "val_loss"):
            if self and key in self[0]:
                axes.plot(epochs, [row[key] for row in self], label=key.replace("_", " "))
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss")
        axes.legend(loc="center right")
        if self and "val_accuracy" in self[0]:
            right = axes.twinx()
            right.plot(epochs, [row["val_accuracy"] for row in self], color="gray", linestyle="--")
            right.set_ylabel("val accuracy (dashed)")
        return axes


def fit(
    model: nn.Module,
    train: Data,
    validation: Data | None = None,
    *,
    method: str | Estimator = "activity",
    epochs: int = 10,
    batch_size: int = 64,
    lr: float = 1e-3,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> History:
    """Train a model and return its history; an interruption by the keyboard ends it early.

    Args:
        model: any module that maps a batch of inputs to outputs; it stays on its device.
        train: inputs and targets as a pair of tensors or as a ``fwdgrad.data.Split``, which are shuffled in every
            epoch, or any iterable of batches such as a ``DataLoader``.
        validation: likewise; scored after every epoch in evaluation mode.
        method: ``fwdgrad``, ``fwdgrad_fast``, ``spsa``, ``activity``, ``local`` (a model that is no
            ``LocalBlocks`` is cut into one by ``local_blocks``), ``backprop``, or an estimator.
        epochs: how often to go through ``train``.
        batch_size: examples a step, for tensors and splits.
        lr: learning rate of Adam, which falls along a cosine from epoch to epoch.
        loss: ``loss(outputs, targets)``, a scalar or per-example losses; cross-entropy by default.
        optimizer: instead of Adam; its learning rate is left alone.
        seed: seed of the directions and of the order of the examples.
        progress: show a progress bar.
        options: arguments of the estimator named by ``method``, such as ``num_directions=16``.

    Raises:
        ValueError: if the method is not known.
        TypeError: if the method cannot train such a model.
        FloatingPointError: if the loss is no longer finite.
    """
    estimator = make_estimator(method, seed, options)
    criterion = loss or (lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="none"))
    device = next(model.parameters()).device
    if method == "local" and not isinstance(model, LocalBlocks):
        if optimizer is not None:
            raise ValueError("give an optimizer only with a model in blocks, fwdgrad.local_blocks(model, inputs)")
        inputs = next(iter(batches(train, 2)))[0].to(device)
        model = local_blocks(model, inputs).to(device)  # shares the layers of the caller's model
    chosen = optimizer or torch.optim.Adam((param for param in model.parameters() if param.requires_grad), lr)
    schedule = None if optimizer else torch.optim.lr_scheduler.CosineAnnealingLR(chosen, epochs)
    history, bar = History(), tqdm(total=epochs, disable=not progress, unit="epoch")
    start = time.perf_counter()
    try:
        for epoch in range(epochs):
            model.train()
            losses = []
            for inputs, targets in batches(train, batch_size, epoch, seed):
                chosen.zero_grad()
                losses.append(estimator(model, make_closure(criterion, inputs.to(device), targets.to(device))))
                chosen.step()
            if schedule is not None:
                schedule.step()
            row = {"epoch": epoch + 1, "train_loss": torch.stack(losses).mean().item()}
            if not math.isfinite(row["train_loss"]):
                raise FloatingPointError(f"the loss is {row['train_loss']} in epoch {epoch + 1}; lower lr")
            if validation is not None:
                row |= score(model, batches(validation, 512), criterion, device)
            history.append({**row, "seconds": round(time.perf_counter() - start, 3)})
            bar.set_postfix({key: f"{value:.4f}" for key, value in row.items() if key != "epoch"})
            bar.update()
    except KeyboardInterrupt:
        pass
    finally:
        bar.close()
    return history


def make_closure(criterion: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Callable[[nn.Module], Tensor]:
    """Return the loss of one batch as a function of the model."""
    return lambda model: criterion(model(x), y)


def make_estimator(method: str | Estimator, seed: int, options: dict[str, Any]) -> Estimator:
    """Return the estimator meant by a word and its options, or the estimator itself."""
    if not isinstance(method, str):
        if options:
            raise ValueError(f"the options {sorted(options)} belong to a method given by a word, not to an estimator")
        return method
    check_word("method", method, METHODS)
    return METHODS[method](**options) if method == "backprop" else METHODS[method](**{"seed": seed, **options})


def batches(data: Data, batch_size: int, epoch: int | None = None, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches, in the order that belongs to the epoch or, without one, as they come."""
    if isinstance(data, Split):
        yield from Batches(data, batch_size, seed, shuffle=epoch is not None).epoch(epoch or 0)
    elif isinstance(data, tuple):
        inputs, targets = data
        order = torch.arange(len(inputs))
        if epoch is not None:
            generator = KeyedGenerator(seed, epoch).torch_generator("data/order", 0, order.device)
            order = torch.randperm(len(inputs), generator=generator)
        for part in order.split(batch_size):
            yield inputs[part.to(inputs.device)], targets[part.to(targets.device)]
    else:
        yield from data


@torch.no_grad()
def score(
    model: nn.Module,
    data: Iterable[tuple[Tensor, Tensor]],
    criterion: Callable[[Tensor, Tensor], Tensor],
    device: torch.device,
) -> dict[str, float]:
    """Return the mean loss over examples and, for classes, the accuracy; in evaluation mode."""
    training = model.training
    model.eval()
    count = correct = 0
    total, classes = 0.0, False
    for inputs, targets in data:
        x, y = inputs.to(device), targets.to(device)
        outputs = model(x)
        total += criterion(outputs, y).mean().item() * len(x)
        count += len(x)
        classes = y.dim() == 1 and not y.is_floating_point() and outputs.dim() == 2
        correct += int((outputs.argmax(1) == y).sum()) if classes else 0
    model.train(training)
    return {"val_loss": total / count} | ({"val_accuracy": correct / count} if classes else {})
