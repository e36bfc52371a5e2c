"""`diver-trt merge`: the shards of a recovery in, the whole of it out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diver_trt.cli.console import print_json
from diver_trt.cli.options import Json


def merge(
    folders: Annotated[list[Path], typer.Argument(metavar="SHARD... OUTPUT", help="Every shard of a recovery, and a new folder.")],
    as_json: Json = False,
) -> None:
    """Join the shards of a recovery, after checking that they belong together and that none is missing."""
    from diver_trt.merging import merge_shards

    if len(folders) < 2:
        raise typer.BadParameter("expected every shard of a recovery, and then a new folder")
    *shards, output = folders
    count = merge_shards(shards, output)
    print_json(output=str(output), images=count) if as_json else print(f"merged {len(shards)} shards with {count} images into {output}")
