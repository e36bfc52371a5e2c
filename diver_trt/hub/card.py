"""The model card of a bundle: `README.md` of its repository, with what `bundle.json` states.

Texts that other people wrote (names of models and classes, results) are quoted as code, where
neither Markdown nor HTML means anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diver_trt.bundle import MANIFEST, Bundle
from diver_trt.counted import megabytes
from diver_trt.documents import Document, Limits
from diver_trt.errors import BundleError, printable, shown
from diver_trt.hub.name import HubName, is_repository
from diver_trt.structs import Sha256

CARD = "README.md"

_LIMITS = Limits(64 * 1024**2, 8192)
"""Of the result of a comparison, which has the figures of every step and image."""
_NAMED_CLASSES = 20

_PRECISIONS = {
    "fp32": "float32",
    "fp16": "float16, and float32 where float16 loses too much",
    "int8": "weights in int8, everything else in float32",
    "int8-fp16": "weights in int8, everything else as in fp16 bundles",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedEngine:
    """One engine in the result of `compare --json`; null is a figure that is not finite."""

    name: str
    verdict: str
    mean_psnr_db: float | None
    lowest_psnr_db: float | None
    lowest_ssim: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedBundle:
    """One bundle in the result of `compare --json`."""

    sha256: Sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedImages:
    """What the engines in the result of `compare --json` were given."""

    origin: str
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What a card quotes of the result of `compare --json`."""

    passed: bool
    headline: str
    reference: str
    engines: tuple[ComparedEngine, ...]
    inputs: ComparedImages
    environment: Mapping[str, str]
    recipe: Mapping[str, Any] | None = None
    bundles: tuple[ComparedBundle, ...]

    @classmethod
    def read(cls, path: Path, bundle: Bundle) -> Compared:
        """Read the file that `compare --json` printed.

        Raises:
            BundleError: If it is not such a file, or another bundle was compared.
        """
        compared = Document.read(path, BundleError, _LIMITS).load(cls)
        if bundle.sha256 not in (one.sha256 for one in compared.bundles):
            raise BundleError(
                f"{printable(str(path))}: compares other bundles than {bundle.path}. Compare this "
                "one with `diver-trt compare … --json`."
            )
        return compared


def model_card(
    bundle: Bundle, repository: str, licence: str, compared: Compared | None = None
) -> str:
    """Return the text of a model card.

    Args:
        bundle: The bundle.
        repository: `OWNER/NAME` of the repository that it is for.
        licence: Licence of the weights, by the hub's identifier.
        compared: The figures to quote.
    """
    parts = (
        _front_matter(bundle, licence),
        [f"# {repository.partition('/')[2]}", ""],
        _what_it_is(bundle, licence),
        _use(HubName(repository)),
        _files(bundle),
        _comparison(compared),
    )
    return "\n".join(line for part in parts for line in part)


def _front_matter(bundle: Bundle, licence: str) -> Iterator[str]:
    """Yield the card's metadata, in JSON values, which YAML reads too."""
    # https://huggingface.co/docs/hub/model-cards
    yield "---"
    yield f"license: {json.dumps(licence)}"
    yield 'library_name: "diver-trt"'
    # A folder on the exporting machine is not a model that the hub could link to.
    if is_repository(bundle.model_id):
        yield f"base_model: {json.dumps(bundle.model_id)}"
    yield f'tags: ["dataset-distillation", "diver", "onnx", {json.dumps(bundle.precision)}]'
    yield "---"
    yield ""


def _what_it_is(bundle: Bundle, licence: str) -> Iterator[str]:
    on_hub = is_repository(bundle.model_id)
    revision = bundle.model.revision
    parameters = sum(network.parameters for network in bundle.networks.values())
    size = sum(record.size_bytes for record in bundle.files)
    model = (
        f"{_code(bundle.model_id)}, revision {_code(revision) if revision else 'not recorded'}"
        if on_hub
        else f"{_code(bundle.model_id)}, a folder or file on the machine that exported it"
    )
    yield "A bundle for diver-trt: a latent diffusion model and its VAE as four ONNX graphs. It"
    yield "recovers distilled datasets with"
    yield "[DIVER](https://arxiv.org/abs/2605.12649): abstract distilled images become realistic."
    yield ""
    yield "| | |"
    yield "|---|---|"
    yield f"| base model | {model} |"
    yield f"| licence of the weights | `{licence}`, which applies to this conversion of them too |"
    yield f"| precision | `{bundle.precision}`: {_PRECISIONS[bundle.precision]} |"
    yield f"| images | {bundle.image_size} × {bundle.image_size} pixels |"
    yield f"| classes | {_classes(bundle)} |"
    if bundle.prompts:
        yield f"| prompts | {_code(bundle.prompts[0])}, …; negative: {_code(bundle.prompts[-1])} |"
    yield f"| parameters | {parameters:,} |"
    yield f"| size | {megabytes(size)} |"
    yield f"| SHA-256 of the float32 weights | `{bundle.model.weights_sha256}` |"
    yield f"| SHA-256 of `{MANIFEST}` | `{bundle.sha256}` |"
    yield ""


