"""What went wrong on the hub, in one line, for every exception of its client."""

from __future__ import annotations

import errno
import json
import os
import re
from types import ModuleType

from diver_trt.errors import shown
from diver_trt.packages import required

_LOGIN = "run `hf auth login`"


def import_hub(purpose: str) -> ModuleType:
    """Import the hub's client.

    Raises:
        MissingExtraError: If it is not installed.
    """
    # Its own module loads these only when they are imported.
    for module in ("constants", "utils"):
        required(f"huggingface_hub.{module}", "hub", purpose, "huggingface_hub")
    return required("huggingface_hub", "hub", purpose)


def hub_failure(cause: Exception, revision: str | None = None, *, upload: bool = False) -> str:
    """Return what a request to the hub ended in, as a clause whose subject is the repository.

    Args:
        cause: What the client raised; its HTTP library's exceptions have no common base class.
        revision: The revision that was requested.
        upload: Whether something was to be uploaded.
    """
    from huggingface_hub import errors

    inner = cause.__cause__
    # The client wraps what happened: "cannot find", or "error while uploading".
    wraps = isinstance(cause, (errors.LocalEntryNotFoundError, RuntimeError))
    if isinstance(inner, errors.OfflineModeIsEnabled) or (wraps and isinstance(inner, Exception)):
        return hub_failure(inner, revision, upload=upload)
    if isinstance(cause, errors.OfflineModeIsEnabled):
        if upload:
            return "cannot be uploaded while HF_HUB_OFFLINE is set. Unset HF_HUB_OFFLINE."
        return (
            "is incomplete in the hub's cache, and HF_HUB_OFFLINE forbids downloading it. Unset "
            "HF_HUB_OFFLINE."
        )
    # Before the class below, which this one is a kind of.
    if isinstance(cause, errors.GatedRepoError):
        return f"is gated on the hub. Accept its conditions on its page, then {_LOGIN}."
    if isinstance(cause, errors.RepositoryNotFoundError):
        return (
            "no such model repository on the hub, or a private one. Correct the name, or "
            f"{_LOGIN} for an account that may read it."
        )
    if isinstance(cause, errors.RevisionNotFoundError):
        return f"has no revision {revision or 'main'} on the hub. Correct the revision."
    if isinstance(cause, errors.HFValidationError):
        return "is not a name that a repository on the hub could have. Correct the name."
    # Network failures may also be OSErrors, but without a file name.
    if isinstance(cause, OSError) and (cause.filename or cause.errno in _LOCAL):
        return _local_failure(cause)
    return _answer(cause) or f"the hub cannot be reached, or failed ({reason(cause)}). {_retry()}"


def reason(cause: BaseException) -> str:
    """Return an exception's message on one line, without the HTTP library's link to a manual."""
    text = re.sub(r"\s*For more information check: \S+", "", str(cause))
    return shown(" ".join(text.split()) or type(cause).__name__)


def _local_failure(cause: OSError) -> str:
    """Return what is wrong with a file or folder on this machine."""
    if cause.filename is None:
        return (
            f"cannot be written to the hub's cache ({cause.strerror}). Free space there, or set "
            "HF_HOME to another folder."
        )
    home = os.environ.get("HF_HOME")
    now = f", which is {shown(home)}," if home else ""
    return (
        f"{shown(os.fsdecode(cause.filename))} on this machine cannot be used ({cause.strerror}). "
        f"Set HF_HOME{now} to a folder that can be written."
    )


def _answer(cause: Exception) -> str | None:
    """Return what is wrong with an answer, or with the address it came from; None without one."""
    from huggingface_hub import errors

    status = getattr(getattr(cause, "response", None), "status_code", None)
    if status in (401, 403):
        return (
            f"the hub refuses this token, or a request without one (HTTP {status}). For a token "
            f"that may do this, {_LOGIN}."
        )
    if status in _BUSY or (status or 0) >= 500:
        return f"the hub failed, or is busy (HTTP {status}). {_retry()}"
    # The hub states its reason beside the status.
    if status and (stated := getattr(cause, "server_message", None)):
        return f"the hub refuses the request (HTTP {status}: {shown(' '.join(stated.split()))})."
    # By name, since the client changes its HTTP library: httpx before 2.0, and then httpx2.
    kind = type(cause).__name__
    if kind in ("UnsupportedProtocol", "InvalidURL"):
        return (
            f"HF_ENDPOINT is {os.environ.get('HF_ENDPOINT', '')!r}, expected an address such as "
            "https://huggingface.co. Correct or unset it."
        )
    if status:
        got = f"HTTP {status}"
    elif kind == "TooManyRedirects":
        got = "endless redirects"
    elif isinstance(cause, (errors.FileMetadataError, json.JSONDecodeError)):
        got = "something else"
    else:
        return None
    endpoint = os.environ.get("HF_ENDPOINT")
    return f"got {got} in place of the hub's answer. " + (
        f"HF_ENDPOINT is {shown(endpoint)}: correct or unset it."
        if endpoint
        else "Does this network have a login page, or a proxy that blocks the hub?"
    )


def _retry() -> str:
    endpoint = os.environ.get("HF_ENDPOINT")
    return f"Try again, or correct HF_ENDPOINT, {shown(endpoint)}." if endpoint else "Try again."


# Request Timeout, Too Early, Too Many Requests:
# https://www.iana.org/assignments/http-status-codes/http-status-codes.xhtml
_BUSY = (408, 425, 429)
_LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
