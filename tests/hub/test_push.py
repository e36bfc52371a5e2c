"""Uploading a bundle: what goes into a repository, and when nothing does."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, close_session, constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id
from huggingface_hub.utils.tqdm import enable_progress_bars

from diver_trt.bundle import Bundle
from diver_trt.hub.card import Compared, model_card
from diver_trt.hub.name import is_repository
from tests.cli.command import fails, run, succeeds
from tests.conftest import Edited, flipped
from tests.hub.comparison import write_comparison
from tests.hub.server import Hub, Repository
from tests.stand_in import write_stand_in_plan

# huggingface_hub 2.4 sends files in a way that its HTTP library deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

UNNAMEABLE = [
    "digits",
    "hf://me/new",
    "me/new@main",
    "a/b/c",
    "../x/y",
    "me/x--y",
    "me/x..y",
    "me/x.git",
    "me/x-",
    "me/.x",
    "me./x",
    f"me/{'x' * 97}",
    "me/é",
]


@pytest.fixture(autouse=True)
def own_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    yield
    enable_progress_bars()


@pytest.fixture
def comparison(tmp_path: Path, digits: Bundle) -> Path:
    return write_comparison(tmp_path, digits)


def test_an_uploaded_bundle_is_the_one_that_is_downloaded(
    hub: Hub, edited: Edited, digits: Bundle
) -> None:
    folder = edited()
    write_stand_in_plan(Bundle.open(folder), 2)
    (folder / "notes.txt").write_text("mine alone")
    result = succeeds("push", folder, "me/new", "--private")
    assert (
        "uploading 5 files and a model card, 8.6 MB, to me/new, which is private" in result.stderr
    )
    commit = hub.repositories["me/new"].refs["main"]
    assert f"/me/new/commit/{commit}; next: diver-trt recover" in result.stdout
    assert hub.repositories["me/new"].private
    files = {path.name for path in digits.path.iterdir()}
    assert set(hub.repositories["me/new"].head) == files | {"README.md", ".gitattributes"}
    assert len(hub.repositories["me/new"].commits) == 2

    assert Bundle.open("hf://me/new").sha256 == Bundle.open(folder).sha256


def test_a_bundle_replaces_a_bundle(hub: Hub, digits: Bundle) -> None:
    result = succeeds("push", digits.path, "me/digits")
    assert "me/digits, which is public" in result.stderr
    assert hub.repositories["me/digits"].head["README.md"].startswith(b'---\nlicense: "apache-2.0"')


def test_nothing_is_sent_by_a_dry_run(
    hub: Hub, digits: Bundle, comparison: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    result = succeeds("push", digits.path, "me/new", "--compare", comparison, "--dry-run")
    assert result.stdout.startswith("---\n")
    assert "would upload 5 files and a model card, 8.6 MB, to me/new" in result.stderr
    assert hub.requests == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("me/digits", "--private"), "me/digits: exists and is public, and --private does not"),
        (("me/weights",), "me/weights: holds something other than a bundle, such as config.json"),
        (("you/new",), "the hub refuses this token, or a request without one (HTTP 403)"),
    ],
)
def test_a_repository_that_does_not_fit_is_left_as_it_is(
    options: tuple[str, ...], message: str, hub: Hub, digits: Bundle
) -> None:
    hub.repositories["me/weights"] = Repository()
    hub.repositories["me/weights"].commit({"config.json": b"{}", "README.md": b"# Mine"})
    assert message in fails(run("push", digits.path, *options))
    assert [len(one.commits) for one in hub.repositories.values()] == [1, 1]
    assert hub.uploads == {}


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "me/new: uploading needs a token for the hub. Run `hf auth login`"),
        ("hf_wrong", "me/new: the hub refuses this token, or a request without one (HTTP 401)"),
    ],
)
def test_a_token_that_may_not_write_is_reported_in_one_line(
    token: str | None, message: str, digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    assert message in fails(run("push", digits.path, "me/new"))


def test_a_damaged_bundle_is_not_uploaded(hub: Hub, edited: Edited) -> None:
    folder = edited()
    data = flipped(folder / "decoder.onnx")
    (folder / "decoder.onnx").unlink()  # a hard link to the graph of other tests
    (folder / "decoder.onnx").write_bytes(data)
    assert "decoder.onnx: SHA-256 is" in fails(run("push", folder, "me/new"))
    assert hub.requests == []


@pytest.mark.parametrize(
    ("stated", "options", "message"),
    [
        (None, (), "states no licence of the weights. Give --licence"),
        ("cc-by-nc-4.0", ("--licence", "mit"), "is mit, but .*bundle.json states cc-by-nc-4.0"),
        (None, ("--licence", "all mine: yes"), "expected an identifier of the hub"),
    ],
)
def test_weights_are_not_passed_on_without_their_licence(
    stated: str | None, options: tuple[str, ...], message: str, hub: Hub, edited: Edited
) -> None:
    folder = edited(lambda manifest: manifest["model"].update(licence=stated))
    line = fails(run("push", folder, "me/new", *options), code=2)
    assert re.search(message, line), line
    assert hub.requests == []


def test_a_licence_that_the_bundle_does_not_state_is_given(edited: Edited) -> None:
    folder = edited(lambda manifest: manifest["model"].update(licence=None))
    result = succeeds("push", folder, "me/new", "--licence", "cc-by-nc-4.0", "--dry-run")
    assert 'license: "cc-by-nc-4.0"' in result.stdout


@pytest.mark.parametrize("name", UNNAMEABLE)
@pytest.mark.parametrize("options", [(), ("--dry-run",)], ids=["", "dry"])
def test_a_repository_is_named_by_owner_and_name(
    name: str, options: tuple[str, ...], hub: Hub, digits: Bundle
) -> None:
    assert "expected OWNER/NAME" in fails(run("push", digits.path, name, *options), code=2)
    assert hub.requests == []


@pytest.mark.parametrize("name", [*UNNAMEABLE, "me/x_", "_me/9.x", f"me/{'x' * 96}", "a.git/b"])
def test_names_are_those_that_the_client_of_the_hub_takes(name: str) -> None:
    try:
        validate_repo_id(name)
    except HFValidationError:
        accepted = False
    else:
        accepted = name.count("/") == 1
    assert is_repository(name) == accepted


def test_an_upload_that_is_forbidden_is_called_one(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    line = fails(run("push", digits.path, "me/new"))
    assert "me/new: cannot be uploaded while HF_HUB_OFFLINE is set" in line


def test_a_home_of_the_client_that_cannot_be_used_is_named(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "file" / "token"))
    for command in (("push", digits.path, "me/new"), ("inspect", "hf://me/new")):
        line = fails(run(*command))
        assert "file/token on this machine cannot be used (Not a directory)" in line
        assert f"Set HF_HOME, which is {tmp_path / 'file'}, to a folder that can be written" in line


def test_a_lost_connection_leaves_the_repository_without_a_commit(
    hub: Hub, digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("the network is gone")

    monkeypatch.setattr("huggingface_hub.lfs._upload_single_part", refuse)
    line = fails(run("push", digits.path, "me/new"))
    assert "me/new: the hub cannot be reached, or failed (the network is gone)" in line
    assert set(hub.repositories["me/new"].head) == {".gitattributes"}


def test_a_card_states_what_the_bundle_states(digits: Bundle, comparison: Path) -> None:
    card = model_card(digits, "me/new", "apache-2.0", Compared.read(comparison, digits))
    for line in (
        "| base model | `dit-digits`, a folder or file on the machine that exported it |",
        "| classes | 10: `0`, `1`, `2`, `3`, `4`, `5`, `6`, `7`, `8`, `9` |",
        "| images | 32 × 32 pixels |",
        "| parameters | 2,113,463 |",
        f"| SHA-256 of `bundle.json` | `{digits.sha256}` |",
        "diver-trt recover DISTILLED RECOVERED --bundle hf://me/new",
        "| `openvino fp32` | `passed` | 61.2 dB | 48.0 dB | 0.9999 |",
        "| `openvino fp32` | `passed` | no difference | no difference | 1.0000 |",
        "| `openvino fp32` | `passed` | not finite | not finite | not finite |",
        'Settings of the comparison: `steps 25`, `window [25, 10]`, `guide "a     b"`, `seed 7`.',
        "Measured with `date 2026-11-26`, `machine Linux x86_64, 2 cores`.",
    ):
        assert line in card.splitlines()
    data = ModelCard(card).data  # as the hub reads it
    assert (data.get("license"), data.get("library_name")) == ("apache-2.0", "diver-trt")
    assert data.get("tags") == ["dataset-distillation", "diver", "onnx", "fp32"]
    assert data.get("base_model") is None
    assert "No figures of `diver-trt compare` were given" in model_card(digits, "me/x", "mit")


def test_a_card_names_a_base_model_on_the_hub(edited: Edited) -> None:
    change = {"id": "someone/dit-xl", "revision": "abc123"}
    bundle = Bundle.open(edited(lambda manifest: manifest["model"].update(change)))
    card = model_card(bundle, "me/new", "cc-by-nc-4.0")
    assert '\nbase_model: "someone/dit-xl"\n' in card
    assert "`someone/dit-xl`, revision `abc123` |" in card


def test_text_of_a_bundle_cannot_add_to_its_card(edited: Edited) -> None:
    evil = '`]() | x\n---\nlicense: mit <script src="//x"></script>'

    def change(manifest: dict[str, Any]) -> None:
        manifest["model"] |= {"id": evil.replace("\n", " "), "revision": "`|`"}
        manifest["class_names"] = [f"{digit}`|<b>" for digit in range(10)]

    card = model_card(Bundle.open(edited(change)), "me/new", "apache-2.0")
    rows = [line for line in card.splitlines() if line.startswith("| ")]
    assert all(row.count("|") in (3, 5) for row in rows)
    outside_of_code = "".join(card.split("`")[::2])
    assert "<" not in outside_of_code


def test_an_empty_negative_prompt_is_stated(digits: Bundle) -> None:
    """Two backticks would begin a code span that ends wherever the next two are."""
    prompted = replace(digits, prompts=(*map(str, range(10)), ""))
    card = model_card(prompted, "me/new", "apache-2.0")
    assert "| prompts | `0`, …; negative: (empty) |" in card


def test_figures_of_another_bundle_are_refused(
    digits: Bundle, comparison: Path, edited: Edited
) -> None:
    other = edited(lambda manifest: manifest["model"].update(id="another"))
    line = fails(run("push", other, "me/new", "--compare", comparison, "--dry-run"))
    assert "compares other bundles than" in line
    comparison.write_text('{"passed": true}')
    line = fails(run("push", digits.path, "me/new", "--compare", comparison, "--dry-run"))
    assert "headline: missing" in line
    line = fails(run("push", digits.path, "me/new", "--compare", os.devnull, "--dry-run"))
    assert "expected a regular file" in line
