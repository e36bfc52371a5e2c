"""Opening a page from the disk in headless Chromium, where there is one."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (found := shutil.which(name))
    ),
    None,
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
SIZE = (1180, 3000)

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no Chromium on this machine to open the page in"
)


def browse(path: Path, *more: str, width: int = SIZE[0], address: str = "") -> str:
    """Open a page and return the resulting document.

    Args:
        path: The page.
        more: Further options of Chromium.
        width: Of the window in pixels.
        address: What follows the page's own address, such as `"#class=3"`.
    """
    assert CHROMIUM is not None
    profile = path.with_suffix(".profile")
    command = [
        CHROMIUM,
        *FLAGS,
        f"--user-data-dir={profile}",
        f"--window-size={width},{SIZE[1]}",
        *more,
        path.as_uri() + address,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def seen(path: Path, script: str, *more: str, width: int = SIZE[0], address: str = "") -> Any:
    """Open a copy of a page with a script at its end, and return what the script returns.

    Args:
        path: The page.
        script: The body of an asynchronous function, run when the page has been loaded.
        more, width, address: See `browse`.
    """
    copy = path.with_name("with-a-script.html")
    ending = (
        '<script>addEventListener("load", async () => { document.documentElement.dataset.seen = '
        f"JSON.stringify(await (async () => {{ {script} }})()); }});</script>"
    )
    copy.write_text(path.read_text(encoding="utf-8") + ending, encoding="utf-8")
    # Chromium waits for timers and pictures in virtual time, on a slow machine too.
    options = ("--dump-dom", "--virtual-time-budget=60000", *more)
    document = browse(copy, *options, width=width, address=address)
    attribute = re.search(r'data-seen="([^"]*)"', document)
    assert attribute is not None, document[:2000]
    return json.loads(html.unescape(attribute[1]))
