"""Writing a bundle: four networks, exported, checked, hashed, described in `bundle.json`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diver_trt._version import __version__
from diver_trt.bundle import Bundle, Model, Network
from diver_trt.contract import (
    EIGHT_BIT_PRECISIONS,
    HALF_PRECISIONS,
    NETWORKS,
    NetworkName,
    Precision,
    contract,
)
from diver_trt.errors import ExportError, OutputError
from diver_trt.export.checks import check_against_module
from diver_trt.export.onnx_graph import graph_from_network
from diver_trt.files import FileRecord, resolved
from diver_trt.models.base import BaseModel, weights_sha256
from diver_trt.models.denoiser import build_networks
from diver_trt.structs import Invalid


@dataclass(frozen=True, slots=True)
class ExportedNetwork:
    """A finished network, and its largest relative L2 distance to torch."""

    network: Network
    error: float


def export_bundle(
    model: BaseModel, path: Path, precision: Precision = "fp32"
) -> Iterator[ExportedNetwork]:
    """Write a bundle network by network, yielding each when it is written and checked.

    The bundle appears under its name when all four are done; until then, and after a failure,
    nothing is there.

    Args:
        model: The loaded model.
        path: Directory to make; it must not exist, or be empty.
        precision: `"fp32"`, `"fp16"`, or int8 weights with all else in float32 (`"int8"`) or in
            float16 (`"int8-fp16"`).

    Raises:
        OutputError: If the directory holds something, or cannot be made.
        ExportError: If the model's facts contradict each other, or a graph fails its checks.
    """
    # A folder cannot be renamed to `.` or over a symlink, which would only show at the end.
    path = resolved(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OutputError(
            f"{path}: already exists; choose another folder for the bundle, or remove this one"
        )
    facts = _facts(model, precision)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, since a rename is atomic only inside one file system.
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as cause:
        raise OutputError(f"{path}: cannot be made ({cause.strerror})") from cause
    try:
        networks: dict[NetworkName, Network] = {}
        for exported in _export_networks(model, staging, precision):
            networks[exported.network.name] = exported.network
            yield exported
        replace(facts, path=staging, networks=networks).write()
        staging.chmod(0o755)  # mkdtemp makes it unreadable to others
        # rename also replaces an empty folder: https://man7.org/linux/man-pages/man2/rename.2.html
        staging.replace(path)
    except OSError as cause:  # ONNX's own does not name the file
        raise OutputError(f"{path}: cannot be written ({cause.strerror or cause})") from cause
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _export_networks(
    model: BaseModel, folder: Path, precision: Precision
) -> Iterator[ExportedNetwork]:
    references: dict[NetworkName, Any] = build_networks(model, torch.float32)
    networks: dict[NetworkName, Any] = (
        build_networks(model, torch.float16) if precision in HALF_PRECISIONS else references
    )
    # Measured, since no configuration states it: it follows from the conditioner's layers.
    width = _condition_width(references["conditioner"])
    tensors = contract(model.image_size, model.latent_shape, model.layout, width, precision)
    for name in NETWORKS:
        inputs, outputs = tensors[name]
        graph = folder / f"{name}.onnx"
        weights = graph_from_network(
            networks[name], inputs, outputs, graph, int8_weights=precision in EIGHT_BIT_PRECISIONS
        )
        # Against float32 in every precision: a fault of the plan itself must show.
        error = check_against_module(graph, references[name], inputs, outputs, precision)
        network = Network(
            name=name,
            graph=FileRecord.of(graph),
            weights=FileRecord.of(weights) if weights else None,
            inputs=inputs,
            outputs=outputs,
            parameters=sum(weight.numel() for weight in networks[name].parameters()),
        )
        yield ExportedNetwork(network, error)


@torch.no_grad()
def _condition_width(conditioner: nn.Module) -> int:
    """Return the number of values `M` of a condition."""
    return int(conditioner(torch.zeros(1), torch.zeros(1, dtype=torch.int64)).shape[1])


def _facts(model: BaseModel, precision: Precision) -> Bundle:
    """Return a model's bundle without its networks, which take minutes to export.

    Raises:
        ExportError: If the model's facts contradict each other, so that no bundle can hold it.
    """
    probed = model.modules(torch.float32).predictor
    facts = Bundle(
        path=Path(),
        sha256="",  # known when it is written
        model=Model(
            base=model.base,
            id=model.model_id,
            revision=model.revision,
            licence=model.licence,
            weights_sha256=weights_sha256(model),
        ),
        precision=precision,
        image_size=model.image_size,
        latent_shape=model.latent_shape,
        scaling_factor=model.scaling_factor,
        num_classes=model.num_classes,
        null_label=model.num_classes,
        class_names=model.class_names,
        prompts=model.prompts,
        process=model.process,
        learned_variance=model.learned_variance,
        guided_channels=model.layout.guided_channels,
        timestep_frequencies=model.timestep_frequencies,
        # the graph is searched for the same places
        places=tuple(model.probe_points(probed)),
        networks={},
        exported_with={
            # Not of the installed package, which a checkout need not be.
            "diver-trt": __version__,
            **{
                package: version(package)
                for package in ("torch", "diffusers", "onnx", "onnxscript")
            },
        },
    )
    try:
        facts.check_facts()
    except Invalid as problem:
        raise ExportError(f"{model.model_id}: cannot be exported: {problem}") from None
    return facts
