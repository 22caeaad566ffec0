"""Every shipped network fits every dataset, and the paper's networks have the paper's shapes."""

from __future__ import annotations

import itertools
from pathlib import Path

import hydra
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import nn

from fwdgrad.models import conv, conv_small, logistic, mlp, torchvision_classifier

CONFIGS = Path(__file__).parents[1] / "configs"
MODELS = sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml"))
DATASETS = sorted(path.stem for path in (CONFIGS / "dataset").glob("*.yaml"))


def build(model: str, dataset: str, **changes: object) -> nn.Module:
    parts = {"model": f"model/{model}.yaml", "dataset": f"dataset/{dataset}.yaml"}
    config = OmegaConf.create({key: OmegaConf.load(CONFIGS / file) for key, file in parts.items()})
    config.model = OmegaConf.merge(config.model, changes)
    return hydra.utils.instantiate(config.model)


def number_of_weights(model: nn.Module) -> int:
    return sum(param.numel() for param in model.parameters())


@pytest.mark.parametrize(("model", "dataset"), list(itertools.product(MODELS, DATASETS)))
def test_every_model_fits_every_dataset(model, dataset):
    shape = OmegaConf.load(CONFIGS / f"dataset/{dataset}.yaml").input_shape
    network = build(model, dataset).eval()
    with torch.no_grad():
        logits = network(torch.randn(3, *shape))
    assert logits.shape == (3, 10)
    assert logits.isfinite().all()


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_a_training_step_with_gradients_for_all_weights(model):
    network = build(model, "digits").train()
    F.cross_entropy(network(torch.randn(4, 1, 8, 8)), torch.tensor([0, 1, 2, 3])).backward()
    assert all(param.grad is not None for param in network.parameters())


def test_the_networks_have_the_sizes_of_the_paper():
    shape = (1, 28, 28)
    assert number_of_weights(logistic(shape, 10)) == 784 * 10 + 10
    assert number_of_weights(mlp(shape, 10)) == (784 + 1) * 1024 + (1024 + 1) * 1024 + (1024 + 1) * 10
    first, other = (9 + 1) * 64, (9 * 64 + 1) * 64
    assert number_of_weights(conv(shape, 10)) == first + 3 * other + (64 * 7 * 7 + 1) * 1024 + (1024 + 1) * 10


def test_conv_has_the_layers_of_the_paper():
    block = ["Conv2d", "ReLU", "Conv2d", "ReLU", "MaxPool2d"]
    assert [type(layer).__name__ for layer in conv((1, 28, 28), 10)] == [
        *block,
        *block,
        "Flatten",
        "Linear",
        "ReLU",
        "Linear",
    ]


