"""Downloading a bundle from the hub: only the files that its `bundle.json` lists, each hashed.

The hub's client stores files as blobs, with symlinks to them. A bundle must not have symlinks out
of its folder, and `build` adds engines to it. So a bundle gets a folder of its own among the
client's assets, with hard links to the blobs, or copies where there are none. Its name ends in the
hash of `bundle.json`: revisions that only differ in other files share it, and with it their
engines. Each owner's bundles are apart, since `recover` may take the fp32 bundle that lies beside
an fp16 one.

    hub/models--OWNER--NAME/                              the client's cache: blobs, symlinks
    assets/diver-trt/bundles/OWNER/NAME-HASH/             the bundle
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from diver_trt.counted import counted, megabytes
from diver_trt.documents import Document, Limits
from diver_trt.errors import BundleError, OutputError, shown
from diver_trt.files import FileRecord, file_sha256
from diver_trt.hub.failures import hub_failure, import_hub
from diver_trt.hub.name import HubName
from diver_trt.hub.transfer import Transfer
from diver_trt.progress import OnProgress


@dataclass(frozen=True, slots=True)
class Listing:
    """The document that lists a bundle's files, `bundle.json`; `diver_trt.bundle` defines it.

    Attributes:
        name: Its name in a bundle.
        schema: Its version.
        limits: What it may need.
        files: Returns the files that it lists.
    """

    name: str
    schema: int
    limits: Limits
    files: Callable[[Document], Iterable[FileRecord]]


def downloaded(
    name: HubName, listing: Listing, on_note: Callable[[str], None], on_progress: OnProgress
) -> Path:
    """Return the folder of a bundle, downloaded where it is not there yet.

    Only the first call transfers files. Later ones ask the hub whether the revision has changed,
    unless it is a commit; if the hub cannot answer, the files of the last answer are used.

    Args:
        name: The bundle.
        listing: Which of its files lists the others.
        on_note: Receives notes, one line of text each.
        on_progress: Receives how many MB of it are there.

    Raises:
        BundleError: If the hub cannot be read, has no such bundle, or has a file of another size or
            hash than `bundle.json` lists.
        OutputError: If the bundle's folder cannot be written.
        MissingExtraError: If the hub's client is not installed.
    """
    hub = import_hub(f"reading {name}")
    manifest = _find_manifest(name, listing, on_note)
    where = f"{name}: {listing.name}"
    # The blob itself: the cache's file is a symlink out of its folder, which `read` refuses.
    document = Document.read(
        Path(os.path.realpath(manifest)), BundleError, listing.limits, where=where
    )
    document.require_schema(listing.schema, "ask its owner to export the model again")
    bundles = Path(hub.constants.HF_ASSETS_CACHE) / "diver-trt" / "bundles"
    folder = bundles / f"{name.repository}-{document.sha256[:16]}"
    itself = FileRecord(listing.name, manifest.stat().st_size, document.sha256)
    # The listing comes last: a folder without it is not a bundle.
    records = dict.fromkeys((*listing.files(document), itself))
    # Other files are hashed whenever a network is loaded.
    missing = [
        record for record in records if not _is_there(folder, record, hashed=record == itself)
    ]
    if missing:
        # The snapshot's folder has the commit's name. The other files are those of the same commit.
        commit = manifest.parent.name
        _Download(name, listing.name, commit, on_note, on_progress).complete(folder, missing)
    return folder


def _find_manifest(name: HubName, listing: Listing, on_note: Callable[[str], None]) -> Path:
    """Return the path of `bundle.json` in the client's cache: `snapshots/COMMIT/bundle.json`.

    Raises:
        BundleError: If it is neither on the hub nor in the cache, or is too large.
    """
    import huggingface_hub as hub
    from huggingface_hub import errors

    revision, cached = name.revision or hub.constants.DEFAULT_REVISION, None
    try:
        cached = _cached(name, revision, listing.name)
        if cached and cached.parent.name == revision:
            return cached  # a commit does not change
        # First the size alone: what the repository calls bundle.json may be anything.
        found = hub.get_hf_file_metadata(
            hub.hf_hub_url(name.repository, listing.name, revision=revision)
        )
        if (found.size or 0) > listing.limits.size_bytes:
            raise BundleError(
                f"{name}: {listing.name} has {found.size:,} bytes, expected at most "
                f"{listing.limits.size_bytes:,}. Is it a bundle?"
            )
        if cached and cached.parent.name == found.commit_hash:
            return cached
        return Path(hub.hf_hub_download(name.repository, listing.name, revision=revision))
    except errors.RemoteEntryNotFoundError as cause:
        raise BundleError(f"{name}: is not a bundle (it has no {listing.name})") from cause
    except BundleError:
        raise
    except Exception as cause:  # the client's HTTP library has a class of its own for each failure
        failure = hub_failure(cause, revision)
        # An old copy stands in for a hub that does not answer, not for a deleted revision.
        if isinstance(cause, errors.RevisionNotFoundError) or not cached:
            raise BundleError(f"{name}: {failure}") from cause
        if not isinstance(cause, errors.OfflineModeIsEnabled):
            on_note(f"{name}: {failure} Meanwhile, the copy in the hub's cache is used.")
        return cached


@dataclass(frozen=True, slots=True)
class _Download:
    """The files of one commit.

    Attributes:
        name: The bundle.
        listing: The name of the file that lists the others.
        commit: The commit that this file is of.
        on_note: Receives notes, one line of text each.
        on_progress: Receives how many MB of it are there.
    """

    name: HubName
    listing: str
    commit: str
    on_note: Callable[[str], None]
    on_progress: OnProgress

    def complete(self, folder: Path, missing: Sequence[FileRecord]) -> None:
        """Put files into the bundle's folder, in this order, when all of them are whole.

        Raises:
            BundleError: If one cannot be downloaded, or is not the file that was exported.
            OutputError: If the folder cannot be written.
        """
        absent = [record for record in missing if not _cached(self.name, self.commit, record.name)]
        size = sum(record.size_bytes for record in absent)
        transfer = Transfer(size, self.on_progress)
        if absent:
            self._check_listed(absent)
            self.on_note(
                f"{self.name}: downloading {counted(len(absent), 'file')}, {megabytes(size)}; the "
                f"bundle's folder is {folder}"
            )
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            # Several processes may do this at once: each in a folder of its own.
            with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent) as staging:
                for record in missing:
                    self._stage(record, Path(staging) / record.name, transfer)
                folder.mkdir(exist_ok=True)
                # All are whole and hashed before the first gets its name.
                for record in missing:
                    (Path(staging) / record.name).replace(folder / record.name)
        except OSError as cause:
            raise _unwritable(folder, cause) from cause

    def _check_listed(self, records: Sequence[FileRecord]) -> None:
        """Compare files with the repository's list of them, before any is downloaded."""
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        names = [record.name for record in records]
        try:
            listed = HfApi().get_paths_info(self.name.repository, names, revision=self.commit)
        except Exception as cause:  # as above
            raise BundleError(f"{self.name}: {hub_failure(cause)}") from cause
        files = {entry.path: entry for entry in listed if isinstance(entry, RepoFile)}
        for record in records:
            if (file := files.get(record.name)) is None:
                raise self._damaged(record, "is missing in the repository")
            if file.size != record.size_bytes:
                raise self._damaged(
                    record, f"has {file.size:,} bytes, {self.listing} lists {record.size_bytes:,}"
                )
            # The hub lists a SHA-256 of large files only; small ones are hashed when they are here.
            if file.lfs and file.lfs.sha256 != record.sha256:
                raise self._changed(record, file.lfs.sha256)

    def _stage(self, record: FileRecord, path: Path, transfer: Transfer) -> None:
        """Link or copy one file from the client's cache, downloaded where need be, and hash it."""
        cached = _cached(self.name, self.commit, record.name)
        if cached and _linked(cached, path) == record.sha256:
            return
        # A file that lay damaged in the cache is replaced there.
        found = _linked(self._fetched(record, transfer, force=cached is not None), path)
        if found != record.sha256:
            raise self._changed(record, found)

    def _fetched(self, record: FileRecord, transfer: Transfer, *, force: bool) -> Path:
        from huggingface_hub import hf_hub_download

        try:
            path = hf_hub_download(
                self.name.repository,
                record.name,
                revision=self.commit,
                force_download=force,
                tqdm_class=transfer.bar(),
            )
        except Exception as cause:  # as above
            raise BundleError(f"{self.name}: {shown(record.name)}: {hub_failure(cause)}") from cause
        transfer.file_done(record.size_bytes)
        return Path(path)

    def _changed(self, record: FileRecord, sha256: str) -> BundleError:
        return self._damaged(
            record, f"SHA-256 is {shown(sha256[:12])}…, {self.listing} lists {record.sha256[:12]}…"
        )

    def _damaged(self, record: FileRecord, problem: str) -> BundleError:
        return BundleError(
            f"{self.name}: {shown(record.name)}: {problem}. The repository is incomplete or was "
            "changed; report it to its owner, or choose another revision."
        )


def _cached(name: HubName, revision: str, file: str) -> Path | None:
    """Return a file's path in the client's cache, or None if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name.repository, file, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _is_there(folder: Path, record: FileRecord, *, hashed: bool) -> bool:
    path = folder / record.name
    try:
        return path.stat().st_size == record.size_bytes and (
            not hashed or file_sha256(path) == record.sha256
        )
    except OSError:
        return False


def _linked(source: Path, path: Path) -> str:
    """Hard-link a file, or copy it, in the place of an earlier one; return its SHA-256 in hex."""
    path.unlink(missing_ok=True)
    # A link to the symlink in the cache would be a symlink again.
    real = os.path.realpath(source)
    try:
        os.link(real, path)
    except OSError:  # another file system, or one without hard links, or another user's file
        shutil.copyfile(real, path)
    return file_sha256(path)


def _unwritable(path: Path | str, cause: OSError) -> OutputError:
    return OutputError(
        f"{path}: cannot be written ({cause.strerror or cause}). Free space there, or set "
        "HF_ASSETS_CACHE to another folder."
    )
