"""`diver-trt export`: a model in, a bundle of ONNX graphs out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diver_trt.cli import completion
from diver_trt.cli.console import print_json, progress, say
from diver_trt.cli.inspect import bundle_facts
from diver_trt.cli.options import Json, choice
from diver_trt.errors import printable
from diver_trt.hub.name import HubName
from diver_trt.models import BASES, ModelOptions
from diver_trt.models.prompts import NEGATIVE, prompts_from_options

if TYPE_CHECKING:
    from diver_trt.export.exporter import ExportedNetwork
    from diver_trt.models.base import BaseModel

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A DiTPipeline or StableDiffusionPipeline (directory or hub name), or a .pt file of "
        "DiT, SiT or REPA.",
    ),
]
BundleArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="New folder for the bundle.")
]
PrecisionOption = Annotated[
    str,
    typer.Option(
        help="fp32 (the reference), fp16 (what ships to GPUs), or weights in eight bits: int8 "
        "for CPUs, int8-fp16 for GPUs.",
        autocompletion=completion.precisions,
    ),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")]
Vae = Annotated[
    str | None,
    typer.Option(help="Another VAE, directory or hub name; a .pt file does not contain one."),
]
TimestepFrequencies = Annotated[
    str | None,
    typer.Option(
        help="Sinusoids the weights were trained with: dit or diffusers (default: by the source "
        "of the weights).",
        autocompletion=completion.words("dit", "diffusers"),
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        help="Base model, where the source does not state it: "
        f"{'; '.join(f'{base.name}, {base.title}' for base in BASES.values())}.",
    ),
]

Classes = Annotated[
    str | None,
    typer.Option(
        help="Classes of a text-conditional model: a file with a name per line, names separated by "
        "commas, or imagenet (the default).",
    ),
]
Prompt = Annotated[
    str | None,
    typer.Option(
        help='Prompt of each class, such as "a photo of a {name}" (default: the name alone).'
    ),
]
PromptFile = Annotated[
    Path | None,
    typer.Option("--prompts", help="File with a prompt per line, in the order of the classes."),
]
NegativePrompt = Annotated[
    str | None,
    typer.Option(help=f'Prompt of the null class (default: "{NEGATIVE}", as in D4M).'),
]


def export(
    model: ModelArgument,
    bundle: BundleArgument,
    precision: PrecisionOption = "fp32",
    revision: Revision = None,
    vae: Vae = None,
    timestep_frequencies: TimestepFrequencies = None,
    base: Base = None,
    classes: Classes = None,
    prompt: Prompt = None,
    prompt_file: PromptFile = None,
    negative_prompt: NegativePrompt = None,
    as_json: Json = False,
) -> None:
    """Export a diffusion model and its VAE to a bundle of four checked ONNX graphs."""
    from diver_trt.contract import PRECISIONS

    chosen = choice("--precision", precision, PRECISIONS)
    frequencies = (
        choice("--timestep-frequencies", timestep_frequencies, ("dit", "diffusers"))
        if timestep_frequencies
        else None
    )
    stated = choice("--base", base, tuple(BASES)) if base else None
    # None, and not the default prompts: a model whose classes are built in refuses any.
    prompts = (
        None
        if (classes, prompt, prompt_file, negative_prompt) == (None,) * 4
        else prompts_from_options(classes, prompt, prompt_file, negative_prompt)
    )
    # A typed `hf://OWNER/NAME` would become a folder of this name.
    if HubName.parse(bundle):
        raise typer.BadParameter(
            "BUNDLE is a name on the hub; export into a folder, then `diver-trt push` it"
        )
    from diver_trt.packages import importing
    from diver_trt.runtime.backends.onnx_package import import_onnxruntime

    # Options are checked before this import, which loads torch and takes seconds.
    with importing("export", "exporting"):
        import onnxscript  # noqa: F401, which torch imports only when it writes the first graph

        from diver_trt.export.exporter import export_bundle
        from diver_trt.models.recognition import recognised_base
    # The exporter checks its graphs in ONNX Runtime, whose CPU and GPU packages exclude each other:
    # the extra [export] leaves the choice.
    import_onnxruntime()
    load_model = BASES[stated or recognised_base(model, revision)].load().load_model

    options = ModelOptions(
        revision=revision,
        vae=vae,
        timestep_frequencies=frequencies,
        base=stated,
        prompts=prompts,
    )
    loaded = load_model(model, options)
    _say_assumptions(loaded)
    exported = []
    with progress("exporting", 4) as advance:
        for network in export_bundle(loaded, bundle, chosen):
            exported.append(network)
            advance()
    _print_exported(exported, bundle, as_json=as_json)


def _say_assumptions(loaded: BaseModel) -> None:
    # Names and notes come from the model's files.
    for note in loaded.notes:
        say(f"note: {printable(loaded.model_id)}: {note}")
    if loaded.timestep_frequencies:
        found = (
            f"timestep frequencies of {loaded.timestep_frequencies} ({loaded.frequencies_reason})"
        )
        say(f"{loaded.model_id}: {found}; --timestep-frequencies overrides")


def _print_exported(exported: Sequence[ExportedNetwork], bundle: Path, *, as_json: bool) -> None:
    # Here, for the time that every `--help` takes.
    import shlex

    from diver_trt.bundle import Bundle

    # What is printed is what a device will read.
    written = Bundle.open(bundle)
    if as_json:
        errors = {item.network.name: item.error for item in exported}
        print_json(
            bundle=str(bundle), sha256=written.sha256, relative_l2=errors, **bundle_facts(written)
        )
        return
    for item in exported:
        print(
            f"  {item.network.name:<12} {item.network.parameters:>13,} parameters   relative "
            f"L2 to torch {item.error:.1e}"
        )
    print(
        f"wrote {printable(str(bundle))}; next: diver-trt recover DISTILLED RECOVERED --bundle "
        f"{printable(shlex.quote(str(bundle)))}"
    )
