"""What went wrong on the hub, in one line, for every exception of its client."""

from __future__ import annotations

import errno
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


def hub_failure(cause: Exception, revision: str | None = None) -> str:
    """Return what a request to the hub ended in, as a clause whose subject is the repository.

    Args:
        cause: What the client raised; its HTTP library's exceptions have no common base class.
        revision: The revision that was requested.
    """
    from huggingface_hub import errors

    inner = cause.__cause__
    # The client wraps what happened: "cannot find", or "error while uploading".
    wraps = isinstance(cause, (errors.LocalEntryNotFoundError, RuntimeError))
    if isinstance(inner, errors.OfflineModeIsEnabled) or (wraps and isinstance(inner, Exception)):
        return hub_failure(inner, revision)
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return (
            "is not whole in the hub's cache, and HF_HUB_OFFLINE forbids to download it. Unset "
            "HF_HUB_OFFLINE."
        )
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
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if status in (401, 403):
        return (
            f"the hub refuses this token, or a request without one (HTTP {status}). For a token "
            f"that may do this, {_LOGIN}."
        )
    if isinstance(cause, OSError) and cause.errno in _LOCAL:
        return (
            f"cannot be written to the hub's cache ({cause.strerror}). Free space there, or set "
            "HF_HOME to another folder."
        )
    reason = " ".join(str(cause).split()) or type(cause).__name__
    return f"the hub cannot be reached, or failed ({shown(reason)}). Try again."


_LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