def _classes(bundle: Bundle) -> str:
    names = bundle.class_names or ()
    named = ", ".join(map(_code, names[:_NAMED_CLASSES]))
    rest = ", …" if len(names) > _NAMED_CLASSES else ""
    return f"{bundle.num_classes:,}" + (f": {named}{rest}" if named else "")


def _use(name: HubName) -> Iterator[str]:
    yield "## Use"
    yield ""
    yield "With diver-trt and its extra `hub`:"
    yield ""
    yield "```"
    yield f"diver-trt inspect {name}"
    yield f"diver-trt recover DISTILLED RECOVERED --bundle {name}"
    yield "```"
    yield ""
    yield "The bundle is downloaded once, and every file is compared with its hash. On an NVIDIA"
    yield "GPU, compile it before you recover:"
    yield ""
    yield "```"
    yield f"diver-trt build {name} --batch 8"
    yield "```"
    yield ""


def _files(bundle: Bundle) -> Iterator[str]:
    yield "## Files"
    yield ""
    yield "| network | parameters | files | size |"
    yield "|---|---:|---|---:|"
    for network in bundle.networks.values():
        files = ", ".join(_code(record.name) for record in network.files)
        size = megabytes(sum(record.size_bytes for record in network.files))
        yield f"| {network.name} | {network.parameters:,} | {files} | {size} |"
    yield ""
    exported = ", ".join(f"{_code(f'{name} {of}')}" for name, of in bundle.exported_with.items())
    yield f"Exported with {exported}."
    yield ""


def _comparison(compared: Compared | None) -> Iterator[str]:
    yield "## Comparison"
    yield ""
    if compared is None:
        yield "No figures of `diver-trt compare` were given when this card was written."
        yield ""
        return
    result = "passed" if compared.passed else "failed"
    yield f"`diver-trt compare` {result}: {_code(compared.headline)}. The reference is"
    yield f"{_code(compared.reference)}; the input was {_code(compared.inputs.origin)}."
    settings = {**(compared.recipe or {}), "seed": compared.inputs.seed}
    if stated := [
        f"{name} {json.dumps(value)}" for name, value in settings.items() if value is not None
    ]:
        yield f"Settings of the comparison: {', '.join(map(_code, map(shown, stated)))}."
    yield ""
    yield "| engine | verdict | mean PSNR | lowest PSNR | lowest SSIM |"
    yield "|---|---|---:|---:|---:|"
    for engine in compared.engines:
        ssim = engine.lowest_ssim
        yield (
            f"| {_code(engine.name)} | {_code(engine.verdict)} | "
            f"{_decibels(engine.mean_psnr_db, ssim)} | {_decibels(engine.lowest_psnr_db, ssim)} | "
            f"{'not finite' if ssim is None else f'{ssim:.4f}'} |"
        )
    yield ""
    of = ", ".join(_code(f"{name} {value}") for name, value in compared.environment.items())
    yield f"Measured with {of}."
    yield ""


def _decibels(figure: float | None, ssim: float | None) -> str:
    if figure is not None:
        return f"{figure:.1f} dB"
    # Equal images have an infinite PSNR and an SSIM of one; those of a NaN have neither.
    return "no difference" if ssim == 1 else "not finite"


def _code(foreign: str) -> str:
    """Return untrusted text as a code span, which a backtick would end and `|` a table's cell."""
    if not foreign:
        return "(empty)"  # an empty code span cannot be written in Markdown
    return f"`{re.sub('[`|]', ' ', printable(foreign))}`"
