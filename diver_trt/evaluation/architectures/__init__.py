"""The registry of architectures, which `evaluate --architecture` looks names up in.

A family of architectures is one module that implements `ArchitectureModule`, and one entry of
`ARCHITECTURES` for each of its members. This file imports none of them, so that `diver-trt --help`
stays fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from diver_trt.errors import UsageError, shown

if TYPE_CHECKING:
    from torch import nn


class ArchitectureModule(Protocol):
    """What the module of a family of architectures provides."""

    def build(self, name: str, classes: int, side: int) -> nn.Module:
        """Build a network with random weights, drawn from torch's global generator.

        Args:
            name: The architecture, one of the family.
            classes: Number of classes.
            side: Side of the images in pixels.

        Returns:
            The network: [n, 3, side, side] float32, normalised => logits [n, classes].
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One architecture that `--architecture` can name.

    Attributes:
        name: That name.
        title: What it is, for people.
        module: Dotted name of the module that implements `ArchitectureModule`.
        smallest: Smallest side of an image in pixels that it can take.
        patch: Side of the patches that it cuts an image into, 1 without any.
    """

    name: str
    title: str
    module: str
    smallest: int = 16
    patch: int = 1

    def takes(self, side: int) -> bool:
        """Return whether the network can take images of a side in pixels."""
        return side >= self.smallest and side % self.patch == 0

    def require(self, side: int) -> None:
        """Refuse images that the network cannot take.

        Raises:
            UsageError: If they are too small, or cannot be cut into its patches.
        """
        if not self.takes(side):
            patches = f", a multiple of {self.patch}" if self.patch > 1 else ""
            raise UsageError(
                f"{self.name}: images of {side} px, expected {self.smallest} px or more{patches}. "
                "Choose another architecture, or set --image-size."
            )

    def build(self, classes: int, side: int) -> nn.Module:
        """Build the network (`ArchitectureModule.build`).

        Raises:
            MissingExtraError: If a package that it needs is not installed.
            UsageError: If it cannot take images of this size.
        """
        self.require(side)
        return self.load().build(self.name, classes, side)

    def load(self) -> ArchitectureModule:
        """Import the family, and what it needs.

        Raises:
            MissingExtraError: If a package is not installed, or cannot be imported.
        """
        from diver_trt.packages import importing

        with importing("evaluate", self.name):
            return cast("ArchitectureModule", import_module(self.module))


def _member(name: str, title: str, family: str, smallest: int = 16, patch: int = 1) -> Architecture:
    return Architecture(
        name=name, title=title, module=f"{__name__}.{family}", smallest=smallest, patch=patch
    )


ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        _member("mlp", "DC's MLP", "mlp", 1),
        _member("convnet-small", "ConvNet-3, width 32", "convnet"),
        _member("convnet3", "ConvNet-3", "convnet"),
        _member("convnet5", "ConvNet-5, for 128 px", "convnet", 32),
        _member("convnet6", "ConvNet-6, for 224 px", "convnet", 64),
        _member("resnet-small", "ResNet-8, for 32 px", "resnet"),
        _member("resnet18", "ResNet-18", "resnet", 32),
        _member("resnet18-in", "ResNet-18, instance norm", "resnet", 64),
        _member("mobilenet-small", "MobileNetV2 x0.2, for 32 px", "mobilenet"),
        _member("mobilenetv2", "MobileNetV2", "mobilenet", 32),
        _member("shufflenet-small", "ShuffleNetV2 x0.5, for 32 px", "shufflenet"),
        _member("shufflenetv2", "ShuffleNetV2 x1.0", "shufflenet", 32),
        _member("efficientnet-small", "a narrow EfficientNet, for 32 px", "efficientnet"),
        _member("efficientnet-b0", "EfficientNet-B0", "efficientnet", 32),
        _member("vit-small", "ViT of 4-px patches, for 32 px", "vit", patch=4),
        _member("vit-b16", "ViT-B/16", "vit", 32, patch=16),
    )
}

SMALL_SIDE = 64
"""Side in pixels up to which the scaled networks are the default."""
_SMALL = ("convnet-small", "resnet-small", "shufflenet-small", "vit-small", "mlp")
_PUBLISHED = ("resnet18", "mobilenetv2", "shufflenetv2", "efficientnet-b0", "vit-b16")
"""The architectures of DIVER's tables (arXiv 2605.12649)."""


def default_architectures(side: int) -> tuple[str, ...]:
    """Return the architectures that are evaluated on images of a side if none is named.

    Those that do not take such images are left out.
    """
    # DC's ConvNet is deeper the larger the images: MTT takes depth 5 at 128 px, Minimax 6 at 224.
    deep = ("convnet5" if side < 192 else "convnet6", *_PUBLISHED)
    names = _SMALL if side <= SMALL_SIDE else deep
    return tuple(name for name in names if ARCHITECTURES[name].takes(side))


def find_architecture(name: str, option: str = "--architecture") -> Architecture:
    """Return the architecture of a name, which an option gave.

    Raises:
        UsageError: If no architecture has this name.
    """
    if name not in ARCHITECTURES:
        raise UsageError(
            f"{option} {shown(name)}: no such architecture; expected one of "
            f"{', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]
