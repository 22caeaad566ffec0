"""How K directional derivatives become an estimate when the directions are not simply averaged."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fwdgrad.tangents import Tangent


def projection_coefficients(derivatives: Tensor, tangents: Mapping[str, Tangent]) -> Tensor:
    """Return ``alpha`` with ``sum_k alpha_k v_k = P/r V (V^T V)^+ V^T g``: the gradient projected onto the directions.

    V has the K directions as columns, ``V^T g`` are the derivatives, r is the rank of V. The projection is the nearest
    to the gradient that the directions can express, and has no more variance than their mean; at ``r = P`` it is exact.
    The mean of a projection onto a random subspace of r dimensions is ``r/P`` times the identity if the distribution of
    the directions does not change when coordinates are exchanged or change sign. This holds for ``normal``,
    ``rademacher``, ``sphere``, ``sparse``, ``coordinate`` and ``orthogonal``: the estimate is unbiased and its second
    moment is ``P/r |g|^2``, where K normals have ``(P + K + 1)/K |g|^2`` in the mean. For ``low_rank`` and a user's own
    directions it may be biased: the share of the projection that a parameter gets need not be that of its entries (the
    shares sum to r). With K far below the number of entries of every parameter that is little.

    Only the Gram matrix is formed, from the tangents as they are. It is inverted by its eigenvalues rather than by
    Cholesky's factors, which do not exist where directions depend on each other; those below rounding are left out.

    Args:
        derivatives: ``v_k . g``, shape (K,). Directions for which it is not finite are left out.
        tangents: the K directions.

    Returns:
        The coefficients, shape (K,), in the dtype of the derivatives.

    Raises:
        TypeError: if the directions are per example.

    Source: Fluegel et al., "Multi-Tangent Forward Gradients", 2024, arXiv:2410.17764; they take the projection without
    the factor P/r, which makes it unbiased.
    """
    grams = [tangent.gram() for tangent in tangents.values()]
    epsilon = max(torch.finfo(gram.dtype).eps for gram in grams)
    gram = torch.stack([gram.to(derivatives.device, torch.float64) for gram in grams]).sum(0)
    valid = torch.isfinite(derivatives) & (gram.diagonal() > 0)
    # Directions of different lengths are brought to the same, and those left out to zero.
    scales = torch.where(valid, gram.diagonal().rsqrt(), 0.0)
    values, vectors = torch.linalg.eigh(scales.unsqueeze(1) * gram * scales)
    kept = values > 10 * len(values) * epsilon
    inverse = torch.where(kept, 1 / values, 0.0)
    right = scales * torch.where(valid, derivatives, 0.0).double()
    count = sum(tangent.shape.numel() for tangent in tangents.values())
    alpha = scales * (vectors @ (inverse * (vectors.T @ right))) * (count / kept.sum().clamp_min(1).double())
    return alpha.to(derivatives.dtype)
