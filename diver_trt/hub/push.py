"""Uploading a bundle to the hub: its files and a model card in one commit."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from diver_trt.bundle import MANIFEST, Bundle
from diver_trt.contract import NETWORKS
from diver_trt.counted import counted, megabytes
from diver_trt.errors import DiverError, OutputError, UsageError, shown
from diver_trt.hub.card import CARD, Compared, model_card
from diver_trt.hub.failures import hub_failure, import_hub
from diver_trt.hub.name import NAME_RULES, is_repository

_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,49}")
_NEW = {".gitattributes", CARD}
"""Files of a repository that was just made, here or on the hub's pages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """What goes into a repository.

    Attributes:
        bundle: The bundle, whose files have been verified.
        repository: `OWNER/NAME`.
        card: Text of the model card.
    """

    bundle: Bundle
    repository: str
    card: str

    @property
    def files(self) -> tuple[Path, ...]:
        """The bundle's own files: not engines, and nothing else that lies in its folder."""
        names = (MANIFEST, *(record.name for record in self.bundle.files))
        return tuple(self.bundle.path / name for name in names)

    def __str__(self) -> str:
        size = megabytes(sum(path.stat().st_size for path in self.files))
        return f"{counted(len(self.files), 'file')} and a model card, {size}"


def prepare(
    bundle: Bundle, repository: str, licence: str | None = None, comparison: Path | None = None
) -> Upload:
    """Verify a bundle and write its model card; nothing is sent.

    Args:
        bundle: The bundle.
        repository: `OWNER/NAME` on the hub.
        licence: Licence of the weights; None is the one that `bundle.json` states.
        comparison: The file that `compare --json` printed.

    Raises:
        UsageError: If the repository's name is not one, or the licence is neither stated nor given,
            or contradicts the one that is stated.
        BundleError: If a file of the bundle is not the one that was exported, or the comparison is
            not one of this bundle.
    """
    if not is_repository(repository):
        raise UsageError(
            f"{shown(repository)}: is not a repository's name; expected OWNER/NAME, {NAME_RULES}"
        )
    stated = _licence(bundle, licence)
    for name in NETWORKS:
        bundle.verified(name)
    compared = Compared.read(comparison, bundle) if comparison else None
    card = model_card(bundle, repository, stated, compared)
    return Upload(bundle=bundle, repository=repository, card=card)


def push(upload: Upload, *, private: bool, on_note: Callable[[str], None]) -> str:
    """Upload a bundle into a new repository, or one that holds a bundle; return the commit's URL.

    Args:
        upload: What `prepare` returned.
        private: Whether the repository must be private.
        on_note: Receives notes, one line of text each.

    Raises:
        OutputError: If no token is set, or the hub rejects a request or fails; if the repository
            holds something else, or is public and should be private.
        MissingExtraError: If the hub's client is not installed.
    """
    hub = import_hub("uploading a bundle")
    repository = upload.repository
    additions = [hub.CommitOperationAdd(path.name, str(path)) for path in upload.files] + [
        hub.CommitOperationAdd(CARD, upload.card.encode())
    ]
    try:
        if hub.get_token() is None:
            raise OutputError(
                f"{repository}: uploading needs a token for the hub. Run `hf auth login`, or set "
                "HF_TOKEN."
            )
        api = hub.HfApi()
        # None, since an organisation's repositories may be private by default:
        # https://huggingface.co/docs/huggingface_hub/package_reference/hf_api
        api.create_repo(repository, private=private or None, exist_ok=True)
        # It may have existed, with other files and another visibility.
        found = api.model_info(repository)
        _require_fit(
            repository,
            {file.rfilename for file in found.siblings or ()},
            public=private and not found.private,
        )
        seen = "private" if found.private else "public"
        on_note(f"uploading {upload}, to {repository}, which is {seen}")
        message = f"Upload the bundle {upload.bundle.sha256[:12]}"
        # One commit: a connection that is lost leaves the repository as it was.
        commit = api.create_commit(repository, additions, commit_message=message)
    except DiverError:
        raise
    except Exception as cause:  # the client's HTTP library has a class of its own for each failure
        raise OutputError(f"{repository}: {hub_failure(cause, upload=True)}") from cause
    return str(commit.commit_url)


def _require_fit(repository: str, files: set[str], *, public: bool) -> None:
    """Refuse a repository that is public against the user's will, or holds something else.

    Raises:
        OutputError: If it does.
    """
    if public:
        raise OutputError(
            f"{repository}: exists and is public, and --private does not change that. Make it "
            "private on its page, or choose a new repository."
        )
    if MANIFEST not in files and (others := sorted(files - _NEW)):
        raise OutputError(
            f"{repository}: holds something other than a bundle, such as {shown(others[0])}. "
            "Choose a new repository: its model card would be replaced."
        )


def _licence(bundle: Bundle, given: str | None) -> str:
    """Return the licence of the weights.

    Raises:
        UsageError: If it is neither stated nor given, is not an identifier, or both differ.
    """
    stated = bundle.model.licence
    if given is None and stated is None:
        raise UsageError(
            f"{bundle.path / MANIFEST}: states no licence of the weights. Give --licence with the "
            "one that their owner published them under, such as cc-by-nc-4.0; without one they "
            "must not be passed on."
        )
    if given is not None and stated is not None and given != stated:
        raise UsageError(
            f"--licence is {shown(given)}, but {bundle.path / MANIFEST} states {shown(stated)}, as "
            "the model's own card did. Leave out --licence."
        )
    licence = given or stated or ""
    if not _LICENCE.fullmatch(licence):
        raise UsageError(
            f"the licence is {shown(repr(licence))}, expected an identifier of the hub, such as "
            "cc-by-nc-4.0, apache-2.0 or other"
        )
    return licence