def test_mlp_has_a_relu_after_every_hidden_layer_and_none_at_the_end():
    layers = list(mlp((2, 3), 4, hidden=(5, 6)))
    assert [type(layer).__name__ for layer in layers] == ["Flatten", "Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert [layer.weight.shape for layer in layers if isinstance(layer, nn.Linear)] == [(5, 6), (6, 5), (4, 6)]


def test_dropout_comes_after_every_relu_and_is_no_layer_where_nothing_is_dropped():
    kinds = [type(layer) for layer in mlp((4,), 3, [5, 6], dropout=0.2)]
    hidden = [nn.Linear, nn.ReLU, nn.Dropout]
    assert kinds == [nn.Flatten, *hidden, *hidden, nn.Linear]
    assert nn.Dropout not in [type(layer) for layer in mlp((4,), 3, [5])]
    for value in (1.0, -0.1, "half", True):
        with pytest.raises(ValueError, match="dropout must be a number from 0 to 1, 1 excluded, got"):
            mlp((4,), 3, [5], dropout=value)


@pytest.mark.parametrize("build_network", [mlp, conv, conv_small])
def test_kaiming_keeps_the_size_of_values_from_layer_to_layer(build_network):
    torch.manual_seed(0)
    network = build_network((1, 28, 28), 10, init="kaiming")
    x, sizes = torch.randn(64, 1, 28, 28), []
    layers = [layer for layer in network if isinstance(layer, nn.Linear | nn.Conv2d)]
    for layer in layers:
        assert not layer.bias.any()
        gain = 1 if layer is layers[-1] else 2
        # A variance from n draws is off by sqrt(2 / n): five of these.
        expected = gain / layer.weight[0].numel()
        assert abs(layer.weight.var() / expected - 1) < 5 * (2 / layer.weight.numel()) ** 0.5
        layer.register_forward_hook(lambda layer, inputs, y: sizes.append(y.square().mean().item()))
    network(x)
    assert 0.5 < sizes[-2] / sizes[0] < 8  # each of the two max-poolings of conv about doubles them
    plain = build_network((1, 28, 28), 10)
    with torch.no_grad():
        assert plain(x).var(0).mean() < 0.1 * network(x).var(0).mean()


@pytest.mark.parametrize("build_network", [mlp, conv, conv_small])
def test_an_unknown_init_is_refused(build_network):
    with pytest.raises(ValueError, match=r"init must be one of \['pytorch', 'kaiming'\], got 'kaimin'.*'kaiming'"):
        build_network((1, 28, 28), 10, init="kaimin")


@pytest.mark.parametrize("build_network", [logistic, mlp])
def test_flat_features_are_taken(build_network):
    assert build_network((7,), 3)(torch.randn(2, 7)).shape == (2, 3)


def test_conv_takes_sizes_that_pooling_rounds_down():
    assert conv((2, 5, 11), 3, channels=4, hidden=8)(torch.randn(2, 2, 5, 11)).shape == (2, 3)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match=r"input_shape must be positive integers, such as \[32\], got \(1, 0\)"):
        logistic((1, 0), 10)
    with pytest.raises(ValueError, match=r"num_classes must be a positive integer, got 0"):
        mlp((4,), 0)
    with pytest.raises(ValueError, match=r"hidden must be positive integers, such as \[32\], got 32"):
        mlp((4,), 2, hidden=32)
    with pytest.raises(ValueError, match=r"channels must be a positive integer, got -1"):
        conv((1, 8, 8), 10, channels=-1)
    for shape in ((64,), (1, 3, 8)):
        with pytest.raises(ValueError, match=r"images of at least 4x4, got .*; mlp takes inputs of any shape"):
            conv(shape, 10)


def test_grey_images_are_repeated_and_colour_images_are_not():
    grey, colour = torchvision_classifier("resnet18", (1, 8, 8), 10), torchvision_classifier("resnet18", (3, 8, 8), 10)
    assert type(colour).__name__ == "ResNet"
    colour.load_state_dict(grey.network.state_dict())
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(grey.eval()(images), colour.eval()(images.repeat(1, 3, 1, 1)))


def test_small_images_can_be_resized():
    network = build("resnet18", "digits", name="squeezenet1_1", resize=32)
    assert network.eval()(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_arguments_reach_torchvision():
    network = build("resnet18", "cifar10", name="squeezenet1_1", dropout=0.25)
    assert [layer.p for layer in network.modules() if isinstance(layer, nn.Dropout)] == [0.25]


def test_what_torchvision_does_not_have_is_refused():
    with pytest.raises(
        ValueError, match=r"classification model of torchvision, got 'resnet19'; did you mean 'resnet18'\?"
    ):
        torchvision_classifier("resnet19", (3, 32, 32), 10)
    with pytest.raises(ValueError, match=r"resnet18 needs .* with 1 or 3 channels, got \(2, 8, 8\)"):
        torchvision_classifier("resnet18", (2, 8, 8), 10)
    with pytest.raises(ValueError, match=r"resize must be a positive integer, got 0"):
        torchvision_classifier("resnet18", (3, 8, 8), 10, resize=0)
