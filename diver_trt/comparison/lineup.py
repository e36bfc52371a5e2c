"""The participants of a comparison, and the engines that cannot take part, with reasons.

name          runs
torch-fp32    the model itself: the reference wherever a model is given
torch-fp16    the model in float16, with what the exporter keeps in float32
torch-bf16    the model in bfloat16, with the same in float32; shown, not judged
any other     the bundles, on an engine of `diver_trt.runtime.backends`
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING

from diver_trt.bundle import Bundle
from diver_trt.comparison.blocks import GraphProbe
from diver_trt.comparison.runs import Participant
from diver_trt.contract import NETWORKS
from diver_trt.counted import counted
from diver_trt.errors import (
    BundleError,
    DiverError,
    EngineError,
    UsageError,
    first_line,
)
from diver_trt.runtime.backends import BACKENDS
from diver_trt.runtime.engine import Placement, Session
from diver_trt.runtime.session import open_session

if TYPE_CHECKING:
    from diver_trt.comparison.torch_engine import TorchPrecision
    from diver_trt.models.base import BaseModel

TORCH_ENGINES: dict[str, TorchPrecision] = {
    "torch-fp32": "fp32",
    "torch-fp16": "fp16",
    "torch-bf16": "bf16",
}
ENGINE_NAMES: tuple[str, ...] = (*TORCH_ENGINES, *BACKENDS)


@dataclass(frozen=True, slots=True)
class Absent:
    """An engine that is not compared.

    Attributes:
        name: The engine and its precision.
        reason: Why it is not compared, in words.
        asked: Whether it was requested: by name, or as a bundle that no engine here runs. Its
            absence then fails the whole comparison.
    """

    name: str
    reason: str
    asked: bool


class NothingToCompareError(EngineError):
    """Fewer than two engines can take part.

    Attributes:
        absent: Every engine that cannot take part, with the reason.
    """

    def __init__(self, absent: tuple[Absent, ...], *, with_model: bool) -> None:
        self.absent = absent
        wanted = (
            "expected the model and one engine that works here"
            if with_model
            else "expected two engines that work here, or one and --model"
        )
        super().__init__(
            "\n".join(
                [
                    f"nothing to compare: {wanted}",
                    *(f"  {one.name}: {one.reason}" for one in absent),
                ]
            )
        )


@dataclass(frozen=True, slots=True)
class Lineup:
    """The participants of a comparison.

    Attributes:
        reference: The engine that the others are compared with.
        others: The engines compared with it.
        absent: Engines that cannot take part.
    """

    reference: Participant
    others: tuple[Participant, ...]
    absent: tuple[Absent, ...]


def line_up(
    bundles: Sequence[Bundle], model: BaseModel | None, engines: Sequence[str], batch: int
) -> Lineup:
    """Open every engine once, and return those that can take part.

    Args:
        bundles: The bundles under test, one or more, of one model.
        model: The model, or None. With it, torch in float32 is the reference; without it, ONNX
            Runtime on an fp32 bundle, or the first engine that comes closest to that.
        engines: Engines by name. Empty means all of them, and an engine that does not work here is
            then not a failure.
        batch: Images per batch; TensorRT engines keep the batch that they were built for.

    Raises:
        BundleError: If the bundles are not of one model, or not of the given model.
        UsageError: If an engine's name is unknown, or a bundle is given twice.
        EngineError: If the exporter's form of the model computes other values than the model's own
            code.
        NothingToCompareError: If fewer than two engines can take part.
    """
    if unknown := [name for name in engines if name not in ENGINE_NAMES]:
        raise UsageError(f"unknown engine {unknown[0]!r}; expected {', '.join(ENGINE_NAMES)}")
    _require_different(bundles)
    _check_same_model(bundles)
    if model is not None:
        _check_exported_from(bundles[0], model)
        # Imported here: two bundles are compared without torch.
        from diver_trt.comparison.torch_engine import check_reference

        check_reference(model, bundles[0])
    entrants = _entrants(bundles, model, engines, batch)
    present = [one for one in entrants if isinstance(one, Participant)]
    absent = tuple(one for one in entrants if isinstance(one, Absent))
    if model is not None:
        reference = torch_participant(model, bundles[0], batch, "fp32")
    elif present:
        reference = min(present, key=_distance_from_reference)
        present.remove(reference)
    if not present:
        raise NothingToCompareError(absent, with_model=model is not None)
    return Lineup(reference, tuple(present), absent)


def _require_different(bundles: Sequence[Bundle]) -> None:
    # Resolved: a symlink to a bundle is the same bundle.
    places = [bundle.path.resolve() for bundle in bundles]
    if twice := [bundle.path for i, bundle in enumerate(bundles) if places[i] in places[:i]]:
        raise UsageError(f"{twice[0]}: is given twice; give each bundle once")


def _entrants(
    bundles: Sequence[Bundle], model: BaseModel | None, engines: Sequence[str], batch: int
) -> list[Participant | Absent]:
    """Return every engine but the reference in torch, as requested or as in `ENGINE_NAMES`."""
    entrants: list[Participant | Absent] = []
    whole: list[Bundle] = []
    for bundle in bundles:
        if reason := _damage(bundle):
            # The user named this bundle, so its absence is a failure.
            entrants.append(Absent(str(bundle.path), reason, asked=True))
        else:
            whole.append(bundle)
    idle = list(whole)
    for name in dict.fromkeys(engines) or ENGINE_NAMES:
        if name == "torch-fp32" and model is not None:
            continue  # it is the reference
        if name in TORCH_ENGINES:
            entrants.append(_torch_entrant(name, model, bundles[0], batch, bool(engines)))
            continue
        for bundle in whole:
            # Among all bundles, so that a damaged one does not change the names of the others.
            called = _called(name, bundle, bundles)
            try:
                own_batch = _batch_of(name, bundle, batch)
            except DiverError as error:
                entrants.append(Absent(called, first_line(error), bool(engines)))
                continue
            entrants.append(bundle_participant(called, name, bundle, own_batch))
            if bundle in idle:
                idle.remove(bundle)
    # A bundle that nothing ran was not compared, even though no engine was requested by name.
    if not engines:
        reason = "no engine here can run it"
        entrants += [Absent(str(bundle.path), reason, asked=True) for bundle in idle]
    return entrants


def _torch_entrant(
    name: str, model: BaseModel | None, bundle: Bundle, batch: int, asked: bool
) -> Participant | Absent:
    if model is not None:
        return torch_participant(model, bundle, batch, TORCH_ENGINES[name])
    reason = "no model is given; name the one that was exported with --model"
    return Absent(name.replace("-", " "), reason, asked)


def _distance_from_reference(one: Participant) -> tuple[bool, bool]:
    """Rank participants as a reference: float32 first, ONNX Runtime's CPU engine next."""
    # min takes the least, and False comes before True.
    return one.precision != "fp32", one.name.split()[0] != "onnx"


