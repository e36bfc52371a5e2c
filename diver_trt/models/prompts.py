"""The prompt of each class of a text-conditional model, from names, a template or a file.

It needs no torch: the command line makes the prompts before a model is loaded.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from diver_trt.errors import ExportError, UsageError, shown

IMAGENET = "imagenet"
"""The value of `--classes` that stands for the thousand classes of ImageNet-1K."""
NAME = "{name}"
"""What a template replaces by the class's name."""
NEGATIVE = "cartoon, anime, painting"
"""The negative prompt of D4M (arXiv 2407.15138), whose prompt is the class's name alone."""

_MAX_BYTES = 1 << 24
_NUMBER_FIRST = re.compile(r"\d+[\s,;:.)]+(\S.*)", re.ASCII)
_NUMBER_LAST = re.compile(r"(.*\S)[\s,;:]+\d+", re.ASCII)
_WNID = re.compile(r"(?<![a-zA-Z0-9])n\d{8}(?!\d)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Prompts:
    """The classes of a text-conditional model, and the prompt of each.

    Attributes:
        names: The name of each class, which folders of a dataset may have.
        texts: The prompt of each class.
        negative: The prompt of the null class.

    Raises:
        UsageError: If there are not as many prompts as names, or two classes have one prompt.
    """

    names: tuple[str, ...]
    texts: tuple[str, ...]
    negative: str

    def __post_init__(self) -> None:
        # Here, since it loads numpy, and the help texts of the command line quote this module.
        from diver_trt.bundle import LIMITS, MAX_CLASSES

        if len(self.texts) != len(self.names):
            raise UsageError(
                f"there are {len(self.texts)} prompts for {len(self.names)} classes; give one for "
                "each class, and name the classes with --classes"
            )
        if not 1 <= len(self.names) <= MAX_CLASSES:
            raise UsageError(f"there are {len(self.names)} classes, expected 1 to {MAX_CLASSES:,}")
        for text in (*self.names, *self.texts, self.negative):
            if not text.isprintable() or len(text) > LIMITS.text:
                raise UsageError(
                    f"{shown(repr(text))} is not a text on one line of at most {LIMITS.text} "
                    "characters"
                )
        if "" in self.names:
            raise UsageError(f"class {self.names.index('')} has no name; name every class")
        # The images of both classes would be alike, and nothing later would show it.
        text, count = Counter(self.texts).most_common(1)[0]
        if count > 1:
            first, second = [i for i, other in enumerate(self.texts) if other == text][:2]
            raise UsageError(
                f"classes {first} and {second} have the same prompt, {shown(repr(text))}; "
                "give each its own"
            )

    @property
    def stored(self) -> tuple[str, ...]:
        """The prompts as a bundle stores them: one for each class, then the null class's."""
        return (*self.texts, self.negative)


def prompts_from_options(
    classes: str | None, template: str | None, file: Path | None, negative: str | None
) -> Prompts:
    """Return the prompts that the options of `export` ask for.

    Args:
        classes: `"imagenet"`, a file with a name per line, or names separated by commas; None is
            ImageNet's.
        template: A text with `{name}` in it; None is the name alone.
        file: A file with a prompt per line, in the order of the classes.
        negative: The prompt of the null class; None is D4M's.

    Raises:
        UsageError: If they contradict each other, or a file cannot be read.
    """
    names = _class_names(IMAGENET if classes is None else classes)
    if file is not None and template is not None:
        raise UsageError("--prompt and --prompts exclude each other: give a template or a file")
    if template is not None and NAME not in template:
        raise UsageError(
            f"--prompt is {shown(repr(template))}; expected {NAME} in it, which the class's name "
            "replaces"
        )
    texts = (
        _lines(file)
        if file is not None
        else tuple((template or NAME).replace(NAME, name) for name in names)
    )
    # A file of wnids, as those of subsets are, would make images of nothing.
    if wnid := next((text for text in texts if _WNID.search(text)), None):
        raise UsageError(
            f"the prompt {shown(repr(wnid))} holds a wnid, which a text encoder does not know; "
            "name the classes in words, or give their prompts with --prompts"
        )
    return Prompts(names, texts, NEGATIVE if negative is None else negative)


def prompt_doubts(prompts: Prompts) -> list[str]:
    """Return notes on prompts that may not be what was meant."""
    doubts = []
    if numbered := _numbered(prompts.names):
        doubts.append(
            f"its classes have names with a number of each, such as {shown(repr(numbered))}, which "
            "is part of the name and of the prompt: expected the name alone on each line"
        )
    if len(prompts.names) == 1 and "," in prompts.names[0]:
        doubts.append(
            f"it has one class, {shown(repr(prompts.names[0]))}: a file has a name per line"
        )
    return doubts


def _numbered(names: tuple[str, ...]) -> str | None:
    """Return the first of names that all have a number before or behind them, or None."""
    for pattern in (_NUMBER_FIRST, _NUMBER_LAST):
        rest = [match[1] for name in names if (match := pattern.fullmatch(name))]
        # `digit 0` to `digit 9` are names; of `0 tench`, `1 springer`, the rest is one already.
        if 1 < len(rest) == len(names) == len(set(rest)):
            return names[0]
    return None


def stored_prompts(names: tuple[str, ...] | None, stored: tuple[str, ...] | None) -> Prompts | None:
    """Return the prompts of a bundle, or None if it has none."""
    return Prompts(names, stored[:-1], stored[-1]) if names and stored else None


def refuse_prompts(prompts: Prompts | None, source: str) -> None:
    """Refuse prompts for a model whose classes are built in.

    Raises:
        ExportError: If there are any.
    """
    if prompts is not None:
        raise ExportError(
            f"{shown(source)}: is conditioned on class numbers, expected a model conditioned on a "
            "text; leave out --classes, --prompt, --prompts and --negative-prompt"
        )


def _class_names(stated: str) -> tuple[str, ...]:
    if stated == IMAGENET:
        # Imported here: it brings modules that `--help` would load for nothing.
        from diver_trt.distilled.class_map import imagenet_names

        return imagenet_names()
    if (path := Path(stated)).is_file():
        return _lines(path)
    # One name alone is taken for a mistyped file.
    if "," not in stated:
        raise UsageError(
            f"--classes is {shown(repr(stated))}: no such file; expected {IMAGENET}, a file with a "
            "name per line, or names separated by commas"
        )
    return tuple(name.strip() for name in stated.split(","))


def _lines(path: Path) -> tuple[str, ...]:
    """Return the lines of a text file, without blank ones at its end.

    Raises:
        UsageError: If it cannot be read, or a line between others is blank.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as cause:
        raise UsageError(f"{shown(str(path))}: cannot be read as UTF-8 text ({cause})") from cause
    if len(data) > _MAX_BYTES:
        raise UsageError(f"{shown(str(path))}: has more than {_MAX_BYTES:,} bytes")
    if _is_json(text):
        raise UsageError(f"{shown(str(path))}: is JSON, expected a text file with a line per class")
    # Not `splitlines`, which also splits at characters that a name may hold, such as U+2028.
    lines = [line.strip() for line in text.rstrip().replace("\r\n", "\n").split("\n")]
    if "" in lines:
        raise UsageError(
            f"{shown(str(path))}: line {lines.index('') + 1} is blank; "
            "expected a text for each class"
        )
    return tuple(lines)


def _is_json(text: str) -> bool:
    """Return whether a text is a JSON list or object; a line such as `7` is a class's name."""
    try:
        return isinstance(json.loads(text), (list, dict))
    except (ValueError, RecursionError):
        return False
