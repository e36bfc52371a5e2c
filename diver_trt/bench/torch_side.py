"""The reference: a plain torch loop over diffusers' own modules that does a recovery's work.

It is the loop that a user of diffusers would write: whole batches through VAE and transformer,
guidance by a doubled batch, a step by `diver_trt.method.step`, images by Pillow. diffusers embeds
time and class inside every block, so its step includes what a bundle's conditioner computes once
per class, and the conditioner cannot be compared.
"""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from diver_trt.bench.ceiling import COPY_SECONDS, PRODUCT_SECONDS, Ceiling, fastest
from diver_trt.bench.cost import FLOPS_PER_MULTIPLY_ADD
from diver_trt.bench.jobs import Work
from diver_trt.bench.phases import Record
from diver_trt.bench.recovery import Files, Recovered, phases_of
from diver_trt.bundle import Bundle
from diver_trt.contract import NetworkName
from diver_trt.method.noise import sample_noise
from diver_trt.method.schedule import Schedule
from diver_trt.method.step import guided_step
from diver_trt.models.base import BaseModel
from diver_trt.pixels import from_network, square, to_network
from diver_trt.recipe import Recipe

COMPILE_MODE = "max-autotune"
MATRIX_SIDE_ON_GPU = 8192
"""A GPU needs larger matrices than a CPU to reach its rate."""