def bundle_participant(name: str, engine: str, bundle: Bundle, batch: int) -> Participant:
    """Return a bundle on one of the runtime's engines."""
    return Participant(
        name,
        bundle.precision,
        bundle,
        partial(_open, engine, bundle, batch),
        partial(GraphProbe, bundle),
        batch,
        probed=bundle.networks["denoiser"].files,
    )


def _open(engine: str, bundle: Bundle, batch: int) -> Session:
    """Open a bundle on one engine; compiled engines keep the batch that they were built for."""
    size = None if BACKENDS[engine].compiled else batch
    return open_session(engine, bundle, Placement(batch=size)).session


def torch_participant(
    model: BaseModel, bundle: Bundle, batch: int, precision: TorchPrecision
) -> Participant:
    """Return the torch model in a precision."""
    from diver_trt.comparison.torch_engine import TorchSession

    def opened(batch: int) -> TorchSession:
        return TorchSession(model, bundle, batch, precision)

    return Participant(
        f"torch {precision}", precision, bundle, partial(opened, batch), partial(opened, 1), batch
    )


def _called(engine: str, bundle: Bundle, bundles: Sequence[Bundle]) -> str:
    """Return an engine's name with its precision, and the folder or path if that is ambiguous."""
    alike = [other.path for other in bundles if other.precision == bundle.precision]
    if len(alike) == 1:
        return f"{engine} {bundle.precision}"
    unique = [path.name for path in alike].count(bundle.path.name) == 1
    return f"{engine} {bundle.precision} ({bundle.path.name if unique else bundle.path})"


def _damage(bundle: Bundle) -> str | None:
    """Return why a bundle's files are not those of its manifest, or None."""
    # Hashed before any work, so that a run of minutes does not end in a damaged file.
    try:
        for name in NETWORKS:
            bundle.verified(name)
    except BundleError as reason:
        return str(reason)
    return None


def _batch_of(engine: str, bundle: Bundle, batch: int) -> int:
    """Open a bundle on an engine, and return the batch that the engine has.

    Raises:
        DiverError: If the engine cannot run it here.
    """
    # A package that is installed may not load, and a provider that is listed may not start: only
    # opening a network shows it. The encoder is the smallest.
    with closing(_open(engine, bundle, batch)) as session:
        session.open("encoder").close()
        return session.batch


_SHARED = (
    "model.base",
    "latent_shape",
    "image_size",
    "num_classes",
    "null_label",
    "learned_variance",
    "condition_width",
    "timestep_frequencies",
    "places",
    "process",
    "scaling_factor",
    "model.weights_sha256",
)
"""Facts that bundles of one model have in common."""


def _check_same_model(bundles: Sequence[Bundle]) -> None:
    """Refuse bundles that could not give the same images.

    Raises:
        BundleError: If they differ in anything but the precision.
    """
    first, *others = bundles
    for other in others:
        for what in _SHARED:
            ours, theirs = attrgetter(what)(other), attrgetter(what)(first)
            if ours != theirs:
                raise BundleError(
                    f"{other.path}: {what} is {ours}, that of {first.path} is {theirs}. Compare "
                    "bundles of one model."
                )


def _check_exported_from(bundle: Bundle, model: BaseModel) -> None:
    """Refuse a bundle that was exported from another model.

    Raises:
        BundleError: If it was.
    """
    from diver_trt.models.exported import require_weights

    found = _described(model.latent_shape, model.num_classes, model.learned_variance)
    wanted = _described(bundle.latent_shape, bundle.num_classes, bundle.learned_variance)
    if found != wanted:
        raise BundleError(
            f"{bundle.path}: has {wanted}; {model.model_id} has {found}. Give the model that the "
            "bundle was exported from."
        )
    require_weights(bundle, model)
    if bundle.process != model.process:
        raise BundleError(
            f"{bundle.path}: bundle.json has {bundle.process}, {model.model_id} was trained with "
            f"{model.process}. Export the model again."
        )
    if bundle.scaling_factor != model.scaling_factor:
        raise BundleError(
            f"{bundle.path}: bundle.json has the scaling factor {bundle.scaling_factor}, the VAE "
            f"of {model.model_id} has {model.scaling_factor}. Export the model again."
        )


def _described(latent_shape: tuple[int, int, int], classes: int, learned_variance: bool) -> str:
    variance = "a learned" if learned_variance else "a fixed"
    return f"latents {list(latent_shape)}, {counted(classes, 'class')} and {variance} variance"
