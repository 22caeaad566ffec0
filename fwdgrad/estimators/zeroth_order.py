"""Zeroth order: the forward gradient with differences of the loss in place of directional derivatives."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fwdgrad.directions import Direction, SampleFunction
from fwdgrad.engines import FiniteDifference
from fwdgrad.estimators.forward_gradient import ForwardGradient


class ZerothOrder(ForwardGradient):
    """Estimate the gradient as ``1/K sum_k (f(theta + h v_k) - f(theta - h v_k)) / 2h v_k``: SPSA, or MeZO.

    Two plain forward passes a direction, nothing else: for models with operations that have no forward-mode AD, and
    where the memory of inference is all there is. Directions are replayed from their key, so neither they nor displaced
    parameters exist beyond those of one layer. The parameters are not touched before the update: no pass leaves
    rounding errors in them, as adding and subtracting ``h v`` in place would, nor does one that is interrupted.

    Biased: the mean of the estimate is ``g + h^2/6 E[D^3 f[v, v, v] v] + O(h^4)``, which for normal directions is the
    gradient of the loss smoothed by a Gaussian of standard deviation h. One-sided differences have, for directions
    that are as likely as their opposites, the same bias, and their variance is larger by ``h^2/4 E|(v^T H v) v|^2``.
    Rounding adds an error of about ``epsilon |f| / h`` to each derivative, so that a smaller step is not always better.
    The reported loss is the mean of the 2K values, ``h^2/2 v^T H v`` above ``f(theta)`` on average. A model with
    buffers that depend on its parameters in training mode, as BatchNorm's do, costs one more pass, which also makes the
    loss exact.

    Args:
        direction: as in :class:`ForwardGradient`, but each parameter's must be drawn on its own: ``rademacher`` as in
            SPSA, ``normal`` as in MeZO, ``low_rank``, ...
        num_directions: K.
        step_size: h: each parameter is moved by about as much. On a network with kinks, such as ReLUs, the error falls
            more slowly than with h^2: on a trained MLP of 1.8 million weights in float32 it is a quarter of the
            derivative at 1e-3, a tenth at 1e-4, a twentieth at 1e-5. None means as in :class:`FiniteDifference`.
        antithetic: use central differences, 2K passes. Otherwise ``(f(theta + h v_k) - f(theta)) / h``, K + 1 passes;
            near a minimum the curvature then drowns the gradient (on that MLP: an error 2 to 10 times the derivative).
        seed: seed of the directions.
        optimizer: a ``FactoredSGD`` applies the estimate in place, drawing the directions again; for any other it is
            accumulated into ``p.grad``.
        reduce: as in :class:`ForwardGradient`, like the next two.
        clip_derivatives: clip differences at so many running medians.
        patience: after how many steps in a row with a difference that is not finite to stop.

    Raises:
        ValueError: if a word is not known, a number is not positive, or the direction cannot be replayed.

    Source: Spall, "Multivariate stochastic approximation using a simultaneous perturbation gradient approximation",
    1992, IEEE TAC 37(3), equation 2.2; Malladi et al., "Fine-Tuning Language Models with Just Forward Passes", 2023,
    arXiv:2305.17333, algorithm 1, which displaces the parameters in place.
    """

    def __init__(
        self,
        direction: str | Direction | SampleFunction = "rademacher",
        num_directions: int = 1,
        step_size: float | None = 1e-4,
        antithetic: bool = True,
        seed: int = 0,
        optimizer: torch.optim.Optimizer | None = None,
        reduce: Callable[[Tensor], Tensor] | None = None,
        clip_derivatives: float | None = None,
        patience: int = 10,
    ) -> None:
        engine = FiniteDifference(step_size, antithetic, exact_value=False)
        super().__init__(
            direction,
            num_directions,
            engine,
            seed=seed,
            optimizer=optimizer,
            replay=True,
            reduce=reduce,
            clip_derivatives=clip_derivatives,
            patience=patience,
        )
