"""Published networks have their published sizes, and scaled ones take small images."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import nn

from diver_trt.errors import UsageError
from diver_trt.evaluation.architectures import (
    ARCHITECTURES,
    Architecture,
    default_architectures,
    find_architecture,
)
from diver_trt.evaluation.image_set import ImageSet
from diver_trt.evaluation.protocols import QUICK
from diver_trt.evaluation.runs import evaluate

SMALL = [name for name in ARCHITECTURES if name.endswith("-small")]


@pytest.mark.parametrize(
    ("name", "classes", "side", "parameters"),
    [
        # torchvision's counts, https://docs.pytorch.org/vision/stable/models.html
        ("resnet18", 1000, 224, 11_689_512),
        ("mobilenetv2", 1000, 224, 3_504_872),
        ("shufflenetv2", 1000, 224, 2_278_604),
        ("efficientnet-b0", 1000, 224, 5_288_548),
        ("vit-b16", 1000, 224, 86_567_656),
        # an affine map for each channel, with or without running statistics
        ("resnet18-in", 1000, 224, 11_689_512),
        # DC's ConvNet for CIFAR-10, counted in its paper's code
        ("convnet3", 10, 32, 320_010),
    ],
)
def test_a_published_network_has_its_published_size(
    name: str, classes: int, side: int, parameters: int
) -> None:
    # On the meta device a network has shapes, and no values.
    with torch.device("meta"):
        net = ARCHITECTURES[name].build(classes, side)
    assert sum(weight.numel() for weight in net.parameters()) == parameters


@pytest.mark.parametrize("name", SMALL)
def test_a_scaled_network_takes_images_of_32_px(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = ARCHITECTURES[name].build(7, 32)
        images = torch.randn(4, 3, 32, 32)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0  # one batch gives the statistics
        net.train()(images)
        logits = net.eval()(images)
    assert logits.shape == (4, 7)
    # A signal that vanishes on the way gives every image the same logits.
    assert float(logits.detach().std(dim=0).mean()) > 1e-3


def test_batch_normalisation_averages_over_more_than_the_last_batch() -> None:
    for name in ("efficientnet-small", "mobilenet-small"):
        norms = [
            module
            for module in ARCHITECTURES[name].build(10, 32).modules()
            if isinstance(module, nn.BatchNorm2d)
        ]
        assert {norm.momentum for norm in norms} == {0.1}
        assert all(bool((norm.weight == 1).all()) for norm in norms)


def test_instance_norm_replaces_every_batch_norm() -> None:
    with torch.device("meta"):
        net = ARCHITECTURES["resnet18-in"].build(10, 64)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())


def test_shufflenet_alternates_the_channels_of_both_halves() -> None:
    from diver_trt.evaluation.architectures.shufflenet import Unit

    unit = Unit(4, 4, stride=1).eval()
    images = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 2, 2)
    output = unit(images)
    assert output[0, ::2, 0, 0].tolist() == [0.0, 1.0]
    torch.testing.assert_close(output[:, 1::2], unit.branch(images[:, 2:]))


@pytest.mark.parametrize(("name", "side"), [("vit-b16", 40), ("vit-small", 30), ("convnet6", 32)])
def test_images_that_a_network_cannot_take_are_refused(name: str, side: int) -> None:
    with pytest.raises(UsageError, match=rf"{name}: images of {side} px, expected \d+ px or more"):
        ARCHITECTURES[name].build(10, side)


def test_an_unknown_name_is_refused_with_all_names() -> None:
    with pytest.raises(UsageError, match="no such architecture; expected one of mlp, convnet"):
        find_architecture("resnet50")


@pytest.mark.parametrize("side", [1, 8, 28, 30, 32, 50, 64, 100, 128, 224, 256])
def test_the_default_architectures_take_images_of_their_size(side: int) -> None:
    names = default_architectures(side)
    for name in names:
        ARCHITECTURES[name].require(side)
    assert len(names) == 1 if side < 16 else len(names) >= 4


def test_a_toy_architecture_is_one_file_and_one_entry(
    train: ImageSet, held_out: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("toy_architecture")
    module.build = lambda name, classes, side: nn.Sequential(  # type: ignore[attr-defined]
        nn.Flatten(), nn.Linear(3 * side * side, classes)
    )
    monkeypatch.setitem(sys.modules, "toy_architecture", module)
    toy = Architecture(name="toy", title="a linear map", module="toy_architecture")
    monkeypatch.setitem(ARCHITECTURES, "toy", toy)
    protocol = replace(QUICK, steps=100)
    found = evaluate({"a": train}, held_out, architectures=["toy"], protocol=protocol, seeds=1)
    assert found.runs[0].accuracy > 50
