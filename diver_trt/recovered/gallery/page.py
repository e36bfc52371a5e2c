"""The page itself: its facts as HTML, and a line of JSON for each image, which its script shows.

Texts come from other people's files. Those in the HTML are escaped here; those in the JSON cannot
end the script element that holds them, and the script never makes markup of a text.
"""

from __future__ import annotations

import html
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from string import Template

from diver_trt.counted import counted, counted_with
from diver_trt.errors import printable, shown
from diver_trt.html_page import STYLE
from diver_trt.recipe import PRESETS, Recipe, setting_text
from diver_trt.records import Manifest
from diver_trt.recovered.caption import recover_command
from diver_trt.recovered.gallery.contents import Contents
from diver_trt.recovered.gallery.files import COMMAND, Stamp
from diver_trt.recovered.gallery.sheets import COLUMNS, MAX_LOSSLESS_SIDE, Sheet
from diver_trt.structs import dump

_PARTS = Path(__file__).parent
_SHOWN_SIDE = 128
"""Side of an image on the page in pixels; small images are enlarged by whole pixels up to it."""

_OPTION = re.compile(r"(?<= )--[a-z][a-z-]*")
"""The name of an option, which browsers would break after its hyphens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a page shows.

    Attributes:
        contents: The dataset's settings and images.
        recipe: The recipe in its manifest.
        sheets: The distilled images of all samples, in their order.
        side: Side of a thumbnail on the sheets in pixels.
        unread: Positions of samples whose distilled image could not be read any more.
    """

    contents: Contents
    recipe: Recipe
    sheets: Sequence[Sheet]
    side: int
    unread: Sequence[int] = ()


def render(view: View, stamp: Stamp) -> str:
    """Return the page.

    Args:
        view: What it shows.
        stamp: What it states about itself.
    """
    manifest, rows = view.contents.manifest, view.contents.rows
    # string.Template, since a device that recovers does not have Jinja (the extra `compare`).
    page = Template((_PARTS / "page.html").read_text(encoding="utf-8"))
    source, model = shown(manifest.source.name), shown(manifest.bundle.model)
    size = manifest.layout.size
    summary = (
        f"{counted(len(manifest.classes), 'class')}, with {model} "
        f"{shown(manifest.bundle.precision)}. Left: the distilled image as the model was given it. "
        "Right: the recovered one."
    )
    return page.substitute(
        stamp=stamp,
        command=COMMAND,
        title=html.escape(source),
        style=STYLE.read_text(encoding="utf-8") + (_PARTS / "page.css").read_text(encoding="utf-8"),
        # Whole multiples: interpolation would blur the pixels that a small image is looked at for.
        side=size * max(1, _SHOWN_SIDE // size) if size < _SHOWN_SIDE else _SHOWN_SIDE,
        heading=f"{counted(rows.recovered, 'image')} recovered from {html.escape(source)}",
        summary=html.escape(summary),
        note=_note(rows.left_out),
        recover=_OPTION.sub(r"<span>\g<0></span>", html.escape(_command(view))),
        facts="\n".join(_fact(name, text) for name, text in _facts(view)),
        data=_for_script(_data(view)),
        rows=_for_script(_rows(view)),
        script=(_PARTS / "page.js").read_text(encoding="utf-8"),
    )


def _fact(name: str, text: str) -> str:
    value = html.escape(printable(text))
    shown_as = f"<code>{value}</code>" if text.startswith("sha256:") else value
    return f"    <div><dt>{name}</dt><dd>{shown_as}</dd></div>"


def _note(count: int) -> str:
    if not count:
        return ""
    images = counted_with(count, "image", "was")
    return f'<p class="doubt"><a href="#class=left-out">{images} left out</a></p>'


def _for_script(json_text: str) -> str:
    """Return JSON that is safe within a script element."""
    # `</script` and `<!--` would end it or comment it out, wherever they stand:
    # https://html.spec.whatwg.org/multipage/scripting.html#restrictions-for-contents-of-script-elements
    return json_text.replace("<", "\\u003c")


def _command(view: View) -> str:
    """Return the command that recovers the same images; folders and bundle are the reader's own."""
    manifest, left_out = view.contents.manifest, view.contents.rows.left_out > 0
    command = recover_command(
        dump(manifest.head), view.recipe, dump(manifest.classes), left_out=left_out
    )
    source = shlex.quote(printable(manifest.source.name))
    return f"{command} --bundle BUNDLE {source} RECOVERED"


def _facts(view: View) -> Iterator[tuple[str, str]]:
    """Yield the settings of the recovery, each with its name."""
    manifest = view.contents.manifest
    bundle, layout, shard = manifest.bundle, manifest.layout, manifest.shard
    engines = view.contents.rows.engines.most_common()
    yield "Model", f"{bundle.model} {bundle.precision}"
    yield "Bundle", f"sha256:{bundle.sha256}"
    names = [name if len(engines) == 1 else f"{name} ({count:,})" for name, count in engines]
    yield "Engine", ", ".join(names) or "none"
    yield "Recipe", _recipe(view.recipe)
    yield "Seed", str(manifest.seed)
    yield "Input", ", ".join(_source(manifest))
    yield "Classes", "the model's own" if manifest.class_map == "model" else manifest.class_map
    resized = f", resized ({layout.resampling})" if layout.resampling else ""
    part = f", shard {shard.number} of {shard.of}" if shard else ""
    yield "Output", f"layout {layout.name}, {layout.size} px{resized}{part}"


def _source(manifest: Manifest) -> Iterator[str]:
    source = manifest.source
    yield source.name
    yield source.format
    yield from (name for name in source.files if name != source.name)
    if source.normalisation not in (None, "none"):
        yield f"{source.normalisation}-normalised"
    if source.collage > 1:
        yield f"cut from {source.collage} x {source.collage} collages"
    if source.soft_labels:
        yield f"labels are {source.soft_labels}"
    if manifest.copies > 1:
        yield f"each recovered {manifest.copies} times"


def _recipe(recipe: Recipe) -> str:
    """Return every setting, after the name of the preset if it is one."""
    preset = [name for name, settings in PRESETS.items() if settings == recipe]
    settings = []
    for field in fields(recipe):
        value = getattr(recipe, field.name)
        if value is not None:
            settings.append(f"{field.name.replace('_', ' ')} {setting_text(value)}")
        elif field.name == "inherit_step":
            settings.append("no inheritance")
    return ": ".join([*preset, ", ".join(settings)])


def _rows(view: View) -> str:
    """Return the rows of every class in JSON, in the order of the classes."""
    rows = view.contents.rows.of_class
    return _array(_array(rows[entry.index]) for entry in view.contents.manifest.classes)


def _array(values: Iterable[str]) -> str:
    return f"[{','.join(values)}]"


def _data(view: View) -> str:
    """Return in JSON what the script shows apart from the images, see `page.js`."""
    data = {
        "size": view.contents.manifest.layout.size,
        "side": view.side,
        "lossless": MAX_LOSSLESS_SIDE,
        "columns": COLUMNS,
        "sheets": [[sheet.name, sheet.count] for sheet in view.sheets],
        "unread": list(view.unread),
        "engines": list(view.contents.rows.engines),
        "classes": [
            {
                "index": entry.index,
                "label": entry.label,
                "wnid": entry.wnid,
                "name": entry.own_name or entry.name,
                # The model's own name, where a class map's file has another one.
                "drawn": entry.name if entry.own_name else None,
                "folder": view.contents.rows.folders.get(entry.index),
            }
            for entry in view.contents.manifest.classes
        ],
    }
    return json.dumps(data, separators=(",", ":"))
