"""Small whole models for the tests: (model, closure) by name, in float64, with the mode that the name tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

Built = tuple[nn.Module, Callable[[Any], Tensor]]


class CharGPT(nn.Module):
    """Two causal blocks, learned positions, tied input and output embeddings."""

    def __init__(self, tokens: int = 11, width: int = 8, context: int = 6, dropout: float = 0.1) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(tokens, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, tokens, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x) + self.positions(torch.arange(x.shape[1]))
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


class Block(nn.Module):
    def __init__(self, width: int, dropout: float, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(self.first(x)).view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        p = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=p)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
        return x + self.mlp(self.second(x))


class LSTMClassifier(nn.Module):
    def __init__(self, packed: bool = False) -> None:
        super().__init__()
        self.packed = packed
        self.embedding = nn.Embedding(9, 5, padding_idx=0)
        self.lstm = nn.LSTM(5, 6, num_layers=2, bidirectional=True, dropout=0.2, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        h: Any = self.embedding(x)
        if self.packed:
            h = nn.utils.rnn.pack_padded_sequence(h, (x != 0).sum(1), batch_first=True, enforce_sorted=False)
        _, (h, _) = self.lstm(h)
        return self.head(torch.cat((h[-2], h[-1]), dim=1))


class UNet(nn.Module):
    """Two levels down and up, with transposed convolutions and concatenated skips."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = self.stage(1, 4), self.stage(4, 6), self.stage(6, 8)
        self.up2, self.up1 = nn.ConvTranspose2d(8, 6, 2, stride=2), nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.join2, self.join1 = self.stage(12, 6), self.stage(8, 4)
        self.out = nn.Conv2d(4, 2, 1)

    @staticmethod
    def stage(i: int, o: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(i, o, 3, padding=1, bias=False),
            nn.BatchNorm2d(o),
            nn.ReLU(inplace=True),
            nn.Conv2d(o, o, 3, padding=1),
            nn.GroupNorm(2, o),
            nn.SiLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.up2(self.bottom(F.max_pool2d(b, 2)))
        d = self.up1(self.join2(torch.cat((b, c), dim=1)))
        return self.out(self.join1(torch.cat((a, d), dim=1)))


def images(size: int, channels: int = 3, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, size, size)


def classifier(model: nn.Module, x: Tensor, classes: int = 4, reduction: str = "mean") -> Built:
    y = torch.arange(len(x)) % classes
    return model, lambda m: F.cross_entropy(m(x), y, reduction=reduction)


def resnet() -> Built:
    return classifier(torchvision.models.resnet18(num_classes=4), images(32))


def vit() -> Built:
    model = torchvision.models.VisionTransformer(
        32, 8, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, dropout=0.1, attention_dropout=0.1, num_classes=4
    )
    nn.init.normal_(model.heads.head.weight)  # zero, else, so that almost all derivatives are
    return classifier(model, images(32))


def char_gpt() -> Built:
    x = torch.randint(11, (3, 6))
    return CharGPT(), lambda m: F.cross_entropy(m(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())


def lstm(packed: bool = False) -> Built:
    x = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 1, 0, 0], [8, 2, 8, 4, 0]])
    return classifier(LSTMClassifier(packed), x, 3)


def unet() -> Built:
    x, y = images(16, 1), torch.randint(2, (2, 16, 16))
    return UNet(), lambda m: F.cross_entropy(m(x), y)


def transformer() -> Built:
    source, target = torch.randn(2, 5, 8), torch.randn(2, 4, 8)
    mask = nn.Transformer.generate_square_subsequent_mask(4, dtype=torch.float64)
    model = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
    return model, lambda m: F.mse_loss(m(source, target, tgt_mask=mask, tgt_is_causal=True), target)


def regularised_mlp() -> Built:
    model = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)),
        nn.AlphaDropout(0.2),
        nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)),
        nn.BatchNorm1d(8, momentum=None),
        nn.RReLU(),
        nn.Dropout(0.3),
        nn.utils.parametrizations.orthogonal(nn.Linear(8, 8)),
        nn.Linear(8, 4),
    )
    return classifier(model, torch.randn(5, 6), reduction="none")


MODELS: dict[str, Callable[[], Built]] = {
    "resnet18": resnet,
    "vit": vit,
    "char_gpt": char_gpt,
    "lstm": lstm,
    "lstm_packed": lambda: lstm(packed=True),
    "unet": unet,
    "transformer": transformer,
    "regularised_mlp": regularised_mlp,
    "mobilenet_v3_small": lambda: classifier(
        torchvision.models.mobilenet_v3_small(num_classes=4, width_mult=0.25), images(32)
    ),
    "densenet": lambda: classifier(torchvision.models.DenseNet(4, (2, 2), 8, num_classes=4), images(32)),
}


def build(name: str, training: bool) -> Built:
    """Return a model in float64 that is the same at every call, and the closure that gives its loss."""
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        model, closure = MODELS[name]()
    finally:
        torch.set_default_dtype(default)
    return model.double().train(training), closure
