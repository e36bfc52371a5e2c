"""What is measured: a bundle on an engine, or the model in torch, behind one protocol."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from diver_trt.bench.jobs import OpenNetwork, Work, open_network
from diver_trt.bench.recovery import Files, Recovered, recover_once
from diver_trt.bundle import Bundle
from diver_trt.contract import NetworkName
from diver_trt.errors import EngineError, MissingExtraError
from diver_trt.models import ModelOptions
from diver_trt.packages import importing
from diver_trt.recipe import Recipe
from diver_trt.runtime.backends import BACKENDS
from diver_trt.runtime.engine import Placement
from diver_trt.runtime.session import engine_names, open_session

if TYPE_CHECKING:
    from diver_trt.bench.torch_side import TorchModel

Processor = Literal["cpu", "cuda", "other"]
"""What a contestant computes on: the host, an NVIDIA GPU, or another accelerator."""

ModelSource = tuple[str, str | None, str | None]
"""A model (a folder, a name on the hub, or a file), its revision there, and another VAE."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Specification:
    """What a child is to run.

    Attributes:
        bundle: The bundle's folder.
        batch: Images per batch.
        images: Images of the whole recovery.
        recipe: The recipe as JSON values.
        engine: The engine, or None for torch.
        model: For torch, the model.
        device: For torch, `"cpu"` or `"cuda"`.
        half: Whether torch computes in float16.
        compiled: Whether torch compiles the model.
    """

    bundle: str
    batch: int
    images: int
    recipe: dict[str, Any]
    engine: str | None = None
    model: ModelSource | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    half: bool = False
    compiled: bool = False

    @property
    def processor(self) -> Processor:
        """What it computes on, known before anything is loaded there."""
        return self.device if self.engine is None else engine_processor(self.engine)


class Contestant(Protocol):
    """One engine, or torch."""

    name: str
    processor: Processor
    """What it computes on."""
    is_torch: bool
    """Whether it is the model in torch, and not the bundle."""
    steps_in_python: bool
    """Whether `diver_trt.runtime.stepping` runs its steps where its denoiser is not ahead."""

    def open(self, name: NetworkName, work: Work) -> AbstractContextManager[OpenNetwork | None]:
        """Hold one network open for a batch; None if it has no such network."""

    def recover(self, files: Files, output: Path, recipe: Recipe, batch: int) -> Recovered:
        """Recover the files into a folder."""

    def specification(self, batch: int, images: int, recipe: Recipe) -> Specification:
        """Return what another process needs to run the same."""


_ENDINGS: dict[str, Processor] = {"cuda": "cuda", "gpu": "other", "npu": "other"}
"""Processors by the endings of the names of engines whose backend has one for the host too."""


def engine_processor(engine: str) -> Processor:
    """Return what an engine of `diver_trt.runtime.backends.BACKENDS` computes on."""
    if BACKENDS[engine].compiled:
        return "cuda"
    return _ENDINGS.get(engine.rpartition("-")[2], "cpu")


class EngineContestant:
    """A bundle on one of the runtime's engines.

    Args:
        engine: A name of `diver_trt.runtime.backends.BACKENDS`.
        bundle: The bundle.
    """

    is_torch = False

    def __init__(self, engine: str, bundle: Bundle) -> None:
        self.name, self._bundle = engine, bundle
        self.steps_in_python = not BACKENDS[engine].compiled
        self.processor = engine_processor(engine)

    @contextmanager
    def open(self, name: NetworkName, work: Work) -> Iterator[OpenNetwork]:
        """Hold one network open in a session of its own."""
        placement = Placement(batch=len(work.labels))
        with (
            closing(open_session(self.name, self._bundle, placement).session) as session,
            open_network(session, name, self._bundle, work) as network,
        ):
            yield network

    def recover(self, files: Files, output: Path, recipe: Recipe, batch: int) -> Recovered:
        """Recover as `diver-trt recover` does."""
        source = next(iter(files.values()))[0].parent.parent  # SOURCE/CLASS/NUMBER.png
        return recover_once(self.name, self._bundle, recipe, batch, source, output)

    def specification(self, batch: int, images: int, recipe: Recipe) -> Specification:
        """Return the engine's name and the bundle's folder."""
        return Specification(
            bundle=str(self._bundle.path),
            batch=batch,
            images=images,
            recipe=recipe.to_json(),
            engine=self.name,
        )


