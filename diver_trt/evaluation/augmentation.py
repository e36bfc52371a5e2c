"""Augmentations of a batch, each drawn from a generator on the CPU, so that devices do not differ.

Each takes images [n, 3, H, W] float32 and returns as many of the same shape. DSA's are of
https://github.com/VICO-UoE/DatasetCondensation/blob/master/utils.py (arXiv 2102.08259), applied to
normalised values, where 0 is the mean colour. Minimax' are of IDC's transforms
(https://github.com/snu-mllab/Efficient-Dataset-Condensation, data.py and misc/augment.py), applied
to pixels from 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from diver_trt.evaluation.protocols import AugmentationName, EvaluationProtocol

Augmentation = Callable[[Tensor, Generator], Tensor]

# DSA's parameters: ParamDiffAug.
_SCALE, _ROTATE_DEGREES, _CROP, _CUTOUT = 1.2, 15.0, 0.125, 0.5
_BRIGHTNESS, _SATURATION, _CONTRAST = 1.0, 2.0, 0.5

_JITTER = 0.4
_LIGHTING_STD = 0.1
_LIGHTING_VALUES = (0.2175, 0.0188, 0.0045)
_LIGHTING_VECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)
"""Principal components of ImageNet's colours (Krizhevsky et al. 2012, section 4.1)."""
_LUMA = (0.299, 0.587, 0.114)


def augment(images: Tensor, protocol: EvaluationProtocol, generator: Generator) -> Tensor:
    """Apply a protocol's augmentations to a batch: all in order, or one of them."""
    names = protocol.augmentations
    if names and protocol.one_of:
        # One for the whole batch, as DSA's aug_mode "S" draws it.
        names = (names[int(torch.randint(len(names), (), generator=generator))],)
    for name in names:
        images = AUGMENTATIONS[name](images, generator)
    return images


def cut_mix(
    images: Tensor, generator: Generator
) -> tuple[Tensor, Tensor, float]:  # [n, 3, H, W] => the same, other image of each, own share
    """Replace one rectangle of every image by that of another image (CutMix, arXiv 1905.04899).

    Returns:
        The images; the position of the other image of each, [n] int64; and the share of the area
        that is still the image's own, which weighs both labels.
    """
    height, width = images.shape[2:]
    order = torch.randperm(len(images), generator=generator).to(images.device)
    share, down, across = torch.rand(3, generator=generator).tolist()  # Beta(1, 1) is uniform
    side = math.sqrt(1 - share)
    (top, bottom), (left, right) = (
        _span(int(down * height), int(height * side), height),
        _span(int(across * width), int(width * side), width),
    )
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[order, :, top:bottom, left:right]
    # Of what was really replaced: the border may have cut the rectangle.
    return mixed, order, 1 - (bottom - top) * (right - left) / (height * width)


def _span(centre: int, length: int, size: int) -> tuple[int, int]:
    # Half on each side and cut at the border, as CutMix' own rand_bbox does:
    # https://github.com/clovaai/CutMix-PyTorch/blob/master/train.py
    return max(0, centre - length // 2), min(size, centre + length // 2)


def _uniform(images: Tensor, generator: Generator, low: float, high: float) -> Tensor:
    """Return one number per image, [n, 1, 1, 1]."""
    drawn = torch.rand(len(images), 1, 1, 1, generator=generator) * (high - low) + low
    return drawn.to(images.device)


def _warped(images: Tensor, theta: Tensor, padding: str = "zeros") -> Tensor:
    """Sample images bilinearly through affine maps from output to input, theta [n, 2, 3]."""
    grid = F.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, "bilinear", padding_mode=padding, align_corners=False)


def flip(images: Tensor, generator: Generator) -> Tensor:
    """Mirror half of the images."""
    return torch.where(_uniform(images, generator, 0, 1) < 0.5, images.flip(3), images)


def scale(images: Tensor, generator: Generator) -> Tensor:
    """Stretch width and height by up to 1.2 or its inverse, each by itself (DSA)."""
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = (
        torch.rand(2, len(images), generator=generator) * (_SCALE - 1 / _SCALE) + 1 / _SCALE
    )
    return _warped(images, theta)


def rotate(images: Tensor, generator: Generator) -> Tensor:
    """Turn by up to 15 degrees (DSA)."""
    drawn = torch.rand(len(images), generator=generator) * 2 - 1
    return _warped(images, _turns(torch.deg2rad(drawn * _ROTATE_DEGREES)))


