"""What every diffusers pipeline has: an index, configurations, a model card."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard

from diver_trt.counted import few
from diver_trt.errors import ExportError, shown
from diver_trt.models.model_files import ModelFiles, one_line

INDEX = "model_index.json"
DIT_PIPELINE, STABLE_DIFFUSION = "DiTPipeline", "StableDiffusionPipeline"

_LORAS = tuple(
    f"{stem}.{ending}"
    for stem in ("pytorch_lora_weights", "adapter_model")
    for ending in ("safetensors", "bin")
)
"""Names that diffusers and PEFT save a LoRA under."""


def pipeline_index(files: ModelFiles, kind: str) -> dict[str, Any]:
    """Return the index of a pipeline of a kind.

    Raises:
        ExportError: If the files hold no pipeline, or one of another kind.
    """
    index = files.read_json(INDEX, "expected a diffusers pipeline directory, a hub name or a file")
    found = index.get("_class_name")
    if found != kind and found in (DIT_PIPELINE, STABLE_DIFFUSION):
        raise ExportError(
            f"{files.where()}: holds a {found}, expected a {kind}, as --base asks for; leave it out"
        )
    if found != kind:
        raise ExportError(
            f"{files.where()}: holds a {shown(str(found))}, expected a {DIT_PIPELINE} "
            f"(class-conditional) or a {STABLE_DIFFUSION} with a UNet and one text encoder"
        )
    return index


def lora_notes(files: ModelFiles, network: str) -> list[str]:
    """Return a note on each LoRA in a pipeline's folder or in its network's.

    Args:
        files: The pipeline's folder.
        network: The folder of the network in it.
    """
    return [
        f"{place.where(name)}: is a LoRA and is not read; if the model was fine-tuned with it, "
        "fuse it into the weights before exporting"
        for place in (files, files.within(network))
        for name in _LORAS
        if place.has(name)
    ]


def component_class(
    index: Mapping[str, Any], name: str, classes: tuple[str, ...] | None, files: ModelFiles
) -> str:
    """Return the class of a component; `classes` lists those accepted, None accepts any."""
    # diffusers writes [library, class].
    library, kind = (
        entry if isinstance(entry := index.get(name), list) and len(entry) == 2 else (None, None)
    )
    expected = " or ".join(classes[:1]) if classes else "one of diffusers'"
    # A class of the model's own library would be code, which is not run (SECURITY.md).
    if library != "diffusers" or not isinstance(kind, str) or (classes and kind not in classes):
        found = f"{library}.{kind}" if kind else "missing"
        raise ExportError(
            f"{files.where(INDEX)}: the {name} is {shown(found)}, expected {expected}"
            + (". Choose another one with --vae." if name == "vae" else "")
        )
    return kind


def class_names(index: Mapping[str, Any], classes: int, where: str) -> tuple[str, ...] | None:
    """Return `id2label` of model_index.json in class order, or None if it is empty."""
    names = index.get("id2label")
    if not names:
        return None
    remedy = "Correct it, or leave id2label out."
    if not isinstance(names, dict):
        raise ExportError(
            f"{where}: id2label is a {type(names).__name__}, expected an object. {remedy}"
        )
    for key, name in names.items():
        # int() raises ValueError at thousands of digits.
        if not re.fullmatch(r"0|[1-9][0-9]{0,8}", key):
            raise ExportError(
                f"{where}: id2label has the key {shown(repr(key))}, expected class numbers. "
                f"{remedy}"
            )
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise ExportError(
                f"{where}: id2label names class {key} {shown(repr(name))}, expected a text on one "
                f"line. {remedy}"
            )
    wanted = {str(label) for label in range(classes)}
    if wrong := sorted(wanted ^ names.keys(), key=int):
        what = "has no" if wrong[0] in wanted else "has a"
        raise ExportError(
            f"{where}: id2label {what} class {wrong[0]}: it names {len(names)} classes, the "
            f"transformer has {classes}, 0 to {classes - 1}. {remedy}"
        )
    return tuple(names[str(label)] for label in range(classes))


def licence(files: ModelFiles) -> str | None:
    """Return the licence that a model card states, or None."""
    card = files.find("README.md")
    try:
        stated = ModelCard.load(card).data.license if card else None
    except Exception:  # a card without a header simply states none
        return None
    return str(stated) if stated else None


def check_class(config: Mapping[str, Any], classes: tuple[str, ...], where: str) -> None:
    """Refuse a configuration of another class, or of quantised weights.

    Raises:
        ExportError: If `_class_name` is there and not one of `classes`.
    """
    if (found := config.get("_class_name", classes[0])) not in classes:
        raise ExportError(f"{where}: holds a {shown(str(found))}, expected {classes[0]}")
    if config.get("quantization_config"):
        raise ExportError(
            f"{where}: its weights are quantised (quantization_config). Give the weights as they "
            "were before."
        )


def build_module(kind: Any, config: Mapping[str, Any], where: str) -> Any:
    """Return a module of one of diffusers' classes, built from its configuration.

    Raises:
        ExportError: If diffusers refuses the configuration.
    """
    try:
        return kind.from_config(dict(config))
    except Exception as cause:  # diffusers raises many kinds of exception for a bad field
        raise ExportError(
            f"{where}: not a configuration of {kind.__name__}: {one_line(cause)}"
        ) from cause


def unknown_fields(kind: Any, config: Mapping[str, Any], where: str) -> list[str]:
    """Return a note on fields that are set, and that the class does not have."""
    known = inspect.signature(kind.__init__).parameters
    unknown = [
        f"{shown(name)}={shown(repr(value))}"
        for name, value in config.items()
        if name not in known
        and not name.startswith("_")
        # Published configurations hold empty fields of the class that wrote them.
        and value not in (None, False, 0, "", [], {})
    ]
    # A field of Transformer2DModel, which was diffusers' class of a DiT before it had its own.
    unknown = [field for field in unknown if field != "attention_type='default'"]
    return [f"{where}: {kind.__name__} does not have {few(unknown)}; ignored"] if unknown else []
