"""Opening a bundle on the hub: what is downloaded, when, and what is refused."""

from __future__ import annotations

from diver_trt.bundle import Bundle
from tests.hub.server import Hub


def test_only_the_files_of_the_bundle_are_downloaded_and_only_once(hub: Hub, digits: Bundle) -> None:
    notes: list[str] = []
    bundle = Bundle.open("hf://me/digits", on_note=notes.append)
    print(notes, hub.requests)
    assert bundle.sha256 == digits.sha256
