"""What a command prints where something else answers in the hub's place."""

from __future__ import annotations

import pytest
from huggingface_hub import constants

from diver_trt.bundle import Bundle
from tests.cli.command import fails, run
from tests.hub.server import Hub

NAME = "hf://me/digits"

ANSWERS = [
    ("404", "got HTTP 404 in place of the hub's answer"),
    ("416", "got HTTP 416 in place of the hub's answer"),
    ("451", "got HTTP 451 in place of the hub's answer"),
    ("429", "the hub failed, or is busy (HTTP 429). Try again"),
    ("500", "the hub failed, or is busy (HTTP 500). Try again"),
    ("loop", "got endless redirects in place of the hub's answer"),
    ("page", "got something else in place of the hub's answer"),
]


@pytest.mark.parametrize(("answer", "message"), ANSWERS)
@pytest.mark.parametrize("command", ["inspect", "push"])
@pytest.mark.parametrize("endpoint", ["http://localhost:1", None])
def test_an_answer_that_is_not_the_hubs_is_named(
    answer: str,
    message: str,
    command: str,
    endpoint: str | None,
    hub: Hub,
    digits: Bundle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.answer = answer
    monkeypatch.setenv("HF_TOKEN", hub.token)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    if endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
    line = fails(run("inspect", NAME) if command == "inspect" else run("push", digits.path, "me/x"))
    assert message in line
    assert ("HF_ENDPOINT" in line) == (endpoint is not None)
    assert ("login page" in line) == (endpoint is None and "in place of" in message)
    assert ("Try again" in line) == ("Try again" in message)
    assert "mozilla" not in line


@pytest.mark.parametrize("endpoint", ["", "hf-mirror.com"])
def test_an_endpoint_that_is_not_an_address_is_named(
    endpoint: str, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    assert f"HF_ENDPOINT is {endpoint!r}, expected an address such as https://" in fails(
        run("inspect", NAME)
    )
