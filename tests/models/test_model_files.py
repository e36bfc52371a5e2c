"""Where models come from: a folder, the hub, the hub's cache; and which of them failed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import errors

from diver_trt.errors import ExportError
from diver_trt.models import ModelOptions, model_files
from diver_trt.models.base import weights_sha256
from diver_trt.models.dit import load_model
from diver_trt.models.model_files import ModelFiles
from tests.models.conftest import State, saved


def hub_error(kind: type[Exception]) -> Exception:
    response = SimpleNamespace(headers={}, request=None, status_code=404)
    return kind("refused\nby the hub", response=response)  # type: ignore[call-arg]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let every request to the hub end in an exception, with nothing in its cache."""

    def fails(cause: Exception) -> None:
        def raises(*_: object, **__: object) -> Any:
            raise cause

        for name in ("list_repo_files", "hf_hub_download", "snapshot_download"):
            monkeypatch.setattr(model_files, name, raises)

    return fails


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (
            hub_error(errors.RepositoryNotFoundError),
            "modles/dit: no such file or folder here, and no such repository on the hub",
        ),
        (hub_error(errors.GatedRepoError), "modles/dit: is gated on the hub. Accept"),
        (hub_error(errors.RevisionNotFoundError), "has no revision 'v2' on the hub. Correct"),
        (
            ConnectionError("Name or service not known"),
            r"no such .* here, and the hub cannot be read \(Name or service not known\)",
        ),
        (errors.OfflineModeIsEnabled("offline"), "which alone is read while HF_HUB_OFFLINE is set"),
        (
            errors.HFValidationError("bad"),
            "no such .* here, and not a name that the hub could have",
        ),
    ],
)
def test_each_failure_of_the_hub_is_distinguished_from_the_others(
    cause: Exception, message: str, hub: Any
) -> None:
    hub(cause)
    with pytest.raises(ExportError, match=message) as caught:
        load_model("modles/dit", ModelOptions(revision="v2"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["./dit", "../dit", "/models/dit", "~/dit", "a/b/dit", "dit/"])
def test_a_mistyped_path_is_not_looked_up_on_the_hub(path: str, hub: Any) -> None:
    hub(AssertionError("the hub is asked"))
    with pytest.raises(ExportError, match=r"no such file or folder$"):
        load_model(path)


def test_a_folder_has_no_revision(random_pipeline: Path, hub: Any) -> None:
    hub(AssertionError("the hub is asked"))
    with pytest.raises(ExportError, match=r"is a folder here, which has no revision 'main'"):
        load_model(str(random_pipeline), ModelOptions(revision="main"))


def test_the_vae_that_a_checkpoint_needs_from_the_hub_is_named(
    weights: State, tmp_path: Path, hub: Any
) -> None:
    saved(weights, tmp_path / "dit.pt")
    hub(ConnectionError("Name or service not known"))
    with pytest.raises(ExportError, match=r"stabilityai/sd-vae-ft-mse: .* the hub cannot be read"):
        load_model(str(tmp_path / "dit.pt"))


def test_a_repository_is_loaded_from_the_files_that_it_lists(
    random_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [p.relative_to(random_pipeline).as_posix() for p in random_pipeline.rglob("*.*")]
    fetched = []

    def download(source: str, name: str, revision: str | None) -> str:
        assert (source, revision) == ("someone/dit", "v2")
        fetched.append(name)
        return str(random_pipeline / name)

    monkeypatch.setattr(model_files, "list_repo_files", lambda *_, **__: [*names, "big/other.bin"])
    monkeypatch.setattr(model_files, "hf_hub_download", download)
    model = load_model("someone/dit", ModelOptions(revision="v2"))
    assert (model.model_id, model.revision) == ("someone/dit", "v2")
    assert weights_sha256(model) == weights_sha256(load_model(str(random_pipeline)))
    assert "big/other.bin" not in fetched
    assert len(set(fetched)) == 6  # the index, three configurations and two files of weights


def test_the_hubs_cache_serves_without_a_connection(
    random_pipeline: Path, hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub(ConnectionError("Name or service not known"))
    monkeypatch.setattr(model_files, "snapshot_download", lambda *_, **__: str(random_pipeline))
    model = load_model("someone/dit", ModelOptions(revision="v2"))
    assert (model.model_id, model.revision) == ("someone/dit", "v2")


def test_a_json_file_is_an_object_with_or_without_a_byte_order_mark(tmp_path: Path) -> None:
    files = ModelFiles.at(str(tmp_path))
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf{}")
    assert files.read_json("a.json", "expected more") == {}
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ExportError, match=r"a\.json: is not a JSON object; expected more"):
        files.read_json("a.json", "expected more")
