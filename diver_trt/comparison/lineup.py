"""The participants of a comparison, and the engines that cannot take part, with reasons.

name          runs
torch-fp32    the model itself: the reference wherever a model is given
torch-fp16    the model in float16, by the exporter's plan
torch-bf16    the model in bfloat16, by the same plan; shown, not judged
any other     the bundles, on an engine of `diver_trt.runtime.backends`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diver_trt.bundle import NETWORKS, Bundle
from diver_trt.comparison.blocks import GraphProbe, Probe
from diver_trt.comparison.runs import Participant
from diver_trt.errors import BundleError, DiverError, EngineError, MissingExtraError, UsageError
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
        reason: Why not, in words.
        asked: Whether it was asked for, by name or as a bundle that nothing else here runs: then
            the comparison as a whole has failed.
    """

    name: str
    reason: str
    asked: bool


class NothingToCompareError(EngineError):
    """Fewer than two engines can take part.

    Attributes:
        absent: Every engine, with its reason.
    """

    def __init__(self, absent: tuple[Absent, ...], *, with_model: bool) -> None:
        self.absent = absent
        wanted = (
            "it takes an engine that works here beside the model"
            if with_model
            else "it takes two engines that work here, or --model"
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
    """Who takes part.

    Attributes:
        reference: What the others are compared with.
        others: The engines compared with it.
        absent: Engines that cannot take part.
    """

    reference: Participant
    others: tuple[Participant, ...]
    absent: tuple[Absent, ...]


def line_up(
    bundles: Sequence[Bundle], model: BaseModel | None, engines: Sequence[str], batch: int
) -> Lineup:
    """Open everything once to see who can take part.

    Args:
        bundles: The bundles under test, one or more, of one model.
        model: The model, or None; with it, torch in float32 is the reference, else the first engine
            that works on an fp32 bundle, or on the first bundle if there is none.
        engines: Engines by name; none means every one, and then those that are not here are no
            failure.
        batch: Images per batch; TensorRT engines keep to what they were built for.

    Raises:
        BundleError: If they are not of one model, or not of the model that is given.
        UsageError: If an engine's name is unknown, or a bundle is given twice.
        EngineError: If the model computes other than its own code.
        NothingToCompareError: Fewer than two engines can take part.
    """
    if unknown := [name for name in engines if name not in ENGINE_NAMES]:
        raise UsageError(f"unknown engine {unknown[0]!r}; expected {', '.join(ENGINE_NAMES)}")
    places = [bundle.path.resolve() for bundle in bundles]
    if twice := [bundle.path for i, bundle in enumerate(bundles) if places[i] in places[:i]]:
        raise UsageError(f"{twice[0]}: is given twice; give each bundle once")
    _check_one_model(bundles, model)
    if model is not None:
        from diver_trt.comparison.torch_engine import check_reference

        check_reference(model, bundles[0])
    present: list[Participant] = []
    absent: list[Absent] = []
    whole = [bundle for bundle in bundles if _is_whole(bundle, absent)]
    run: list[Bundle] = []
    for name in dict.fromkeys(engines) or ENGINE_NAMES:
        if name == "torch-fp32" and model is not None:
            continue
        if name in TORCH_ENGINES:
            if model is not None:
                present.append(torch_participant(model, bundles[0], batch, TORCH_ENGINES[name]))
            else:
                absent.append(
                    Absent(
                        name.replace("-", " "),
                        "no model is given; name the one that was exported with --model",
                        bool(engines),
                    )
                )
            continue
        for bundle in whole:
            called = _called(name, bundle, bundles)
            if reason := _obstacle(name, bundle, batch):
                absent.append(Absent(called, reason, bool(engines)))
            else:
                present.append(bundle_participant(called, name, bundle, batch))
                run.append(bundle)
    if not engines:
        absent.extend(
            Absent(str(bundle.path), "none of these engines runs it here", asked=True)
            for bundle in whole
            if bundle not in run
        )
    if model is not None:
        reference = torch_participant(model, bundles[0], batch, "fp32")
    elif present:
        reference = present.pop(
            next((i for i, one in enumerate(present) if one.precision == "fp32"), 0)
        )
    if not present:
        raise NothingToCompareError(tuple(absent), with_model=model is not None)
    return Lineup(reference, tuple(present), tuple(absent))


def bundle_participant(name: str, engine: str, bundle: Bundle, batch: int) -> Participant:
    """Return a bundle on one of the runtime's engines."""

    def open_bundle() -> Session:
        return _open(engine, bundle, batch)

    return Participant(
        name,
        bundle.precision,
        bundle,
        bundle.process,
        open_bundle,
        lambda: GraphProbe(bundle),
    )


def _open(engine: str, bundle: Bundle, batch: int) -> Session:
    """Open a bundle on one engine; compiled engines keep to the batch that they were built for."""
    size = None if BACKENDS[engine].compiled else batch
    return open_session(engine, bundle, Placement(batch=size)).session


def torch_participant(
    model: BaseModel, bundle: Bundle, batch: int, precision: TorchPrecision
) -> Participant:
    """Return the torch model in a precision."""
    from diver_trt.comparison.torch_engine import TorchSession

    def open_model() -> Any:
        return TorchSession(model, bundle, batch, precision)

    def probe() -> Probe:
        return TorchSession(model, bundle, 1, precision)

    return Participant(f"torch {precision}", precision, bundle, model.process, open_model, probe)


def _called(engine: str, bundle: Bundle, bundles: Sequence[Bundle]) -> str:
    """Return an engine's name with precision, and folder or path where that is ambiguous."""
    alike = [other.path for other in bundles if other.precision == bundle.precision]
    if len(alike) == 1:
        return f"{engine} {bundle.precision}"
    unique = [path.name for path in alike].count(bundle.path.name) == 1
    return f"{engine} {bundle.precision} ({bundle.path.name if unique else bundle.path})"


def _is_whole(bundle: Bundle, absent: list[Absent]) -> bool:
    """Hash a bundle's files before any work; one that has changed joins the absent."""
    try:
        for name in NETWORKS:
            bundle.verified(name)
    except BundleError as reason:
        absent.append(Absent(str(bundle.path), str(reason), asked=True))
        return False
    return True


def _obstacle(engine: str, bundle: Bundle, batch: int) -> str | None:
    """Return why an engine cannot run a bundle here, or None.

    Opening the smallest network is the only proof.
    """
    try:
        session = _open(engine, bundle, batch)
        try:
            session.open("encoder").close()
        finally:
            session.close()
    except MissingExtraError as reason:
        return str(reason)
    except DiverError as reason:
        return str(reason).splitlines()[0]
    return None


def _check_one_model(bundles: Sequence[Bundle], model: BaseModel | None) -> None:
    first, *others = bundles
    shared = (
        "base",
        "latent_shape",
        "image_size",
        "num_classes",
        "null_label",
        "learned_variance",
        "condition_width",
        "timestep_frequencies",
        "places",
    )
    for other in others:
        for what in (*shared, "process", "scaling_factor", "weights_sha256"):
            ours, theirs = getattr(other, what), getattr(first, what)
            if ours != theirs:
                raise BundleError(
                    f"{other.path}: {what} is {ours}, that of {first.path} is {theirs}; compare "
                    "bundles of one model"
                )
    if model is None:
        return
    from diver_trt.models.base import weights_sha256

    found = _described(model.latent_shape, model.num_classes, model.learned_variance)
    wanted = _described(first.latent_shape, first.num_classes, first.learned_variance)
    if found != wanted:
        raise BundleError(
            f"{first.path}: has {wanted}; {model.model_id} has {found}. Give the model that the "
            "bundle was exported from"
        )
    if (digest := weights_sha256(model)) != first.weights_sha256:
        raise BundleError(
            f"{first.path}: was exported from weights with SHA-256 {first.weights_sha256[:12]}…, "
            f"those of {model.model_id} have "
            f"{digest[:12]}…; give the model that the bundle was exported from"
        )
    if first.process != model.process:
        raise BundleError(
            f"{first.path}: bundle.json says that it was trained with {first.process}, "
            f"{model.model_id} with {model.process}; export the model again"
        )
    if first.scaling_factor != model.scaling_factor:
        raise BundleError(
            f"{first.path}: bundle.json says that latents are scaled by {first.scaling_factor}, "
            f"the VAE of {model.model_id} scales by "
            f"{model.scaling_factor}; export the model again"
        )


def _described(latent_shape: tuple[int, int, int], classes: int, learned_variance: bool) -> str:
    variance = "a learned" if learned_variance else "a fixed"
    return f"latents {list(latent_shape)}, {classes} classes and {variance} variance"
