"""A hub on this machine with the digits bundle, and an empty cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants, file_download

from diver_trt.bundle import Bundle
from tests.hub.server import Files, Hub, Repository, serving


@pytest.fixture(scope="session")
def digits_files(digits: Bundle) -> Files:
    """The files of the digits bundle, and others that a repository may have."""
    names = ("bundle.json", *(record.name for record in digits.files))
    files = {name: (digits.path / name).read_bytes() for name in names}
    others = {"README.md": b"# Digits\n", "plans/rtx/denoiser.engine": b"code", "big.data": b"x"}
    return files | others


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, digits_files: Files) -> Iterator[Hub]:
    """A hub with the repository `me/digits`, which huggingface_hub uses in this process."""
    with serving() as hub:
        # huggingface_hub reads the environment when it is imported.
        for name, value in {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "home" / "hub"),
            "HF_ASSETS_CACHE": str(tmp_path / "home" / "assets"),
            "HF_TOKEN_PATH": str(tmp_path / "home" / "token"),
            "HF_HUB_DISABLE_TELEMETRY": True,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
        }.items():
            monkeypatch.setattr(constants, name, value, raising=False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        # Not a second between two attempts at a lost connection.
        monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda _: None))
        hub.repositories["me/digits"] = Repository()
        hub.repositories["me/digits"].commit(dict(digits_files))
        yield hub
        huggingface_hub.close_session()


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    """Where the folders of bundles that were downloaded from `me` are."""
    return tmp_path / "home" / "assets" / "diver-trt" / "bundles" / "me"
