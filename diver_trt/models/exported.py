"""The model that a bundle was exported from, loaded again as torch modules."""

from __future__ import annotations

from dataclasses import replace

from diver_trt.bundle import Bundle
from diver_trt.errors import BundleError, shown_value
from diver_trt.models import BASES, ModelOptions
from diver_trt.models.base import BaseModel, weights_sha256
from diver_trt.models.prompts import stored_prompts


def load_exported(bundle: Bundle, source: str, options: ModelOptions) -> BaseModel:
    """Load a model with the base and the prompts that its bundle records.

    Args:
        bundle: The bundle.
        source: A folder, a name on the hub, or a file.
        options: What the user states about the model, as at the export.

    Raises:
        BundleError: If this version does not know the base.
        ExportError: If the model cannot be read.
    """
    if bundle.model.base not in BASES:
        raise BundleError(
            f"{bundle.path}: was exported from the base model {shown_value(bundle.model.base)}, "
            f"expected one of {', '.join(BASES)}. Update diver-trt."
        )
    base = BASES[bundle.model.base]
    # Its own prompts, since other prompts are other weights; the default would be ImageNet's.
    prompts = stored_prompts(bundle.class_names, bundle.prompts)
    return base.load().load_model(source, replace(options, base=base.name, prompts=prompts))


def require_weights(bundle: Bundle, model: BaseModel) -> None:
    """Refuse a model whose weights are not those that a bundle was exported from.

    Raises:
        BundleError: If they differ.
    """
    if (digest := weights_sha256(model)) != bundle.model.weights_sha256:
        raise BundleError(
            f"{bundle.path}: was exported from weights with SHA-256 "
            f"{bundle.model.weights_sha256[:12]}…, those of {model.model_id} have "
            f"{digest[:12]}…. Give the model that the bundle was exported from."
        )
