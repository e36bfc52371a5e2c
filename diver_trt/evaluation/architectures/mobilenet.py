"""MobileNetV2 (arXiv 1801.04381), from Hugging Face `transformers`."""

from __future__ import annotations

from torch import nn
from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

from diver_trt.evaluation.architectures.hugging_face import Logits

DROPOUT = 0.2
"""Before the classifier, as torchvision has it.

The default of transformers, 0.8, is the share that TensorFlow's dropout keeps.
"""


def build(name: str, classes: int, side: int) -> nn.Module:
    """Build a MobileNetV2.

    `mobilenet-small` has 0.2 of the channels, and an output stride of 16 instead of 32 (the last
    stride becomes a dilation), so that 32 px end as 2 x 2 values.
    """
    small = name == "mobilenet-small"
    config = MobileNetV2Config(
        depth_multiplier=0.2 if small else 1.0,
        output_stride=16 if small else 32,
        classifier_dropout_prob=DROPOUT,
        image_size=side,
        num_labels=classes,
    )
    return Logits(MobileNetV2ForImageClassification(config))
