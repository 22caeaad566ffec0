"""Any classification network of torchvision, by name, for grey or colour images."""

from __future__ import annotations

import difflib
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fwdgrad.models.networks import check_size, check_sizes


class RepeatChannels(nn.Module):
    """Show a grey image (B, 1, H, W) to a network that expects ``channels`` equal ones, without copying it."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, images: Tensor) -> Tensor:
        return images.expand(-1, self.channels, -1, -1)

    def extra_repr(self) -> str:
        return f"channels={self.channels}"


def torchvision_classifier(
    name: str, input_shape: Sequence[int], num_classes: int, resize: int | None = None, **kwargs: Any
) -> nn.Module:
    """Build a classification network of torchvision with random weights.

    Images with one channel are repeated to three; the network itself is not changed.

    Args:
        name: a name that ``torchvision.models.list_models(torchvision.models)`` lists, such as "resnet18".
        input_shape: shape (C, H, W) of one image, with 1 or 3 channels.
        num_classes: number of logits.
        resize: bring images to this height and width first, bilinearly; many networks need far more than 28 pixels.
        **kwargs: further arguments of the torchvision function.

    Raises:
        ValueError: if the name is not known or the input is not such an image.
        ImportError: if torchvision is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torchvision's own use of torch.jit
        from torchvision import models

    known = models.list_models(models)
    if name not in known:
        close = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "see torchvision.models.list_models()"
        raise ValueError(f"name must be a classification model of torchvision, got {name!r}; {hint}")
    check_sizes("input_shape", input_shape)
    check_size("num_classes", num_classes)
    if len(input_shape) != 3 or input_shape[0] not in (1, 3):
        raise ValueError(
            f"{name} needs input_shape (channels, height, width) with 1 or 3 channels, got {tuple(input_shape)}"
        )
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if input_shape[0] == 1:
        parts["repeat"] = RepeatChannels(3)
    if resize is not None:
        check_size("resize", resize)
        parts["resize"] = nn.Upsample((resize, resize), mode="bilinear", align_corners=False)
    parts["network"] = models.get_model(name, weights=None, num_classes=num_classes, **kwargs)
    return nn.Sequential(parts) if len(parts) > 1 else parts["network"]