def _turns(angle: Tensor) -> Tensor:
    theta = torch.zeros(len(angle), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = torch.cos(angle)
    theta[:, 0, 1], theta[:, 1, 0] = -torch.sin(angle), torch.sin(angle)
    return theta


def colour(images: Tensor, generator: Generator) -> Tensor:
    """Change brightness, saturation and contrast, in this order (DSA)."""
    images = images + _uniform(images, generator, -0.5, 0.5) * _BRIGHTNESS
    grey = images.mean(dim=1, keepdim=True)
    images = (images - grey) * _uniform(images, generator, 0, _SATURATION) + grey
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * (_uniform(images, generator, 0, 1) + _CONTRAST) + mean


def crop(images: Tensor, generator: Generator) -> Tensor:
    """Shift by whole pixels, up to an eighth of the side; 0 comes in from outside (DSA)."""
    n, _, height, width = images.shape
    # Rounded half up, as DSA's rand_crop has it; int(size * _CUTOUT + 0.5) below likewise.
    most = int(height * _CROP + 0.5), int(width * _CROP + 0.5)
    padded = F.pad(images, (most[1], most[1], most[0], most[0]))
    down, across = (
        torch.randint(0, 2 * reach + 1, (n, 1), generator=generator).to(images.device)
        for reach in most
    )
    rows = down + torch.arange(height, device=images.device)
    columns = across + torch.arange(width, device=images.device)
    image = torch.arange(n, device=images.device)[:, None, None]
    # Advanced indices on both sides of a slice put their axes first: [n, H, W, 3].
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cutout(images: Tensor, generator: Generator) -> Tensor:
    """Set a square of half the side to 0; part of it may lie outside (DSA)."""
    keep = torch.ones(len(images), 1, 1, 1, device=images.device)
    inside = []
    for axis in (2, 3):
        size = images.shape[axis]
        length = int(size * _CUTOUT + 0.5)
        # Squares of an even length have one more place for their centre (DSA's rand_cutout).
        centre = torch.randint(0, size + 1 - length % 2, (len(images), 1), generator=generator)
        offset = torch.arange(size) - (centre - length // 2)
        inside.append(((offset >= 0) & (offset < length)).to(images.device))
    rows, columns = inside
    return images * (keep - (rows[:, None, :, None] & columns[:, None, None, :]).float())


def resized_crop(images: Tensor, generator: Generator) -> Tensor:
    """Enlarge a part of half the area or more, its sides 3:4 to 4:3, to the whole (Minimax).

    torchvision's RandomResizedCrop draws again where the part is wider or higher than the image;
    here it is made as wide or as high.
    """
    n = len(images)
    area, log_ratio, down, across = torch.rand(4, n, generator=generator)
    area = 0.5 + 0.5 * area
    ratio = torch.exp((2 * log_ratio - 1) * math.log(4 / 3))
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = width, height
    # The middle of the part, which stays within the image, whose grid spans -1 to 1.
    theta[:, 0, 2], theta[:, 1, 2] = (2 * across - 1) * (1 - width), (2 * down - 1) * (1 - height)
    # Not zeros: bilinear samples at the very edge would be mixed with them.
    return _warped(images, theta, "border")


def jitter(images: Tensor, generator: Generator) -> Tensor:
    """Change brightness, contrast and saturation by up to 40 %, in random order (Minimax).

    The order is one of the batch, where IDC draws one for each image. Values are not clipped.
    """
    luma = torch.tensor(_LUMA, device=images.device).view(1, 3, 1, 1)
    for which in torch.randperm(3, generator=generator).tolist():
        grey = (images * luma).sum(dim=1, keepdim=True)
        # Brightness: black; contrast: the image's mean grey; saturation: each pixel's own grey.
        towards = (torch.zeros_like(grey), grey.mean(dim=(2, 3), keepdim=True), grey)[which]
        images = images + (towards - images) * _uniform(images, generator, -_JITTER, _JITTER)
    return images


def lighting(images: Tensor, generator: Generator) -> Tensor:
    """Add ImageNet's principal colours, with deviation 0.1 times their own (Minimax)."""
    drawn = torch.randn(len(images), 3, generator=generator) * _LIGHTING_STD
    shift = drawn * torch.tensor(_LIGHTING_VALUES) @ torch.tensor(_LIGHTING_VECTORS).T
    # [n, 3] => [n, 3, 1, 1]: one colour for a whole image.
    return images + shift.to(images.device)[:, :, None, None]


def affine(images: Tensor, generator: Generator) -> Tensor:
    """Turn by up to 8 degrees, scale and shift by up to 6 %, repeating the border (quick)."""
    drawn = torch.rand(4, len(images), generator=generator) * 2 - 1
    angle, zoom = torch.deg2rad(drawn[0] * 8), 1 + 0.06 * drawn[1]
    theta = _turns(angle) * zoom[:, None, None]
    # A grid spans 2, from -1 to 1.
    theta[:, :, 2] = 2 * 0.06 * drawn[2:].T
    return _warped(images, theta, "border")


AUGMENTATIONS: dict[AugmentationName, Augmentation] = {
    "resized_crop": resized_crop,
    "jitter": jitter,
    "lighting": lighting,
    "colour": colour,
    "crop": crop,
    "cutout": cutout,
    "flip": flip,
    "scale": scale,
    "rotate": rotate,
    "affine": affine,
}
