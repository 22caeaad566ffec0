"""The local mixer: an MLP-Mixer built so that losses of its patches and channel groups do not interfere.

Source: Ren et al., "Scaling Forward Gradient With Local Losses", 2023, arXiv:2210.03310, section 4 and appendix. Within
a block tokens are mixed first, then channels, then channels within groups, so that each value of the later layers has
influence on one patch, and in the end on one group, of the block's output only. Normalisation has no parameters.
Different from the paper, the head of the last block is the classifier; the paper trains another one beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fwdgrad.models.blocks import GroupLinear, LocalBlocks, PartedLinear
from fwdgrad.models.networks import check_size, check_sizes


def local_mixer(
    input_shape: Sequence[int],
    num_classes: int,
    blocks: int = 1,
    patches: int = 1,
    channels: int = 512,
    groups: int = 16,
) -> LocalBlocks:
    """Build a local mixer; the default is the paper's M/1/16.

    The paper's S/1/1 has 256 channels and 1 group, its M/8/16 for CIFAR-10 4 blocks and 8 patches.

    Args:
        input_shape: shape (C, H, W) of one image.
        num_classes: number of logits.
        blocks: number of blocks.
        patches: patches along the height and along the width, which both have to be divisible by it.
        channels: channels of each patch.
        groups: groups of channels, each with a part of its own in a block's prediction.

    Raises:
        ValueError: if a size is not positive or does not divide what it should.
    """
    check_sizes("input_shape", input_shape)
    sizes = {"num_classes": num_classes, "blocks": blocks, "patches": patches, "channels": channels, "groups": groups}
    for name, size in sizes.items():
        check_size(name, size)
    if len(input_shape) != 3 or input_shape[1] % patches or input_shape[2] % patches:
        raise ValueError(
            f"local_mixer needs input_shape (channels, height, width) that {patches} patches divide, "
            f"got {tuple(input_shape)}"
        )
    if channels % groups or channels == groups:
        raise ValueError(f"groups must divide the {channels} channels into at least 2 each, got {groups}")
    width = input_shape[0] * input_shape[1] * input_shape[2] // patches**2
    first = nn.Sequential(
        Patches(patches),
        _norm(width),
        nn.Linear(width, channels),
        nn.ReLU(),
        nn.Unflatten(-1, (groups, channels // groups)),
        _norm(channels // groups),
        GroupLinear(groups, channels // groups, channels // groups),
        nn.ReLU(),
    )
    mixing = [MixerBlock(patches**2, channels, groups) for _ in range(blocks - 1)]
    heads = [PatchHead(channels, num_classes, groups) for _ in range(blocks)]
    return LocalBlocks([first, *mixing], heads, part_dims=2)


class Patches(nn.Module):
    """Cut images (B, C, H, W) into patches, (B, n * n, C * H / n * W / n)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, images: Tensor) -> Tensor:
        batch, channels, height, width = images.shape
        n = self.count
        cut = images.reshape(batch, channels, n, height // n, n, width // n)
        return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, n * n, -1)


class MixerBlock(nn.Module):
    """Mix tokens, channels, and channels within groups of values (B, tokens, groups, width); add the input."""

    def __init__(self, tokens: int, channels: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.norm = _norm(channels)
        self.mix_tokens = nn.Conv1d(tokens, tokens, 1)  # over the first dimension behind the batch
        self.mix_channels = nn.Linear(channels, channels)
        self.group_norm = _norm(channels // groups)
        self.mix_groups = GroupLinear(groups, channels // groups, channels // groups)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.mix_tokens(self.norm(x.flatten(2))))
        y = torch.relu(self.mix_channels(self.norm(y)))
        y = self.mix_groups(self.group_norm(y.unflatten(-1, (self.groups, -1))))
        return torch.relu(x + y)


class PatchHead(nn.Module):
    """Predict classes from values (B, patches, groups, width), as contributions (B, patches, groups, classes)."""

    def __init__(self, channels: int, classes: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(channels // groups)
        self.linear = PartedLinear(channels, classes, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x).flatten(2)) / x.shape[1]


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, elementwise_affine=False)
