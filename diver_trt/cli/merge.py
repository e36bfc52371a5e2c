"""`diver-trt merge`: join the shards of a recovery."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diver_trt.cli.console import end_with_left_out, print_json, say
from diver_trt.cli.options import Gallery, Json, Overwrite
from diver_trt.counted import counted
from diver_trt.errors import printable


def merge(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="SHARD... OUTPUT", help="Every shard of a recovery, and a new folder."
        ),
    ],
    gallery: Gallery = True,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Join the shards of a recovery after checking that they belong together and are complete."""
    from diver_trt.manifest import unlisted_note
    from diver_trt.recovered.merge import merge_shards

    if len(folders) < 2:
        raise typer.BadParameter("expected every shard of a recovery, and then a new folder")
    *shards, output = folders
    merged = merge_shards(shards, output, gallery=gallery, overwrite=overwrite)
    if note := unlisted_note(output):
        say(f"warning: {note}")
    if as_json:
        print_json(output=str(output), images=merged.images, skipped=merged.skipped)
    else:
        print(
            f"merged {counted(len(shards), 'shard')} with {counted(merged.images, 'image')} into "
            f"{printable(str(output))}"
        )
    end_with_left_out(merged.skipped, silent=as_json)
