"""`diver-trt push`: a bundle in, a repository on the Hugging Face hub out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from diver_trt.cli import completion
from diver_trt.cli.console import say
from diver_trt.cli.options import open_bundle
from diver_trt.errors import printable

BundleArgument = Annotated[
    str,
    typer.Argument(
        metavar="BUNDLE", help="The bundle to upload.", autocompletion=completion.bundles
    ),
]
Repository = Annotated[
    str, typer.Argument(metavar="OWNER/NAME", help="Repository on the hub: new, or of a bundle.")
]
Licence = Annotated[
    str | None,
    typer.Option(
        help="Licence of the weights, such as cc-by-nc-4.0, where the bundle does not state it."
    ),
]
Comparison = Annotated[
    Path | None,
    typer.Option(
        "--compare",
        metavar="FILE",
        help="Result of compare --json, to quote its figures in the model card.",
    ),
]
Private = Annotated[bool, typer.Option("--private", help="Let nobody else see a new repository.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the model card, and upload nothing.")
]


def push(
    bundle: BundleArgument,
    repository: Repository,
    licence: Licence = None,
    comparison: Comparison = None,
    private: Private = False,
    dry_run: DryRun = False,
) -> None:
    """Upload a bundle and a model card to the Hugging Face hub, in one commit."""
    from diver_trt.hub.failures import import_hub
    from diver_trt.hub.push import prepare
    from diver_trt.hub.push import push as push_bundle

    upload = prepare(open_bundle(bundle), repository, licence, comparison)
    if dry_run:
        print(upload.card)
        say(f"would upload {upload}, to {repository}")
        return
    if not sys.stderr.isatty():
        # Some of the client's bars are printed into log files too.
        import_hub("uploading a bundle").utils.disable_progress_bars()
    url = push_bundle(upload, private=private, on_note=say)
    print(
        f"uploaded {printable(url)}; next: diver-trt recover DISTILLED RECOVERED --bundle "
        f"hf://{repository}"
    )
