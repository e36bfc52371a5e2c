"""Options that several commands have, and how their texts are read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diver_trt.cli import completion
from diver_trt.cli.process import say
from diver_trt.errors import RecipeError

if TYPE_CHECKING:
    from diver_trt.recipe import Recipe


Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object on standard output and nothing else there."),
]
Classes = Annotated[
    str | None,
    typer.Option(
        help="Which classes these are: a subset (imagenette, imagewoof, imagefruit, …), a FILE, or 'model'.",
        show_default=False,
        autocompletion=completion.classes,
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="Who wrote it: mtt, glad, dc, idc, dream, ncfm, frepo, kip, arrays; sre2l, rded, d4m, minimax, folders.",
        show_default=False,
        autocompletion=completion.formats,
    ),
]
Normalisation = Annotated[
    str | None,
    typer.Option(
        help="What tensors were normalised with: imagenet, cifar10, glad, none, …, or MEAN:STD.",
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
ZcaReference = Annotated[
    Path | None,
    typer.Option(
        help="Training images, to fit a ZCA transform again that the file does not have, or FRePo's own.",
        show_default=False,
    ),
]
BundlePath = Annotated[
    Path | None,
    typer.Option(
        "--bundle",
        help="Exported model.  [default: the digits model]",
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


def parse_recipe(
    preset: str,
    *,
    start_step: str | None,
    window: str | None,
    no_inheritance: bool,
    no_guidance: bool,
    **given: Any,
) -> Recipe:
    """Return the preset with the settings that were given on the command line.

    Other steps than the preset's scale what it says in steps, except for what is given itself; what is scaled is printed.
    """
    from diver_trt.recipe import PRESETS

    base = PRESETS[choice("--preset", preset, tuple(PRESETS))]
    settings = {name: value for name, value in given.items() if value is not None}
    of, base = base.steps, base.scaled_to(settings.get("steps", base.steps))
    for off, option, name, value in (
        (no_inheritance, "inheritance", "inherit_step", None),
        (no_guidance, "guidance", "gamma", 0.0),
    ):
        if off and name in settings:
            raise RecipeError(
                f"--no-{option} and --{name.replace('_', '-')} {settings[name]} contradict each other; give one of them"
            )
        if off:
            settings[name] = value
    if start_step == "matched":
        settings["start_step"] = settings.get("inherit_step", base.inherit_step)
    elif start_step is not None:
        settings["start_step"] = positive("--start-step", start_step)
    if window == "full":
        settings["window"] = (settings.get("start_step", settings.get("steps", base.steps)), 0)
    elif window is not None:
        high, _, low = window.partition(":")
        if not (window.isascii() and len(window) <= 20 and high.isdigit() and low.isdigit()):
            raise RecipeError(f"--window is {window!r}; expected HIGH:LOW, such as 40:25, or full")
        settings["window"] = (int(high), int(low))
    if base.steps != of and (kept := _kept(base, settings)):
        say(f"--steps {base.steps}: {', '.join(kept)}, as {preset} has them among {of}")
    return base.with_settings(**settings)


def _kept(scaled: Recipe, settings: dict[str, Any]) -> list[str]:
    """Return what a recipe that was scaled to other steps keeps of them, as options."""
    high, low = scaled.window
    texts = {
        "inherit_step": f"--inherit-step {scaled.inherit_step}",
        "start_step": f"--start-step {scaled.start_step}",
        "window": f"--window {high}:{low}",
    }
    return [text for name, text in texts.items() if name not in settings]
