"""Options that several commands have, and how their texts are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from diver_trt.cli import completion
from diver_trt.distilled.methods import names_of

Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object on standard output and nothing else there."),
]
Classes = Annotated[
    str | None,
    typer.Option(
        help="Which classes these are: a subset (imagenette, imagewoof, imagefruit, …), a FILE, "
        "or 'model'.",
        show_default=False,
        autocompletion=completion.classes,
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        help=f"Who wrote it: {', '.join(names_of('tensors'))}; {', '.join(names_of('folders'))}.",
        show_default=False,
        autocompletion=completion.formats,
    ),
]
Normalisation = Annotated[
    str | None,
    typer.Option(
        help="What tensors were normalised with: imagenet, cifar10, glad, none, minus1to1, …, or "
        "MEAN:STD.",
        show_default=False,
        autocompletion=completion.normalisations,
    ),
]
Collage = Annotated[
    int | None,
    typer.Option(
        help="Images along a side of each stored one; 1 keeps them whole.", show_default=False
    ),
]
BundlePath = Annotated[
    Path | None,
    typer.Option(
        "--bundle",
        help="Exported model (default: the digits model).",
        show_default=False,
        autocompletion=completion.bundles,
    ),
]


def choice(option: str, value: str, choices: tuple[Any, ...]) -> Any:
    """Return the value of an option that has few, or refuse it."""
    if value not in choices:
        raise typer.BadParameter(f"{option} is {value!r}; expected one of {', '.join(choices)}")
    return value


def positive(option: str, value: str) -> int:
    """Return the value of an option that is a whole number, 1 or more, or refuse it."""
    if not (value.isascii() and value.isdigit() and len(value) <= 9 and int(value) > 0):
        raise typer.BadParameter(f"{option} is {value!r}; expected a whole number, 1 or more")
    return int(value)
