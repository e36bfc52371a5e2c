"""Vision transformers (arXiv 2010.11929), from Hugging Face `transformers`."""

from __future__ import annotations

from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from diver_trt.evaluation.architectures.hugging_face import Logits

BASE = {"patch_size": 16}
"""The defaults of transformers are ViT-B/16's."""
SMALL = {
    "patch_size": 4,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "initializer_range": 0.1,  # about 1 / sqrt(64); the default suits 768 channels
}


def build(name: str, classes: int, side: int) -> nn.Module:
    """Build a vision transformer; `vit-small` has 64 channels, three layers and 4-px patches."""
    settings = SMALL if name == "vit-small" else BASE
    return Logits(
        ViTForImageClassification(ViTConfig(**settings, image_size=side, num_labels=classes))
    )
