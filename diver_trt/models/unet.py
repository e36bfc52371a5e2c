"""The UNet of a diffusers `StableDiffusionPipeline`, loaded from its folder."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from diffusers import UNet2DConditionModel

from diver_trt.errors import ExportError, shown
from diver_trt.models.model_files import ModelFiles
from diver_trt.models.pipeline import build_module, check_class, unknown_fields
from diver_trt.models.weights import load_weights, network_weights

UNETS = ("UNet2DConditionModel",)
CHANNELS = 4
"""Of the latents. A UNet with more inputs reads a mask or an image, too."""

_SUPPORTED = {
    *("sample_size", "in_channels", "out_channels", "block_out_channels", "layers_per_block"),
    *("down_block_types", "up_block_types", "norm_num_groups", "norm_eps", "dropout"),
    *("cross_attention_dim", "attention_head_dim", "transformer_layers_per_block"),
    *("use_linear_projection", "flip_sin_to_cos", "freq_shift"),
    # Against float16 overflow. Our queries are divided by sqrt(d) before the product, not after.
    "upcast_attention",
}
"""Fields that may have any value; all others must have diffusers' default."""

_BLOCKS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


def load_unet(files: ModelFiles) -> tuple[UNet2DConditionModel, list[str]]:
    """Load a UNet from the folder of a pipeline, in float32.

    Returns:
        The module, and notes on what was found.

    Raises:
        ExportError: If the folder holds something else, a UNet that needs more than a latent, a
            time and one text, or configuration and weights contradict each other.
    """
    config = files.read_json("config.json", "expected the UNet of a StableDiffusionPipeline")
    where = files.where("config.json")
    check_class(config, UNETS, where)
    _check_fields(config, where)
    state, notes = network_weights(files, "conv_in.weight")
    unet: Any = build_module(UNet2DConditionModel, config, where)
    load_weights(unet, state, files.where(), "config.json")
    return unet, notes + unknown_fields(UNet2DConditionModel, config, where)


def _check_fields(config: Mapping[str, Any], where: str) -> None:
    for name in ("in_channels", "out_channels"):
        if (channels := config.get(name, CHANNELS)) != CHANNELS:
            raise ExportError(
                f"{where}: {name} is {shown(repr(channels))}, expected {CHANNELS}: a UNet "
                "that reads a latent and nothing else, not one for inpainting, depth or upscaling"
            )
    # Blocks that `diver_trt.models.unet_networks` has
    for name, kinds in _BLOCKS.items():
        blocks = config.get(name, [])
        if not isinstance(blocks, list) or any(kind not in kinds for kind in blocks):
            raise ExportError(
                f"{where}: {name} is {shown(repr(blocks))}, "
                f"expected a list of {' and '.join(kinds)}"
            )
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(UNet2DConditionModel.__init__).parameters.items()
    }
    for name, value in config.items():
        if name in defaults and name not in _SUPPORTED and value != defaults[name]:
            raise ExportError(
                f"{where}: {name} is {shown(repr(value))}, expected {defaults[name]!r}, as in "
                "Stable Diffusion 1 and 2: other UNets are not supported"
            )
    if type(width := config.get("cross_attention_dim", 1280)) is not int:
        raise ExportError(
            f"{where}: cross_attention_dim is {shown(repr(width))}, expected a whole number"
        )
    widths = config.get("block_out_channels", [320, 640, 1280, 1280])
    if not isinstance(widths, list):
        raise ExportError(
            f"{where}: block_out_channels is {shown(repr(widths))}, expected a list of widths"
        )
    side, levels = config.get("sample_size"), len(widths)
    if type(side) is not int or side < 1 or side % 2 ** (levels - 1):
        raise ExportError(
            f"{where}: sample_size is {shown(repr(side))}, expected a multiple of "
            f"{2 ** (levels - 1)}, which the {levels} levels halve without a remainder"
        )
