"""Plans: the engines of a bundle for one target, beside each other in a folder of the bundle.

Engines lie in the bundle under `plans/TARGET/NETWORK.engine`, each with its sidecar
`NETWORK.json`. An engine is code: it is deserialized only after its sidecar was compared with this
machine, its bytes against the sidecar's hash, and that hash against the list of engines that may
run here (`runtime/backends/tensorrt/trust.py`).
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from diver_trt.bundle import Bundle
from diver_trt.contained_file import open_contained, resolved_inside
from diver_trt.contract import NETWORKS, NetworkName
from diver_trt.errors import EngineError, printable, shown
from diver_trt.files import stream_sha256
from diver_trt.runtime.backends.tensorrt.sidecar import (
    NO_GPU,
    Backend,
    Machine,
    Profile,
    Sidecar,
)
from diver_trt.runtime.backends.tensorrt.trust import is_registered, register

PLANS = "plans"
MAX_PLANS = 100
"""Folders in `plans` that are read: one per backend, release, GPU and batch."""
# A bundle may come from anyone: without a limit it decides how many sidecars are read.


@dataclass(frozen=True, slots=True)
class Misfit:
    """Why an engine must not be loaded, and the command that rebuilds it where that helps."""

    reason: str
    command: str | None
    without_gpu: bool = False

    def __str__(self) -> str:
        return f"{self.reason}\nRebuild it with `{self.command}`" if self.command else self.reason


@dataclass(frozen=True, slots=True)
class Plan:
    """A folder of engines for one target, `plans/TARGET`, one per network.

    Attributes:
        folder: Where they lie.
        sidecars: The engines by network.
    """

    folder: Path
    sidecars: Mapping[NetworkName, Sidecar]

    @property
    def batches(self) -> Profile:
        """Batches of images that the plan was built for."""
        # The other networks' sizes do not follow the batch (`diver_trt.contract.run_size`).
        return self.sidecars["denoiser"].profile

    @property
    def backend(self) -> Backend:
        """The backend of its engines."""
        return self.sidecars["denoiser"].built_on.backend

    def is_of(self, bundle: Bundle) -> bool:
        """Return whether its engines were built from this export of the model."""
        return all(sidecar.is_of(bundle) for sidecar in self.sidecars.values())

    def misfit(self, bundle: Bundle, machine: Machine) -> Misfit | None:
        """Return the first reason why one of its engines must not be loaded, or None."""
        for sidecar in self.sidecars.values():
            if reason := sidecar.misfit(bundle, machine):
                return Misfit(
                    f"{self.folder / sidecar.engine.name}: {reason}",
                    self._rebuild_command(bundle, machine.compute_capability),
                    without_gpu=reason == NO_GPU,
                )
        return None

    def _rebuild_command(self, bundle: Bundle, capability: str | None) -> str | None:
        """Return the command that builds this plan again for a GPU, or None without one."""
        if capability is None:
            return None
        target = f" --sm {capability.removeprefix('sm')}" if self.backend == "rtx" else ""
        return (
            f"diver-trt build {shlex.quote(str(bundle.path))} --backend {self.backend}{target} "
            f"--batch {self.batches}"
        )

    def trust(self) -> None:
        """Enter its engines into the list of those that may run here, as their sidecars name them.

        Raises:
            OutputError: If the list cannot be written.
        """
        register(sidecar.engine.sha256 for sidecar in self.sidecars.values())

    def distrusted(self) -> str | None:
        """Return why its engines must not run here, in one line, or None if they may."""
        for sidecar in self.sidecars.values():
            if not is_registered(sidecar.engine.sha256):
                return (
                    f"{self.folder / sidecar.engine.name}: was not built on this machine, and an "
                    "engine is code; add --trust if you trust whoever built it, or build it here "
                    "with `diver-trt build`"
                )
        return None

    def read(self, network: NetworkName) -> bytes:
        """Return an engine's bytes after hashing them.

        Raises:
            EngineError: If it is missing, not a regular file in the plan's folder, or not the file
                that was built.
        """
        # Hashed in memory: the file may change meanwhile, the returned bytes cannot.
        with self._open(network) as file:
            data = file.read()
        if hashlib.sha256(data).hexdigest() != self.sidecars[network].engine.sha256:
            raise self._changed(network)
        return data

    def check(self, bundle: Bundle) -> Iterator[EngineError]:
        """Yield the problem of each engine that is of another export, or was changed or lost."""
        for network, sidecar in self.sidecars.items():
            if not sidecar.is_of(bundle):
                yield EngineError(
                    f"{self.folder / sidecar.engine.name}: was built from another export of the "
                    "model; remove the folder, or build the engines again"
                )
                continue
            try:
                with self._open(network) as file:
                    # Hashed by blocks: unlike `read`, a check needs no engine in memory.
                    if stream_sha256(file) != sidecar.engine.sha256:
                        yield self._changed(network)
            except EngineError as error:
                yield error

    def _open(self, network: NetworkName) -> BinaryIO:
        record = self.sidecars[network].engine
        path = self.folder / record.name
        try:
            file = open_contained(path, self.folder, EngineError)
        except OSError as cause:
            raise EngineError(
                f"{path}: missing ({cause.strerror}); build the engines again"
            ) from cause
        # Before the hash, since `read` takes the whole file into memory.
        if os.fstat(file.fileno()).st_size != record.size_bytes:
            file.close()
            raise self._changed(network)
        return file

    def _changed(self, network: NetworkName) -> EngineError:
        return EngineError(
            f"{self.folder / self.sidecars[network].engine.name}: is not the engine that was "
            "built (its SHA-256 differs from its sidecar's); build it again"
        )


def read_plan(folder: Path) -> Plan:
    """Read the sidecars of one target.

    Raises:
        EngineError: If a sidecar is missing or damaged, or describes another network.
    """
    sidecars: dict[NetworkName, Sidecar] = {}
    for name in NETWORKS:
        sidecar = Sidecar.read(folder / f"{name}.json")
        if sidecar.network != name:
            raise EngineError(
                f"{folder / name}.json: describes the {sidecar.network}; build the engines again"
            )
        sidecars[name] = sidecar
    return Plan(folder, sidecars)


class StrayFoldersError(EngineError):
    """Folders in `plans` that hold no engines."""


def read_plans(bundle: Bundle) -> Iterator[Plan | EngineError]:
    """Yield every target of a bundle, or the error of reading it.

    Last comes one error for all folders that are not targets.
    """
    root = bundle.path / PLANS
    read, others = 0, []
    try:
        folders = _folders(root, bundle)
    except EngineError as error:
        yield error
        return
    for folder in folders:
        # A dangling symlink is a damaged target, and not a folder without engines.
        if not any(os.path.lexists(folder / f"{name}.json") for name in NETWORKS):
            others.append(printable(folder.name))
            continue
        if (read := read + 1) > MAX_PLANS:
            yield EngineError(
                f"{root}: holds engines for more than {MAX_PLANS} targets, and only those of the "
                f"first {MAX_PLANS} are used; remove some"
            )
            break
        try:
            yield _read_inside(folder, bundle)
        except EngineError as error:
            yield error
    if others:
        listed = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        found = f"{len(others)} folders hold" if len(others) > 1 else "one folder holds"
        yield StrayFoldersError(
            f"{root}: {found} no engines ({shown(listed)}); remove what does not belong there"
        )


def _folders(root: Path, bundle: Bundle) -> list[Path]:
    """Return the folders in `plans` by name."""
    try:
        resolved_inside(root, bundle.path, EngineError, "the bundle")
        # Hidden folders are those of builds that are running.
        return sorted(
            path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")
        )
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as cause:
        raise EngineError(f"{root}: cannot be read ({cause.strerror or cause})") from cause


def _read_inside(folder: Path, bundle: Bundle) -> Plan:
    """Read a target of a bundle, whose folder others may have named and linked."""
    if not folder.name.isprintable():
        raise EngineError(
            f"{printable(str(folder))}: has a name that cannot be printed; rename the folder"
        )
    try:
        resolved_inside(folder, bundle.path, EngineError, "the bundle")
    except OSError as cause:
        raise EngineError(f"{folder}: cannot be read ({cause.strerror or cause})") from cause
    return read_plan(folder)
