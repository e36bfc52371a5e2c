"""`diver-trt convert`: from a method's tensors to one self-describing file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diver_trt.cli.console import print_json, say
from diver_trt.cli.options import Collage, Format, Json, Normalisation


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="A method's tensors: a .pt file or its folder.")
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="A new .npz or .safetensors file.")
    ],
    source_format: Format = None,
    normalisation: Normalisation = None,
    collage: Collage = None,
    zca_reference: Annotated[
        Path | None,
        typer.Option(
            help="Training images, to undo a ZCA whitening whose transform is not in the file, or "
            "FRePo's own transform.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Convert distilled tensors to one self-describing file, undoing ZCA whitening if asked to."""
    from diver_trt.distilled.companion import options_beside
    from diver_trt.distilled.conversion.reading import read_to_convert
    from diver_trt.distilled.conversion.writing import write_converted
    from diver_trt.distilled.options import ReadOptions
    from diver_trt.distilled.subset_names import subset_of_path
    from diver_trt.distilled.tensor_files import find_one_tensor_file

    given = ReadOptions(method=source_format, normalisation=normalisation, collage=collage)
    file = find_one_tensor_file(source)
    options = options_beside(file, given)
    converted = read_to_convert(file, options, zca_reference)
    tensors = converted.tensors
    factor = options.collage or tensors.collage or tensors.format.default_collage(tensors.side)
    classes = tensors.classes or options.classes or subset_of_path(tensors.path)
    write_converted(converted, factor, classes, output)
    whitening = converted.whitened.value if converted.whitened else None
    facts = {
        "format": tensors.format.name,
        "normalisation": tensors.normalisation.name,
        "whitening": whitening,
        "unwhitened": converted.unwhitened,
        "collage": factor,
        "classes": classes,
        "images": len(tensors.images),
    }
    if as_json:
        print_json(output=str(output), source=str(tensors.path), **facts)
        return
    for note in tensors.notes:
        say(f"note: {note}")
    if whitening:
        say(
            f"note: the values are ZCA-whitened ({whitening}) and written as they are; to recover "
            "them, convert them with --zca-reference"
        )
    found = (
        f"{len(tensors.images)} images, {tensors.format.title}, "
        f"normalisation {tensors.normalisation.name}, collage {factor}"
    )
    print(f"wrote {output}: {found}{f', classes as in {classes}' if classes else ''}")
