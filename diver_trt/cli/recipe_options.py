"""The settings of `Recipe` as options, for every command that takes a recipe.

The options are made from the fields of `Recipe`, so that a new setting is one field. Settings that
have names besides numbers (`matched`, `full`) are read as text here.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Annotated, Any, get_type_hints

import typer

from diver_trt.cli import completion
from diver_trt.cli.options import choice, open_bundle, positive
from diver_trt.cli.process import say
from diver_trt.errors import RecipeError
from diver_trt.recipe import PRESETS, STEP_RANGES, Recipe, setting_text

_BY_RATIO = {
    "inherit_step": (
        "inherit_snr",
        float,
        "Instead of --inherit-step: the signal-to-noise ratio of that level; the nearest step is "
        "taken.",
    ),
    "window": (
        "window_snr",
        str,
        "Instead of --window: the signal-to-noise ratios of its two levels, such as 0.05:0.32; "
        "the nearest steps are taken.",
    ),
}
"""Settings that name a noise level by its step: the option that names it by its signal-to-noise
ratio, the option's type and its help.
"""

_OFFERED = {
    "sigma": completion.sigmas,
    "guide": completion.guides,
    "start_step": completion.words("matched"),
    **dict.fromkeys(STEP_RANGES, completion.words("full")),
}
"""Settings that are a word, or accept one besides a number: what a shell offers for each."""

_NONE = {"cfg_window": "full"}
"""What None means for a setting, where it does not mean the model's own value."""

_OFF = {
    "no_inheritance": ("inherit_step", None, "Ablation: start from pure noise."),
    "no_guidance": ("gamma", 0.0, "Ablation: no semantic guidance (gamma 0)."),
}
"""Flags that switch a setting off: the setting, the value that means off, and the help text."""


