"""Where the files of a model come from: a folder here, or a repository on the Hugging Face hub."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, list_repo_files, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from diver_trt.errors import ExportError, shown
from diver_trt.hub.failures import reason

# What cannot be NAME or OWNER/NAME on the hub.
_LOCAL_PATH = re.compile(r"[./~\\]|.*[\\]|.*/$|[^/]*/[^/]*/")


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model, by their names inside its folder or repository.

    Attributes:
        source: The folder, or the repository's name.
        revision: Branch, tag or commit on the hub.
        root: The folder here; of a repository without a connection its copy in the hub's cache.
        names: The names of a repository's files, None where `root` is read.
        folder: The folder inside the source, with a slash at its end, or "".
    """

    source: str
    revision: str | None
    root: Path | None
    names: frozenset[str] | None
    folder: str = ""

    @classmethod
    def at(cls, source: str, revision: str | None = None) -> ModelFiles:
        """Look a source up: a folder here, else a repository on the hub, else the hub's cache.

        Raises:
            ExportError: If it is none of them, or the hub cannot be read.
        """
        if not source:  # Path("") would be the current folder
            raise ExportError("the model's name is empty; give a folder or a hub name")
        path = Path(source)
        if path.is_dir():
            if revision is not None:
                raise ExportError(
                    f"{shown(source)}: is a folder here, which has no revision {revision!r}. Leave "
                    "out --revision."
                )
            return cls(source, None, path, None)
        if path.exists():
            raise ExportError(f"{shown(source)}: is a file, expected a folder or a hub name")
        if _LOCAL_PATH.match(source):
            raise ExportError(f"{shown(source)}: no such file or folder")
        try:
            return cls(
                source, revision, None, frozenset(list_repo_files(source, revision=revision))
            )
        except Exception as cause:  # httpx and the hub's client have no base class in common
            # These are answers of the hub; the cache is for a hub that cannot be reached.
            refused = (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError)
            if not isinstance(cause, refused) and (copy := _cached(source, revision)):
                return cls(source, revision, copy, None)
            raise ExportError(f"{shown(source)}: {_hub_failure(cause, revision)}") from cause

    @property
    def model_id(self) -> str:
        """The name that a bundle has for the model: the repository's, or that of the folder."""
        if self.root != Path(self.source):  # not a folder here
            return self.source
        # Resolved, since the name of `.` is empty.
        return Path(self.source).resolve().name

    def within(self, folder: str) -> ModelFiles:
        """Return the files of a folder inside this one."""
        return replace(self, folder=f"{self.folder}{folder}/")

    def where(self, name: str = "") -> str:
        """Return a file's place, or the folder's without a name, as a message prints it."""
        return shown(f"{self.source}/{self.folder}{name}".rstrip("/"))

    def has(self, name: str) -> bool:
        """Return whether there is a file of this name, without downloading it."""
        inside = f"{self.folder}{name}"
        return inside in (self.names or ()) if self.root is None else (self.root / inside).is_file()

    def find(self, name: str) -> Path | None:
        """Return a file's path, downloaded where need be, or None if there is no such file.

        Raises:
            ExportError: If the hub cannot be read.
        """
        if not self.has(name):
            return None
        inside = f"{self.folder}{name}"
        if self.root is not None:
            return self.root / inside
        try:
            return Path(hf_hub_download(self.source, inside, revision=self.revision))
        except Exception as cause:  # as above
            raise ExportError(
                f"{self.where(name)}: {_hub_failure(cause, self.revision)}"
            ) from cause

    def need(self, name: str, purpose: str) -> Path:
        """Return a file's path.

        Args:
            name: The file.
            purpose: What it is needed for, as a clause that ends the message.

        Raises:
            ExportError: If there is no such file.
        """
        if (path := self.find(name)) is None:
            raise ExportError(f"{self.where()}: has no {name}; {purpose}")
        return path

    def read_json(self, name: str, purpose: str) -> dict[str, Any]:
        """Return a JSON object.

        Raises:
            ExportError: If there is no such file, or it holds something else.
        """
        path = self.need(name, purpose)
        try:
            # Some editors begin a file with a byte order mark, which json refuses in a text.
            value = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as cause:
            raise ExportError(f"{self.where(name)}: is not valid JSON ({cause})") from cause
        if not isinstance(value, dict):
            raise ExportError(f"{self.where(name)}: is not a JSON object; {purpose}")
        return value


def _cached(source: str, revision: str | None) -> Path | None:
    """Return the hub's cached copy of a repository, or None."""
    try:
        return Path(snapshot_download(source, revision=revision, local_files_only=True))
    except Exception:  # there is none; the failure that led here is the one to report
        return None


def _hub_failure(cause: Exception, revision: str | None) -> str:
    """Return what went wrong on the hub, and what to do."""
    here = "no such file or folder here"
    # Tested first, since it is a subclass of RepositoryNotFoundError.
    if isinstance(cause, GatedRepoError):
        return "is gated on the hub. Accept its conditions on its page, then run `hf auth login`."
    if isinstance(cause, RepositoryNotFoundError):
        return (
            f"{here}, and no such repository on the hub. Correct the path or the name, or run "
            "`hf auth login` if it is private."
        )
    if isinstance(cause, RevisionNotFoundError):
        return f"has no revision {revision!r} on the hub. Correct --revision."
    if isinstance(cause, HFValidationError):
        return f"{here}, and not a name that the hub could have, expected OWNER/NAME"
    if isinstance(cause.__cause__ or cause, OfflineModeIsEnabled):
        return (
            f"{here}, and not in the hub's cache, which alone is read while HF_HUB_OFFLINE is set. "
            "Correct the path, or unset it."
        )
    return (
        f"{here}, and the hub cannot be read ({reason(cause.__cause__ or cause)}). Correct the "
        "path, or download the model elsewhere and give its folder."
    )


def one_line(cause: BaseException | str, limit: int = 400) -> str:
    """Return a foreign message on one line, up to a limit.

    The names that matter often follow its first line.
    """
    text = " ".join(str(cause).split()) or type(cause).__name__
    return text if len(text) <= limit else f"{text[:limit]}…"
