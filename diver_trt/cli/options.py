"""Options that several commands have, and how their texts are parsed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diver_trt.cli import completion
from diver_trt.cli.console import phases, say
from diver_trt.distilled.methods import names_of
from diver_trt.errors import UsageError

if TYPE_CHECKING:
    from diver_trt.bundle import Bundle

Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object on standard output and nothing else there."),
]
Gallery = Annotated[
    bool,
    typer.Option(
        "--gallery/--no-gallery",
        help="Write index.html, a page with every distilled image beside its recovered one.",
    ),
]
Classes = Annotated[
    str | None,
    typer.Option(
        help="Class map: a subset (imagenette, imagewoof, imagefruit, …), a FILE, or 'model'.",
        autocompletion=completion.classes,
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="Method that wrote the files: "
        f"{', '.join(names_of('tensors'))}; {', '.join(names_of('folders'))}.",
        autocompletion=completion.formats,
    ),
]
Normalisation = Annotated[
    str | None,
    typer.Option(
        help="Statistics that tensors were normalised with: imagenet, cifar10, glad, none, "
        "minus1to1, …, or MEAN:STD.",
        autocompletion=completion.normalisations,
    ),
]
Collage = Annotated[
    int | None,
    typer.Option(help="Tiles along a side of each stored image; 1 keeps images whole."),
]
# A text and not a Path, which would make hf:/OWNER/NAME of hf://OWNER/NAME.
BundlePath = Annotated[
    str | None,
    typer.Option(
        "--bundle",
        help="Exported model: a folder, or hf://OWNER/NAME on the hub (default: the digits model).",
        autocompletion=completion.bundles,
    ),
]
ModelRevision = Annotated[
    str | None,
    typer.Option(help="The model's branch, tag or commit on the hub."),
]
ModelVae = Annotated[str | None, typer.Option(help="Another VAE, as for export.")]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Delete what an earlier run left in OUTPUT, and begin again."),
]
Seed = Annotated[int, typer.Option(help="Seed of the noise; each image draws its own.")]


def open_bundle(bundle: str | None) -> Bundle:
    """Open the bundle that an option or argument names; None is the digits model.

    What is downloaded is printed, and how far it is.
    """
    from diver_trt.bundle import Bundle
    from diver_trt.digits import default_bundle

    with phases() as show:
        return Bundle.open(
            default_bundle() if bundle is None else bundle, on_note=say, on_progress=show
        )


def require_model(model: str | None, revision: str | None, vae: str | None) -> None:
    """Refuse options that describe a model where none is given.

    Raises:
        typer.BadParameter: If there is one.
    """
    for option, value in (("--revision", revision), ("--vae", vae)):
        if model is None and value is not None:
            raise typer.BadParameter(f"{option} describes --model; give both, or neither")


def refuse(options: Mapping[str, Any], reason: str) -> None:
    """Refuse options that would have no effect on an input.

    Args:
        options: What was given for each; None or False is nothing.
        reason: Why they would have none, as a clause.

    Raises:
        UsageError: If one is given.
    """
    for option, value in options.items():
        if value is not None and value is not False:
            raise UsageError(f"{option}: does not apply, since {reason}; leave it out")


def choice(option: str, value: str, choices: tuple[Any, ...]) -> Any:
    """Return the value of an option if it is one of the choices.

    Raises:
        typer.BadParameter: If it is not.
    """
    if value not in choices:
        raise typer.BadParameter(f"{option} is {value!r}; expected one of {', '.join(choices)}")
    return value


def positive(option: str, value: str) -> int:
    """Return the value of an option that is a whole number, 1 or more.

    Raises:
        typer.BadParameter: If it is not.
    """
    # isdigit is true for digits of every script; nine of them stay far from int()'s own limit on
    # digits (https://docs.python.org/3/library/stdtypes.html#int-max-str-digits).
    if not (value.isascii() and value.isdigit() and len(value) <= 9 and int(value) > 0):
        raise typer.BadParameter(f"{option} is {value!r}; expected a whole number, 1 or more")
    return int(value)
