"""The journal of an evaluation: a line for every finished run, under a key of all that decides it.

An interrupted evaluation takes finished runs from it. So does another one in the same folder, where
the training set, test set, protocol, architecture and seed are the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from diver_trt.errors import OutputError
from diver_trt.files import reported
from diver_trt.lock import locked
from diver_trt.structs import Invalid, Sha256, Size, dump, parse

JOURNAL = "runs.jsonl"
# Far longer than our lines: a longer one is read in parts, which do not parse as outcomes.
_MAX_LINE_BYTES = 4096
_MAX_TEXT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A finished run, as a line of the journal has it.

    Attributes:
        key: Hash of everything that decides the run.
        steps: Steps of the optimiser.
        correct: Test images that were recognised.
        diverged: Whether the last loss was not finite.
    """

    key: Sha256
    steps: Size
    correct: Size
    diverged: bool = False


class Journal:
    """Finished runs on disk.

    Args:
        path: The file, or None to remember them in memory only.

    Raises:
        OutputError: If the file cannot be read, or is not a regular one.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.outcomes: dict[str, Outcome] = {}
        if path is not None and path.exists():
            # Opening a FIFO would wait for a writer.
            if not path.is_file():
                raise OutputError(
                    f"{path}: is not a regular file, expected finished runs. Rename it."
                )
            with reported(path, "read"), path.open("rb") as file:
                for line in iter(partial(file.readline, _MAX_LINE_BYTES), b""):
                    self._read(line)

    def _read(self, line: bytes) -> None:
        # The last line may have been cut by a kill; its run is made again.
        with suppress(ValueError, RecursionError, Invalid):
            outcome: Outcome = parse(Outcome, json.loads(line), _MAX_TEXT)
            self.outcomes[outcome.key] = outcome

    def append(self, outcome: Outcome) -> None:
        """Add a finished run, and flush it to the disk.

        Raises:
            OutputError: If it cannot be written.
        """
        self.outcomes[outcome.key] = outcome
        if self._path is None:
            return
        with reported(self._path), self._path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                # Behind a line that was cut, ours would be unreadable.
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(dump(outcome)).encode() + b"\n")
            file.flush()
            # A training may have taken hours; a power failure should not cost it.
            os.fsync(file.fileno())


@contextmanager
def opened(folder: Path | None) -> Iterator[Journal]:
    """Hold a folder, which is made if needed, and open its journal.

    Args:
        folder: The folder, or None for a journal in memory.

    Raises:
        OutputError: If the folder cannot be made or read, or another process holds it.
    """
    if folder is None:
        yield Journal(None)
        return
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file, expected a folder for finished runs. Rename it.")
    with reported(folder, "made"):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        yield Journal(folder / JOURNAL)
