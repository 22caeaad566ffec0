"""Matrix products and linear layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.forms import multilinear

multilinear(torch.matmul)
multilinear(torch.mm)
multilinear(torch.nn.functional.linear)
Any, Tensor