def takes_recipe(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameter `recipe` of a command by an option for each setting of `Recipe`.

    The command itself is called with one checked `Recipe`.
    """
    # Typer reads options from the signature and the annotations of a function, so both are built.
    parameters = dict(inspect.signature(command).parameters)
    del parameters["recipe"]
    hints = get_type_hints(command, include_extras=True)
    options = {name: (hints[name], parameter.default) for name, parameter in parameters.items()}
    recipe_options = dict(_recipe_options())
    options |= recipe_options

    @functools.wraps(command)
    def wrapped(**given: Any) -> None:
        settings = {name: given.pop(name) for name in recipe_options}
        ratios = {name: settings.pop(option) for name, (option, _, _) in _BY_RATIO.items()}
        if any(ratio is not None for ratio in ratios.values()):
            _take_ratios(ratios, settings, given)
        command(**given, recipe=parse_recipe(**settings))

    keyword = inspect.Parameter.KEYWORD_ONLY
    wrapped.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, keyword, default=default, annotation=hint)
            for name, (hint, default) in options.items()
        ]
    )
    wrapped.__annotations__ = {name: hint for name, (hint, _) in options.items()}
    return wrapped


def _recipe_options() -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Yield the name, type and default of each option, in the order of the fields."""
    presets = (
        "Recipe to start from: paper (the defaults), ncfm (gamma 0.02), "
        "matched (t_r = t_f, half the steps), level (t_r = t_f = 40, guide noised), d4m (guidance "
        "8, for Stable Diffusion)."
    )
    yield "preset", (_option(str, presets, completion.presets), "paper")
    off = {setting: (flag, text) for flag, (setting, _, text) in _OFF.items()}
    for setting in fields(Recipe):
        default = setting.default
        absent = _NONE.get(setting.name, "the model's own")
        shown = absent if default is None else setting_text(default)
        # In parentheses: rich reads "[paper: 50]" as a style and prints nothing
        # (https://rich.readthedocs.io/en/stable/markup.html).
        source = "paper" if setting.metadata["paper"] else "default"
        text = f"{setting.metadata['help']} ({source}: {shown})."
        offered = _OFFERED.get(setting.name)
        # A setting whose default is None, the model's own, is a whole number if it is not a text.
        kind = str if offered else type(default or 1)
        # None means not given: only then a preset decides, or another number of steps.
        yield setting.name, (_option(kind | None, text, offered), None)
        if setting.name in _BY_RATIO:
            option, number, text = _BY_RATIO[setting.name]
            yield option, (_option(number | None, text, None), None)
        if setting.name in off:
            flag, meaning = off[setting.name]
            yield flag, (Annotated[bool, typer.Option(_flag(flag), help=meaning)], False)


def _take_ratios(ratios: dict[str, Any], settings: dict[str, Any], given: dict[str, Any]) -> None:
    """Set steps by the ratios of their levels, which the bundle's process decides."""
    from diver_trt.method.schedule import nearest_step

    inherited, window = ratios["inherit_step"], ratios["window"]
    # 0 counts as given, although it is out of range.
    step_given = settings["inherit_step"] is not None or settings["no_inheritance"]
    if inherited is not None and step_given:
        raise RecipeError(
            "--inherit-snr contradicts --inherit-step and --no-inheritance; give one of them"
        )
    if window is not None and settings["window"] is not None:
        raise RecipeError("--window-snr contradicts --window; give one of them")
    # Any bundle of `compare` will do: it refuses bundles of different processes.
    path = given["bundle"] if "bundle" in given else given["bundles"][0]
    preset = PRESETS[choice("--preset", settings["preset"], tuple(PRESETS))]
    process, steps = open_bundle(path).process, settings["steps"] or preset.steps
    if inherited is not None:
        settings["inherit_step"] = nearest_step(process, steps, inherited)
    if window is not None:
        high, low = (nearest_step(process, steps, ratio) for ratio in _two_ratios(window))
        if high == low:
            raise RecipeError(
                f"--window-snr is {window!r}: both levels are nearest to step {high} of {steps}; "
                "give two that are further apart, or more --steps"
            )
        settings["window"] = f"{high}:{low}"


def _two_ratios(text: str) -> tuple[float, float]:
    try:
        first, last = (float(part) for part in text.split(":"))
    except ValueError:
        first, last = 0.0, 0.0
    if not 0 < first < last:  # false for NaN
        raise RecipeError(
            f"--window-snr is {text!r}; expected FIRST:LAST, two ratios that rise, "
            "such as 0.05:0.32"
        )
    return first, last


def _option(kind: Any, text: str, offered: Any) -> Any:
    return Annotated[kind, typer.Option(help=text, autocompletion=offered)]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def parse_recipe(preset: str, **given: Any) -> Recipe:
    """Return a preset with the settings that were given on the command line.

    If `--steps` differs from the preset's, the settings that name a step are scaled with it, except
    those that were given. The scaled settings are printed.

    Raises:
        RecipeError: If settings contradict each other or lie out of range.
    """
    base = PRESETS[choice("--preset", preset, tuple(PRESETS))]
    settings = {name: given[name] for name in given if name not in _OFF and given[name] is not None}
    # Before the given settings are put in, whose steps count among the new ones already.
    of, base = base.steps, base.scaled_to(settings.get("steps", base.steps))
    for flag, (name, value, _) in _OFF.items():
        if not given.get(flag):
            continue
        if name in settings:
            options = f"{_flag(flag)} and {_flag(name)} {settings[name]}"
            raise RecipeError(f"{options} contradict each other; give one of them")
        settings[name] = value
    if "start_step" in settings:
        settings["start_step"] = _start_step(settings["start_step"], settings, base)
    if followed := _followed(settings, base):
        name, step = followed
        settings[name] = step
        say(f"{_flag(name)} {step}: {preset} starts at the level that it inherits")
    for name in STEP_RANGES:
        if name in settings:
            settings[name] = _step_range(name, settings[name], settings, base)
    if base.steps != of and (kept := _scaled(base, settings)):
        say(f"--steps {base.steps}: {', '.join(kept)}, as {preset} has them among {of}")
    return replace(base, **settings)


def _start_step(text: str, settings: dict[str, Any], base: Recipe) -> int:
    if text == "matched":
        step: int | None = settings.get("inherit_step", base.inherit_step)
        if step is None:
            raise RecipeError(
                "--start-step matched contradicts --no-inheritance: no level is inherited that "
                "sampling could start at; leave one of them out"
            )
        return step
    return positive("--start-step", text)


def _followed(settings: dict[str, Any], base: Recipe) -> tuple[str, int] | None:
    """Return the start step or the inherit step, if it has to follow the other one, and its value.

    It does where a preset starts at the level that it inherits and only one of the two was given.
    Otherwise sampling would start with more or less noise than its first step expects.
    """
    pair = {"inherit_step": "start_step", "start_step": "inherit_step"}
    given = [name for name in pair if name in settings]
    if base.start_step != base.inherit_step or len(given) != 1 or settings[given[0]] is None:
        return None
    return pair[given[0]], settings[given[0]]


def _step_range(name: str, text: str, settings: dict[str, Any], base: Recipe) -> tuple[int, int]:
    if text == "full":
        return settings.get("start_step", settings.get("steps", base.steps)), 0
    high, _, low = text.partition(":")
    # isdigit is true for digits of every script, and int() has a limit on digits of its own.
    if not (text.isascii() and len(text) <= 20 and high.isdigit() and low.isdigit()):
        raise RecipeError(f"{_flag(name)} is {text!r}; expected HIGH:LOW, such as 40:25, or full")
    return int(high), int(low)


def _scaled(recipe: Recipe, settings: dict[str, Any]) -> list[str]:
    """Return the settings that were scaled to other steps, as options."""
    return [
        f"{_flag(name)} {setting_text(getattr(recipe, name))}"
        for name in ("inherit_step", "start_step", "window")
        if name not in settings
    ]
