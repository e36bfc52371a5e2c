"""The caption of a contact sheet: the model, and the command that recovers the same images."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from diver_trt.distilled.methods import METHODS
from diver_trt.errors import shown
from diver_trt.recipe import PRESETS, STEP_RANGES, Recipe, setting_text

_SCALED_BY_STEPS = ("inherit_step", "start_step", *STEP_RANGES)


def recipe_options(recipe: Recipe) -> list[str]:
    """Return the options of a recipe: the nearest preset and every setting that differs from it."""

    def differing(preset: Recipe) -> list[str]:
        names = [field.name for field in fields(Recipe)]
        return [name for name in names if getattr(preset, name) != getattr(recipe, name)]

    # Of two that are equally near the first is taken, so `paper` comes before the others.
    preset = min(PRESETS, key=lambda name: len(differing(PRESETS[name])))
    names = differing(PRESETS[preset])
    # The presets' step numbers belong to their number of steps; the command line scales those that
    # are not given, so all are given.
    if "steps" in names:
        names = [
            field.name
            for field in fields(Recipe)
            if field.name in names
            or (field.name in _SCALED_BY_STEPS and getattr(recipe, field.name) is not None)
        ]
    # Where a preset starts at the level that it inherits, the command line lets the one step follow
    # the other unless both are given.
    elif PRESETS[preset].start_step == PRESETS[preset].inherit_step and recipe.inherit_step:
        pair = {"inherit_step", "start_step"}
        if pair & {*names}:
            names += sorted(pair - {*names})
    options = ["--preset", preset]
    for name in names:
        options += _option(name, getattr(recipe, name))
    return options


def _option(name: str, value: Any) -> list[str]:
    if name == "inherit_step" and value is None:
        return ["--no-inheritance"]
    if name == "gamma" and value == 0:
        return ["--no-guidance"]
    return [f"--{name.replace('_', '-')}", setting_text(value)]


def reading_options(head: Mapping[str, Any], classes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the options that read a run's input as it was read, whoever stated or detected it.

    Args:
        head: The head of the run's journal.
        classes: The manifest's entry of each class.
    """
    source, class_map = head["source"], head["class_map"]
    method = METHODS.get(source["format"])
    if method is None:
        return []  # images that were recovered before: their manifest states all of this
    options = ["--format", method.name]
    # A subset of ImageNet-1K is refused unless its numbering is stated.
    if class_map != "model" or any(entry["wnid"] for entry in classes):
        options += ["--classes", class_map]
    if source["normalisation"] is not None:
        options += ["--normalisation", source["normalisation"]]
    # Even 1 is stated where the method's files may be collages: without it they would be cut.
    if source["collage"] != 1 or method.may_be_collages:
        options += ["--collage", str(source["collage"])]
    return options


def recover_command(
    head: Mapping[str, Any],
    recipe: Recipe,
    classes: Sequence[Mapping[str, Any]],
    *,
    left_out: bool,
) -> str:
    """Return a run's command line, without folders, engine and bundle.

    Args:
        head: The head of the run's journal.
        recipe: Its recipe.
        classes: The manifest's entry of each class.
        left_out: Whether images were left out.
    """
    layout, shard = head["layout"], head["shard"]
    options = [*recipe_options(recipe), "--seed", str(head["seed"])]
    options += reading_options(head, classes)
    if (copies := head.get("copies", 1)) != 1:
        options += ["--copies", str(copies)]
    if layout["name"] != "index":
        options += ["--layout", layout["name"]]
    # Not by the size alone: the model's own side is the default and needs no option.
    if layout.get("resampling") is not None:
        options += ["--size", str(layout["size"])]
    if shard:
        options += ["--shard", f"{shard['number']}/{shard['of']}"]
    if left_out:
        # Without it the command would end at the images that this run left out.
        options += ["--on-error", "skip"]
    return shlex.join(["diver-trt", "recover", *options])


def caption(what: str, head: Mapping[str, Any], command: str) -> str:
    """Return the line above a contact sheet.

    Args:
        what: What its rows are.
        head: The head of the run's journal.
        command: The run's command line, from `recover_command`.
    """
    bundle, source = head["bundle"], shlex.quote(shown(head["source"]["name"]))
    model = f"{shown(bundle['model'])} {shown(bundle['precision'])}"
    return f"{what}  ·  {model}  ·  {command} {source}"