class TorchContestant:
    """The model in torch.

    Args:
        model: The model on its device.
        bundle: Its bundle.
        source: Where the model is from, to load it again in another process.
    """

    is_torch, steps_in_python = True, False

    def __init__(self, model: TorchModel, bundle: Bundle, source: ModelSource) -> None:
        self.name, self._model, self._bundle, self._source = model.name, model, bundle, source
        self.processor: Processor = model.device

    @contextmanager
    def open(self, name: NetworkName, work: Work) -> Iterator[OpenNetwork | None]:
        """Hold one of diffusers' networks, or None for the conditioner, which it lacks."""
        from diver_trt.bench.torch_side import TorchNetwork

        # diffusers computes the embeddings in every block, so it lacks a network to compare.
        yield None if name == "conditioner" else TorchNetwork(self._model, name, work)

    def recover(self, files: Files, output: Path, recipe: Recipe, batch: int) -> Recovered:
        """Recover in a plain loop."""
        from diver_trt.bench.torch_side import recover_with_torch

        return recover_with_torch(self._model, self._bundle, recipe, batch, files, output)

    def specification(self, batch: int, images: int, recipe: Recipe) -> Specification:
        """Return where the model comes from and what it computes in."""
        return Specification(
            bundle=str(self._bundle.path),
            batch=batch,
            images=images,
            recipe=recipe.to_json(),
            model=self._source,
            device=self._model.device,
            half=self._model.half,
            compiled=self._model.compiled,
        )


def contestant_for(specification: Specification, bundle: Bundle) -> Contestant:
    """Return the contestant that a specification describes.

    Raises:
        BundleError: If a model was not what the bundle was exported from.
        ExportError: If a model cannot be read.
        MissingExtraError: If torch or diffusers is not installed.
    """
    if specification.engine is not None:
        return EngineContestant(specification.engine, bundle)
    assert specification.model is not None, "without an engine there is a model"
    return torch_contestants(
        bundle,
        specification.model,
        device=specification.device,
        half=specification.half,
        modes=(specification.compiled,),
    )[0]


def torch_contestants(
    bundle: Bundle,
    source: ModelSource,
    *,
    device: Literal["cpu", "cuda"],
    half: bool,
    modes: tuple[bool, ...],
) -> list[TorchContestant]:
    """Load a model once and return it in torch, for each mode.

    Args:
        bundle: The bundle that was exported from it.
        source: The model.
        device: `"cpu"` or `"cuda"`.
        half: Whether it computes in float16.
        modes: For each, whether `torch.compile` compiles the model.

    Raises:
        BundleError: If the bundle was exported from other weights.
        ExportError: If the model cannot be read.
        MissingExtraError: If torch or diffusers is not installed.
    """
    with importing("compare", "measuring against torch"):
        from diver_trt.bench.torch_side import TorchModel
        from diver_trt.models.exported import load_exported, require_weights
    name, revision, vae = source
    options = ModelOptions(
        revision=revision, vae=vae, timestep_frequencies=bundle.timestep_frequencies
    )
    model = load_exported(bundle, name, options)
    require_weights(bundle, model)
    return [
        TorchContestant(TorchModel(model, device, half=half, compiled=compiled), bundle, source)
        for compiled in modes
    ]


def cuda_works() -> bool:
    """Return whether torch is installed and can compute on an NVIDIA GPU."""
    try:
        import torch
    except Exception:  # of any kind, where it is installed and broken
        return False
    return torch.cuda.is_available()


def engine_contestants(engines: tuple[str, ...], bundle: Bundle) -> list[Contestant]:
    """Return the requested engines without duplicates, after opening the bundle on each.

    Args:
        engines: Names as `--engine` takes them; `"auto"` is the first that opens the bundle here.
        bundle: The bundle.

    Raises:
        UsageError: If a name is not that of an engine.
        EngineError: If an engine cannot run here.
        MissingExtraError: If an engine's package is not installed.
    """
    # Without duplicates: auto may choose an engine that is named as well.
    names = dict.fromkeys(_first_that_opens(engine_names(name, bundle), bundle) for name in engines)
    return [EngineContestant(name, bundle) for name in names]


def _first_that_opens(engines: list[str], bundle: Bundle) -> str:
    *others, last = engines
    for name in others:
        with suppress(EngineError, MissingExtraError):
            _open_once(name, bundle)
            return name
    # If every engine fails, the last one's error is raised.
    _open_once(last, bundle)
    return last


def _open_once(name: str, bundle: Bundle) -> None:
    """Open the smallest network, which is the only proof that an engine works."""
    # A compiled engine takes only the batches that it was built for.
    placement = Placement(batch=None if BACKENDS[name].compiled else 1)
    with closing(open_session(name, bundle, placement).session) as session:
        session.open("encoder").close()
