"""Shell completion of option values.

The lists are loaded when a shell requests them, not when the program starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from itertools import islice
from pathlib import Path

Completion = Callable[[str], list[str]]

MAX_ENTRIES = 1000
"""Entries of a folder that are examined; the shell waits for the answer."""


def values(load: Callable[[], Iterable[str]]) -> Completion:
    """Return a completion from a list of values; shells complete file names if none matches."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in load() if value.startswith(incomplete)]

    return complete


def words(*texts: str) -> Completion:
    """Return a completion from a few words."""
    return values(lambda: texts)


def names(module: str, collection: str) -> Completion:
    """Return a completion from a module's registry or tuple of names."""
    return values(lambda: getattr(import_module(module), collection))


precisions = names("diver_trt.contract", "PRECISIONS")
presets = names("diver_trt.recipe", "PRESETS")
guides = names("diver_trt.recipe", "GUIDE_KINDS")
sigmas = names("diver_trt.recipe", "SIGMAS")
compared_engines = names("diver_trt.comparison.lineup", "ENGINE_NAMES")
architectures = names("diver_trt.evaluation.architectures", "ARCHITECTURES")
protocols = names("diver_trt.evaluation.protocols", "PROTOCOLS")
layouts = names("diver_trt.recovered.layouts", "LAYOUTS")
formats = names("diver_trt.distilled.methods", "METHODS")


@values
def engines() -> Iterable[str]:
    """Engines of `recover`."""
    from diver_trt.runtime.backends import AUTO, BACKENDS

    return (AUTO, *BACKENDS)


@values
def normalisations() -> Iterable[str]:
    """Named statistics."""
    from diver_trt.distilled.normalisation import normalisation_names

    return normalisation_names()


@values
def classes() -> Iterable[str]:
    """Subsets of ImageNet, and the model's own classes."""
    from diver_trt.distilled.class_map import imagenet_subsets

    return ("model", *(name for name in imagenet_subsets() if "@" not in name))


def bundles(incomplete: str) -> list[str]:
    """Return the bundles whose path, whose folder's path, or whose hub name begins with a text."""
    return sorted({*_bundles_here(incomplete), *_bundles_of_hub(incomplete)})


def _bundles_of_hub(incomplete: str) -> Iterator[str]:
    """Yield the names of the bundles in the hub's cache; the hub itself is not asked."""
    if not incomplete or not "hf://".startswith(incomplete[:5]):
        return
    with suppress(ImportError):
        from huggingface_hub.constants import HF_HUB_CACHE

        for folder in _folders(Path(HF_HUB_CACHE)):
            # The cache names a folder `models--OWNER--NAME`, and a repository's name has no `--` of
            # its own:
            # https://huggingface.co/docs/huggingface_hub/guides/manage-cache
            kind, _, name = folder.name.partition("--")
            found = f"hf://{name.replace('--', '/')}"
            if not (kind == "models" and found.startswith(incomplete)):
                continue
            if any(map(_is_bundle, _folders(folder / "snapshots"))):
                yield found


def _bundles_here(incomplete: str) -> list[str]:
    # The shell passes the word as it is typed, with its tilde.
    typed = Path(incomplete).expanduser()
    folder, start = (typed, "") if incomplete.endswith("/") else (typed.parent, typed.name)
    found = []
    for entry in _folders(folder):
        if entry.name.startswith(start):
            # One level further down, so that `eng` is completed to `engines/digits`.
            inside = () if _is_bundle(entry) else _folders(entry)
            found += [str(path) for path in (entry, *inside) if _is_bundle(path)]
    return found


def _folders(folder: Path) -> Iterator[Path]:
    # A completion that fails prints its traceback into the user's command line.
    with suppress(OSError):
        yield from (path for path in islice(folder.iterdir(), MAX_ENTRIES) if path.is_dir())


def _is_bundle(folder: Path) -> bool:
    return (folder / "bundle.json").is_file()
