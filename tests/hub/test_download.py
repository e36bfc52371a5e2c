"""Opening a bundle on the hub: what is downloaded, when, and what is refused."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from diver_trt.bundle import Bundle
from diver_trt.contract import NETWORKS
from diver_trt.errors import BundleError, DiverError, MissingExtraError, UsageError
from diver_trt.hub.name import HubName
from tests.conftest import flipped
from tests.edited_json import set_in
from tests.hub.server import Files, Hub, Repository
from tests.stand_in import write_stand_in_plan

NAME = "hf://me/digits"


def refused(name: str = NAME) -> str:
    """Return the one line in which opening a bundle ends."""
    with pytest.raises(DiverError) as caught:
        Bundle.open(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def files_below(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_the_files_of_the_bundle_are_downloaded_once_and_no_others(
    hub: Hub, digits: Bundle, bundles: Path
) -> None:
    notes: list[str] = []
    bundle = Bundle.open(NAME, on_note=notes.append)
    assert bundle.sha256 == digits.sha256
    assert notes == [
        f"{NAME}: downloading 4 files, 8.6 MB; the bundle's folder is {bundle.path}",
    ]
    assert len(hub.transfers()) == 5
    names = {"bundle.json", *(record.name for record in digits.files)}
    assert {path.name for path in bundle.path.iterdir()} == names
    assert [path.name for path in bundles.iterdir()] == [bundle.path.name]
    for name in NETWORKS:
        bundle.verified(name)

    hub.requests.clear()
    assert Bundle.open(Path(NAME), on_note=notes.append).path == bundle.path
    assert hub.requests == ["HEAD /me/digits/resolve/main/bundle.json"]
    assert len(notes) == 1


def test_the_bundle_takes_no_space_beside_the_cache_of_the_hub(hub: Hub) -> None:
    for path in Bundle.open(NAME).path.iterdir():
        assert not path.is_symlink()
        assert path.stat().st_nlink == 2


def test_a_file_system_without_hard_links_gets_copies(
    hub: Hub, digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    bundle = Bundle.open(NAME)
    assert (bundle.path / "decoder.onnx").stat().st_nlink == 1
    assert bundle.verified("decoder").read_bytes() == digits.verified("decoder").read_bytes()


def test_a_commit_in_the_cache_is_opened_without_a_request(hub: Hub) -> None:
    commit = hub.repositories["me/digits"].refs["main"]
    first = Bundle.open(f"{NAME}@{commit}")
    hub.requests.clear()
    assert Bundle.open(f"{NAME}@{commit}").path == first.path
    assert hub.requests == []


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: Hub, digits_files: Files) -> None:
    repository = hub.repositories["me/digits"]
    repository.commit({"README.md": b"no bundle any more"})
    repository.commit(digits_files, ref="v1")
    assert "is not a bundle (it has no bundle.json)" in refused()
    assert Bundle.open(f"{NAME}@v1").num_classes == 10


def test_a_bundle_in_the_cache_needs_no_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    path, notes = Bundle.open(NAME).path, list[str]()
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert Bundle.open(NAME, on_note=notes.append).path == path
        assert notes == []
    unplug(monkeypatch)
    assert Bundle.open(NAME, on_note=notes.append).path == path
    (note,) = notes
    assert "the hub cannot be reached" in note
    assert note.endswith("Meanwhile, the copy in the hub's cache is used.")


def test_a_bundle_in_the_cache_outlives_its_repository(hub: Hub) -> None:
    path, notes = Bundle.open(NAME).path, list[str]()
    del hub.repositories["me/digits"]
    assert Bundle.open(NAME, on_note=notes.append).path == path
    (note,) = notes
    assert note.startswith(f"{NAME}: no such model repository on the hub, or a private one")


def unplug(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing listens on port 1.
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    template = "http://127.0.0.1:1/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def test_a_bundle_that_is_not_in_the_cache_needs_a_network(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    unplug(monkeypatch)
    assert "the hub cannot be reached" in refused()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refused()


def test_a_half_downloaded_bundle_is_not_opened_offline(
    hub: Hub, bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.cut["decoder.onnx"] = 1000
    assert "decoder.onnx: the hub cannot be reached" in refused()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "is incomplete in the hub's cache" in refused()
    assert files_below(bundles) == set()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"private": True}, "no such model repository on the hub, or a private one"),
        ({"gated": True}, "is gated on the hub. Accept its conditions"),
    ],
)
def test_a_repository_that_may_not_be_read_names_the_command_that_helps(
    change: dict[str, bool], message: str, hub: Hub
) -> None:
    for name, value in change.items():
        setattr(hub.repositories["me/digits"], name, value)
    found = refused()
    assert found.startswith(f"{NAME}: {message}")
    assert "run `hf auth login`" in found


def test_a_private_bundle_is_opened_with_the_right_token(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["me/digits"].private = True
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    found = refused()
    assert "the hub refuses this token, or a request without one (HTTP 401)" in found
    assert "run `hf auth login`" in found
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert Bundle.open(NAME).num_classes == 10


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf://me/nothing", "hf://me/nothing: no such model repository on the hub"),
        (f"{NAME}@v7", f"{NAME}@v7: has no revision v7 on the hub"),
    ],
)
def test_what_is_not_on_the_hub_is_named(name: str, message: str, hub: Hub) -> None:
    assert refused(name).startswith(message)


@pytest.mark.parametrize(
    "name",
    [
        "hf://",
        "hf://digits",
        "HF://digits",
        "hf://datasets/me/digits",
        "hf://me/digits@",
        "hf://me/digits@../../x",
        "hf://../digits",
        "hf://me/digits\n",
        "hf://me/di gits",
        "hf://me/a--b",
        "hf://me/a.git",
    ],
)
def test_other_texts_are_not_names_on_the_hub(name: str) -> None:
    with pytest.raises(UsageError, match=r"expected hf://OWNER/NAME or hf://OWNER/NAME@REVISION"):
        Bundle.open(name)


@pytest.mark.parametrize("name", ["me/digits", "./hf:/me", "engines/digits", "hf", "/hf://a/b"])
def test_a_path_is_not_a_name_on_the_hub(name: str) -> None:
    assert HubName.parse(name) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"is not a bundle (it has no bundle.json)"),
        (b"[]", "bundle.json: found [], expected an object"),
        (b'{"model_type": "dit"}', "bundle.json: schema: missing"),
        (b'{"schema": 3}', "ask its owner to export the model again"),
        (b" " * (8 * 1024**2 + 1), "bundle.json has 8,388,609 bytes, expected at most 8,388,608"),
    ],
)
def test_a_repository_of_another_kind_is_refused(
    content: bytes | None, message: str, hub: Hub
) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"weights"}
    hub.repositories["me/model"] = Repository()
    hub.repositories["me/model"].commit(files | ({"bundle.json": content} if content else {}))
    found = refused("hf://me/model")
    assert found.startswith("hf://me/model: ")
    assert message in found
    assert "/me/model/resolve/main/model.safetensors" not in hub.transfers()
    assert content is None or len(content) < 100 or hub.transfers() == []


def edited(files: Files, change: Callable[[dict[str, Any]], None]) -> bytes:
    manifest = json.loads(files["bundle.json"])
    change(manifest)
    return json.dumps(manifest).encode()


@pytest.mark.parametrize("name", ["../decoder.onnx", "/etc/hostname", "a/b.onnx", ".."])
def test_a_name_that_leaves_the_bundle_is_refused_before_any_request(
    name: str, hub: Hub, digits_files: Files
) -> None:
    manifest = edited(digits_files, set_in("networks", "decoder", "graph", "name", to=name))
    hub.repositories["me/digits"].commit({**digits_files, "bundle.json": manifest})
    assert "expected a plain file name inside the bundle" in refused()
    assert len(hub.transfers()) == 1


@pytest.mark.parametrize("large", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1] + b"!", "SHA-256 is"),
        (lambda data: data + b"!", "has 640,870 bytes, bundle.json lists 640,869"),
        (None, "is missing in the repository"),
    ],
)
def test_a_file_that_is_not_the_exported_one_is_refused(
    change: Callable[[bytes], bytes] | None,
    message: str,
    large: bool,
    hub: Hub,
    digits_files: Files,
    bundles: Path,
) -> None:
    files = dict(digits_files)
    data = files.pop("decoder.onnx")
    hub.repositories["me/digits"].commit(files | ({"decoder.onnx": change(data)} if change else {}))
    hub.small = () if large else ("decoder.onnx",)
    found = refused()
    assert found.startswith(f"{NAME}: decoder.onnx: {message}")
    assert "The repository is incomplete or was changed" in found
    assert files_below(bundles) == set()
    # The hub's list has no hash of small files: only those must be read to see it.
    assert (len(hub.transfers()) > 1) == (not large and message == "SHA-256 is")


def test_a_lost_connection_is_resumed_where_it_broke(hub: Hub, digits: Bundle) -> None:
    hub.cut["denoiser.onnx"] = 2
    seen: list[tuple[str, int, int]] = []
    bundle = Bundle.open(NAME, on_progress=lambda *progress: seen.append(progress))
    assert bundle.sha256 == digits.sha256
    assert {(phase, total) for phase, _, total in seen} == {("MB downloaded", 9)}
    done = [done for _, done, _ in seen]
    assert done == sorted(done)
    assert done[-1] == 9
    assert sum("denoiser.onnx" in path for path in hub.transfers()) == 3


def test_what_a_lost_connection_leaves_is_not_taken_for_a_file(
    hub: Hub, digits: Bundle, bundles: Path, tmp_path: Path
) -> None:
    hub.cut["denoiser.onnx"] = 1000
    assert "denoiser.onnx: the hub cannot be reached, or failed" in refused()
    sizes = {path.stat().st_size for path in (tmp_path / "home").rglob("blobs/*")}
    whole = {record.size_bytes for record in digits.files}
    assert sizes - whole == {(digits.path / "bundle.json").stat().st_size}
    assert files_below(bundles) == set()

    hub.cut.clear()
    hub.requests.clear()
    bundle = Bundle.open(NAME)
    for name in NETWORKS:
        bundle.verified(name)
    # What came whole the first time is not transferred again.
    assert {Path(path).name for path in hub.transfers()} == {"denoiser.onnx", "decoder.onnx"}


def test_a_file_that_was_damaged_here_is_downloaded_again_once_it_is_deleted(hub: Hub) -> None:
    bundle = Bundle.open(NAME)
    decoder = bundle.path / "decoder.onnx"
    decoder.write_bytes(flipped(decoder))  # and with it the hub's own blob, which is the same file
    with pytest.raises(BundleError, match=r"SHA-256 is .* delete the file and run again"):
        Bundle.open(NAME).verified("decoder")
    decoder.unlink()
    Bundle.open(NAME).verified("decoder")


def test_a_file_that_was_cut_off_here_comes_again(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(NAME)
    os.truncate(bundle.path / "decoder.onnx", 1000)
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert "decoder.onnx: is incomplete in the hub's cache" in refused()
    Bundle.open(NAME).verified("decoder")


def test_engines_stay_when_only_the_model_card_changes(hub: Hub, digits_files: Files) -> None:
    first = Bundle.open(NAME)
    write_stand_in_plan(first, 2)
    hub.repositories["me/digits"].commit({**digits_files, "README.md": b"# A better card\n"})
    hub.requests.clear()
    again = Bundle.open(NAME)
    assert again.path == first.path
    assert (again.path / "plans").is_dir()
    assert [Path(path).name for path in hub.transfers()] in ([], ["bundle.json"])


def test_a_changed_bundle_gets_a_folder_of_its_own(hub: Hub, digits_files: Files) -> None:
    first = Bundle.open(NAME)
    manifest = edited(digits_files, set_in("model", "id", to="another"))
    hub.repositories["me/digits"].commit({**digits_files, "bundle.json": manifest})
    second = Bundle.open(NAME)
    assert (first.model_id, second.model_id) == ("dit-digits", "another")
    assert first.path.parent == second.path.parent
    assert first.path != second.path
    assert Bundle.open(first.path).sha256 == first.sha256


def test_a_folder_that_cannot_be_written_is_named(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "file"))
    found = refused()
    assert found.startswith(f"{tmp_path / 'file'}")
    assert "set HF_ASSETS_CACHE to another folder" in found


def test_the_client_of_the_hub_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"reading hf://me/digits needs huggingface_hub"):
        Bundle.open(NAME)
