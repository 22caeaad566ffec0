"""Building blocks of present image models, written as their users write them: nothing here knows of fwdgrad."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Built = tuple[nn.Module, Callable[[Any], Tensor]]


class DropPath(nn.Module):
    """Drops whole residual branches, example by example."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = 1 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * mask.div_(keep)


class LayerScale(nn.Module):
    def __init__(self, width: int, init: float = 1e-6) -> None:
        super().__init__()
        self.gamma = nn.Parameter(init * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class LayerNorm2d(nn.LayerNorm):
    """Normalises the channels of an image."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.expand, self.reduce = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale, self.drop = LayerScale(width), DropPath(0.3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x).permute(0, 2, 3, 1)
        y = self.scale(self.reduce(F.gelu(self.expand(self.norm(y)))))
        return x + self.drop(y.permute(0, 3, 1, 2))


class GlobalResponseNorm(nn.Module):
    """Of ConvNeXt V2, with its zero-initialised weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.zeros(1, width, 1, 1)), nn.Parameter(torch.zeros(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        size = torch.norm(x, p=2, dim=(2, 3), keepdim=True)
        return self.gamma * (x * size / (size.mean(1, keepdim=True) + 1e-6)) + self.beta + x


class SqueezeExcite(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(width, width // 2, 1), nn.Conv2d(width // 2, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.expand(F.relu(self.reduce(gate), inplace=True)))


class InvertedResidual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, 2 * width, 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.Hardswish(inplace=True),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.SiLU(inplace=True),
            SqueezeExcite(2 * width),
            nn.Conv2d(2 * width, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.drop = DropPath(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.layers(x))


class WindowAttention(nn.Module):
    """Attention within windows, with a learned relative position bias and a mask for shifted windows."""

    def __init__(self, width: int, window: int = 4, heads: int = 2, shift: int = 2) -> None:
        super().__init__()
        self.window, self.heads, self.shift = window, heads, shift
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.bias_table, std=0.02)
        at = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        offset = (at[:, :, None] - at[:, None, :]).permute(1, 2, 0) + window - 1
        self.register_buffer("index", offset[..., 0] * (2 * window - 1) + offset[..., 1], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        n = self.window
        x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        x = x.view(b, h // n, n, w // n, n, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, n * n, c)
        q, k, v = self.qkv(x).reshape(len(x), n * n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        attention = (q * (c // self.heads) ** -0.5) @ k.transpose(-2, -1)
        bias = self.bias_table[self.index.view(-1)].view(n * n, n * n, -1).permute(2, 0, 1).contiguous()
        attention = attention + bias.unsqueeze(0)
        region = torch.zeros(h, w)
        for i, rows in enumerate((slice(0, -n), slice(-n, -self.shift), slice(-self.shift, None))):
            for j, columns in enumerate((slice(0, -n), slice(-n, -self.shift), slice(-self.shift, None))):
                region[rows, columns] = 3 * i + j
        region = region.view(h // n, n, w // n, n).permute(0, 2, 1, 3).reshape(-1, n * n)
        mask = (region[:, None] - region[:, :, None]).ne(0) * -100.0
        attention = attention.view(b, -1, self.heads, n * n, n * n) + mask[:, None]
        attention = attention.view(-1, self.heads, n * n, n * n).softmax(-1)
        x = self.out((attention @ v).transpose(1, 2).reshape(-1, n * n, c))
        x = x.view(b, h // n, w // n, n, n, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return torch.roll(x, (self.shift, self.shift), (1, 2))


class WindowBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attention = nn.LayerNorm(width), nn.LayerNorm(width), WindowAttention(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * width, width))
        self.scale1, self.scale2, self.drop = LayerScale(width), LayerScale(width), DropPath(0.2)

    def forward(self, x: Tensor) -> Tensor:
        y = x.permute(0, 2, 3, 1)
        y = y + self.drop(self.scale1(self.attention(self.norm1(y))))
        y = y + self.drop(self.scale2(self.mlp(self.norm2(y))))
        return y.permute(0, 3, 1, 2)


class StandardisedConv(nn.Conv2d):
    """A convolution whose weight is standardised in every pass, through batch_norm as timm does it."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return self._conv_forward(x, weight, self.bias)


class BlurPool(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", (taps[:, None] * taps).expand(width, 1, 3, 3).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.kernel, stride=2, groups=x.shape[1])


class Mixer(nn.Module):
    def __init__(self, width: int, tokens: int = 64) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(tokens, 8), nn.GELU(), nn.Linear(8, tokens))
        self.channels = nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width))

    def forward(self, x: Tensor) -> Tensor:
        y = x.flatten(2).transpose(1, 2)
        y = y + self.tokens(self.norm1(y).transpose(1, 2)).transpose(1, 2)
        y = y + self.channels(self.norm2(y))
        return y.transpose(1, 2).reshape_as(x)


class SwiGLUBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.gate, self.out = (
            LayerNorm2d(width),
            nn.Conv2d(width, 4 * width, 1),
            nn.Conv2d(2 * width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.gate(self.norm(x)).chunk(2, dim=1)
        return x + self.out(F.silu(a) * b)


class CosineAttention(nn.Module):
    """Attention on normalised queries and keys, with a learned temperature that is clamped."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.temperature = nn.Parameter(torch.log(10 * torch.ones(1)))

    def forward(self, x: Tensor) -> Tensor:
        y = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(y).chunk(3, dim=-1)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        scores = scores * torch.clamp(self.temperature, max=4.6).exp()
        return x + self.out(scores.softmax(-1) @ v).transpose(1, 2).reshape_as(x)


def network(*blocks: nn.Module, width: int = 8) -> Built:
    model = nn.Sequential(
        nn.Conv2d(3, width, 2, stride=2), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4)
    )
    x, y = torch.randn(3, 3, 16, 16), torch.tensor([0, 1, 2])
    return model, lambda m: F.cross_entropy(m(x), y, label_smoothing=0.1, reduction="none")


BLOCKS: dict[str, Callable[[], Built]] = {
    "convnext": lambda: network(ConvNeXtBlock(8)),
    "global_response_norm": lambda: network(GlobalResponseNorm(8)),
    "squeeze_excite": lambda: network(SqueezeExcite(8)),
    "inverted_residual": lambda: network(InvertedResidual(8)),
    "window_attention": lambda: network(WindowBlock(8)),
    "standardised_conv": lambda: network(StandardisedConv(8, 8, 3), nn.GroupNorm(2, 8), nn.ReLU()),
    "blur_pool": lambda: network(nn.MaxPool2d(2, stride=1), BlurPool(8), nn.Mish()),
    "mixer": lambda: network(Mixer(8)),
    "swiglu": lambda: network(SwiGLUBlock(8)),
    "cosine_attention": lambda: network(CosineAttention(8)),
}
