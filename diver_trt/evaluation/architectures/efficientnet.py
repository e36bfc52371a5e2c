"""EfficientNet (arXiv 1905.11946), from Hugging Face `transformers`."""

from __future__ import annotations

from torch import nn
from transformers import EfficientNetConfig, EfficientNetForImageClassification

from diver_trt.evaluation.architectures.hugging_face import Logits

# The defaults of transformers are EfficientNet-B7's.
B0 = {
    "width_coefficient": 1.0,
    "depth_coefficient": 1.0,
    "hidden_dim": 1280,
    "dropout_rate": 0.2,
}
SMALL = {
    "width_coefficient": 0.35,
    "depth_coefficient": 0.4,
    "hidden_dim": 448,  # 1280 x 0.35, rounded as every width is
    "dropout_rate": 0.2,
    "strides": [1, 2, 2, 2, 1, 1, 1],  # 32 px end as 2 x 2 values: the sixth stage keeps its size
}


def build(name: str, classes: int, side: int) -> nn.Module:
    """Build an EfficientNet; `efficientnet-small` has B0's stages with a third of the channels."""
    settings = SMALL if name == "efficientnet-small" else B0
    config = EfficientNetConfig(**settings, image_size=side, num_labels=classes)
    return Logits(EfficientNetForImageClassification(config))
