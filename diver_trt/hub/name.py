"""Names of repositories on the hub."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import PurePath

from diver_trt.errors import UsageError, shown

# pathlib makes hf:/OWNER/NAME of hf://OWNER/NAME, and hf: of hf://.
_SCHEME = re.compile(r"hf:(?:/{1,2}|$)", re.IGNORECASE)  # RFC 3986: a scheme in either case
# The hub's own rules, as its client has them:
# https://github.com/huggingface/huggingface_hub/blob/v1.2.0/src/huggingface_hub/utils/_validators.py
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_REPOSITORY = re.compile(rf"(?!.*(?:--|\.\.|\.git$)){_PART}/{_PART}")
NAME_RULES = (
    "each of at most 96 letters, digits, '-', '_' and '.', not '-' or '.' at an end, no '--' or "
    "'..', and no '.git' at the end"
)
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")


def is_repository(text: str) -> bool:
    """Return whether a text is the name that a repository can have: `OWNER/NAME`."""
    return _REPOSITORY.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class HubName:
    """A bundle on the hub: `hf://OWNER/NAME` or `hf://OWNER/NAME@REVISION`.

    Attributes:
        repository: `OWNER/NAME`.
        revision: Branch, tag or commit; None is the branch `main`.
    """

    repository: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str | os.PathLike[str]) -> HubName | None:
        """Return the name that a text is, or None if it neither is `hf:` nor begins with `hf:/`.

        Raises:
            UsageError: If it has this scheme, but is not a name on the hub.
        """
        text = text.as_posix() if isinstance(text, PurePath) else os.fspath(text)
        if not (scheme := _SCHEME.match(text)):
            return None
        repository, at, revision = text[scheme.end() :].partition("@")
        right = _REVISION.fullmatch(revision) and ".." not in revision if at else True
        if not (is_repository(repository) and right):
            given = shown(f"hf://{text[scheme.end() :]}")
            raise UsageError(
                f"{given}: is not a name on the hub; expected hf://OWNER/NAME or "
                f"hf://OWNER/NAME@REVISION, {NAME_RULES}"
            )
        return cls(repository, revision or None)

    def __str__(self) -> str:
        return f"hf://{self.repository}" + (f"@{self.revision}" if self.revision else "")