class TorchModel:
    """A model's own modules on one device.

    Args:
        model: The loaded model, float32 on the CPU; it is copied where it has to change.
        device: `"cpu"` or `"cuda"`.
        half: Whether the modules compute in float16.
        compiled: Whether `torch.compile` compiles them.
        mode: How it compiles.
    """

    def __init__(
        self,
        model: BaseModel,
        device: Literal["cpu", "cuda"] = "cpu",
        *,
        half: bool = False,
        compiled: bool = False,
        mode: str = COMPILE_MODE,
    ) -> None:
        # In float32 on the CPU the loaded model is used as it is: a copy would double its memory.
        changes = device != "cpu" or half or compiled
        self._model = copy.deepcopy(model) if changes else model
        self.device, self.half, self.compiled = device, half, compiled
        self.dtype = torch.float16 if half else torch.float32
        self.name = f"torch {'compiled' if compiled else 'eager'}"
        for part in self._model.parts if changes else ():
            part.to(device, self.dtype)
            for module in _called(part) if compiled else ():
                # In place, so that the model's own code calls the compiled modules:
                # https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html
                # For every batch anew: with a second batch torch would compile for any, which is
                # slower, and without CUDA graphs.
                module.compile(mode=mode, dynamic=False)

    @contextmanager
    def _making_tensors(self) -> Iterator[None]:
        """Run without gradients; tensors that the model's own code makes fit its device and type.

        The VAE's scaling is made anew in every call. The transformer makes none, and torch.compile
        would have to guard against the change of device.
        """
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            with torch.no_grad(), torch.device(self.device):
                yield
        finally:
            torch.set_default_dtype(before)

    def encode(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the latents of images, [n, 3, H, W] => [n, c, h, w], both float32."""
        with self._making_tensors():
            latent = self._model.original_encode(self._moved(pixels).to(self.dtype))
            return self._fetched(latent)

    def decode(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the images of latents, [n, c, h, w] => [n, 3, H, W], both float32."""
        with self._making_tensors():
            image = self._model.original_decode(self._moved(latents).to(self.dtype))
            return self._fetched(image)

    def steps(
        self,
        start: NDArray[np.float32],
        anchor: NDArray[np.float32],
        noise: NDArray[np.float32],
        labels: tuple[int, ...],
        schedule: Schedule,
    ) -> Iterator[torch.Tensor]:
        """Yield the latent after every step, [n, c, h, w] float32 on the device."""
        latent, pulled_to, noised = self._moved(start), self._moved(anchor), self._moved(noise)
        table, times = self._moved(schedule.table), self._moved(schedule.times)
        pair = self._moved(np.array([*labels, *[self._model.num_classes] * len(labels)]))
        for k in range(len(schedule.times), 0, -1):
            with torch.no_grad():
                latent = self._step(
                    latent, pulled_to, noised, pair, times[k - 1].expand(len(pair)), table[k - 1]
                )
                if self.device == "cuda":
                    torch.cuda.synchronize()  # else the clock would stop at the last launch
            yield latent

    def _step(
        self,
        latent: torch.Tensor,
        anchor: torch.Tensor,
        noise: torch.Tensor,
        pair: torch.Tensor,
        when: torch.Tensor,
        row: torch.Tensor,
    ) -> torch.Tensor:
        channels, layout = latent.shape[1], self._model.layout
        # [n, c, h, w] => [2 n, c, h, w]: for the class, then for the null class.
        twice = torch.cat([latent, latent]).to(self.dtype)
        prediction = self._model.original_predict(twice, when, pair).float()
        by_class, by_null = prediction.chunk(2)
        # In float32, as a bundle's step is whatever its networks compute in.
        following: torch.Tensor = guided_step(
            latent,
            anchor,
            noise,
            by_class[:, :channels],
            by_null[:, :channels],
            by_class[:, channels:],
            row,
            layout,
            torch.exp,
        )
        return following

    def _moved(self, values: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(values).to(self.device)

    @staticmethod
    def _fetched(values: torch.Tensor) -> NDArray[np.float32]:
        fetched: NDArray[np.float32] = values.float().cpu().numpy()
        return fetched


def _called(part: nn.Module) -> tuple[nn.Module, ...]:
    """Return the modules of a model's part that its own code calls."""
    # `compile` replaces what calling a module runs. `encode` and `decode` call the VAE's networks
    # and not the VAE, which would stay eager if only the VAE itself were compiled.
    return (part.encoder, part.decoder) if isinstance(part, AutoencoderKL) else (part,)


class TorchNetwork:
    """One of diffusers' networks as a job; the denoiser's is one step, as an engine's is.

    Args:
        model: The model on its device.
        name: `"encoder"`, `"denoiser"` or `"decoder"`.
        work: The batch.
    """

    runs, ahead = 1, False

    def __init__(self, model: TorchModel, name: NetworkName, work: Work) -> None:
        self._model, self._name, self._work = model, name, work
        self.run_size = len(work.labels)
        self._steps: Iterator[torch.Tensor] = iter(())

    def __call__(self) -> float:
        """Run it once, and wait for its result."""
        work = self._work
        if self._name == "denoiser":
            return self._next_step()
        values = work.pixels if self._name == "encoder" else work.latents
        started = time.perf_counter()
        (self._model.encode if self._name == "encoder" else self._model.decode)(values)
        return time.perf_counter() - started

    def _next_step(self) -> float:
        started = time.perf_counter()
        if next(self._steps, None) is None:  # the last step was the recipe's last
            work = self._work
            self._steps = self._model.steps(
                work.latents, work.latents, work.latents, work.labels, work.schedule
            )
            started = time.perf_counter()
            next(self._steps)
        return time.perf_counter() - started


def recover_with_torch(
    model: TorchModel,
    bundle: Bundle,
    recipe: Recipe,
    batch: int,
    files: Files,
    output: Path,
) -> Recovered:
    """Recover images in a plain loop: read, encode, denoise, decode, write.

    Args:
        model: The model.
        bundle: Its bundle, for the process.
        recipe: The method's settings.
        batch: Images per batch.
        files: From `recovery.write_input`.
        output: The folder to write; what is there is deleted first, which does not count.
    """
    shutil.rmtree(output, ignore_errors=True)
    schedule, record = Schedule(bundle.process, recipe, bundle.layout), Record()
    keys = list(files)
    started = time.perf_counter()
    for first in range(0, len(keys), batch):
        part = keys[first : first + batch]
        labels = tuple(files[key][1] for key in part)
        with record.phase("reading"):
            images = [np.asarray(Image.open(files[key][0]).convert("RGB")) for key in part]
            pixels = np.stack([to_network(square(i, bundle.image_size)) for i in images])
            noise = np.stack([sample_noise(0, key, bundle.latent_shape) for key in part])
        with record.phase("encoder"):
            anchor = model.encode(pixels)
        with record.phase("denoiser"):
            start = schedule.start(anchor, noise)
            *_, latent = model.steps(start, anchor, noise, labels, schedule)
        with record.phase("decoder"):
            decoded = model.decode(latent.cpu().numpy())
        with record.phase("writing"):
            for key, image in zip(part, decoded, strict=True):
                path = output / f"{key}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(from_network(image)).save(path)
    seconds = time.perf_counter() - started
    return Recovered(seconds, phases_of(record, seconds), len(keys))


def gpu_ceiling(*, half: bool) -> Ceiling:
    """Measure a GPU's matrix product with torch, and return its ceilings.

    Args:
        half: Whether the product is one of float16 matrices, else float32.
    """
    side, dtype = MATRIX_SIDE_ON_GPU, torch.float16 if half else torch.float32
    left = torch.randn(side, side, device="cuda", dtype=dtype)

    def product() -> None:
        # Launches return at once; only `synchronize` waits for the result.
        torch.matmul(left, left)
        torch.cuda.synchronize()

    rate = FLOPS_PER_MULTIPLY_ADD * side**3 / fastest(product, PRODUCT_SECONDS)
    return Ceiling(
        f"torch's {str(dtype).removeprefix('torch.')} product of {side:,} x {side:,} on "
        f"{torch.cuda.get_device_name()}: {rate / 1e12:.1f} TFLOP/s",
        rate,
        _copy_on_gpu,
    )


def _copy_on_gpu(moved_bytes: int) -> float:
    """Return the seconds of a copy on the GPU that reads and writes so many bytes in all."""
    source = torch.zeros(max(1, moved_bytes // 2), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)

    def copy_once() -> None:
        target.copy_(source)
        torch.cuda.synchronize()

    return fastest(copy_once, COPY_SECONDS)
