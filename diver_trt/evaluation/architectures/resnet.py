"""Residual networks (arXiv 1512.03385), from Hugging Face `transformers`."""

from __future__ import annotations

from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

from diver_trt.evaluation.architectures.hugging_face import Logits


def build(name: str, classes: int, _: int) -> nn.Module:
    """Build a ResNet with basic blocks.

    `resnet-small` has three blocks and 16, 32 and 64 channels, and no pooling after the first
    convolution: 32 px would end as a single value per channel. `resnet18-in` normalises each image
    by itself, as the networks of IDC and Minimax do.
    """
    small = name == "resnet-small"
    config = ResNetConfig(
        layer_type="basic",
        embedding_size=16 if small else 64,
        hidden_sizes=[16, 32, 64] if small else [64, 128, 256, 512],
        depths=[1, 1, 1] if small else [2, 2, 2, 2],
        num_labels=classes,
    )
    network = ResNetForImageClassification(config)
    if small:
        network.resnet.embedder.pooler = nn.Identity()
    if name == "resnet18-in":
        _use_instance_norm(network)
    return Logits(network)


def _use_instance_norm(network: nn.Module) -> None:
    # A list, since modules are replaced on the way.
    for module in list(network.modules()):
        for child_name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                channels = child.num_features
                # One group per channel is instance normalisation with an affine map.
                setattr(module, child_name, nn.GroupNorm(channels, channels))
