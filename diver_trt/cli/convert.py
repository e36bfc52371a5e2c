"""`diver-trt convert`: a recovered folder in another layout or size, or tensors as one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diver_trt.cli import completion
from diver_trt.cli.console import end_with_left_out, phases, print_json, say
from diver_trt.cli.options import Collage, Format, Gallery, Json, Normalisation, positive, refuse
from diver_trt.counted import counted
from diver_trt.errors import OutputError, printable

if TYPE_CHECKING:
    from diver_trt.distilled.options import ReadOptions

Source = Annotated[
    Path,
    typer.Argument(
        metavar="INPUT",
        help="The folder of a recovered dataset; or a method's tensors, a .pt file or its folder.",
    ),
]
Output = Annotated[
    Path,
    typer.Argument(
        metavar="OUTPUT",
        help="For a recovered dataset a new folder; for tensors a new .npz or .safetensors file.",
    ),
]
LayoutName = Annotated[
    str | None,
    typer.Option(
        help="For a recovered dataset: another layout, as for recover (default: as it is).",
        autocompletion=completion.layouts,
    ),
]
Size = Annotated[
    str,
    typer.Option(
        help="For a recovered dataset: another side of its images in pixels, such as 128.",
        autocompletion=completion.words("keep"),
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="For a recovered dataset: delete what an earlier run left in OUTPUT.",
    ),
]
ZcaReference = Annotated[
    Path | None,
    typer.Option(
        help="Training images, to undo a ZCA whitening whose transform is not in the file, or "
        "FRePo's own transform.",
    ),
]


def convert(
    source: Source,
    output: Output,
    layout: LayoutName = None,
    size: Size = "keep",
    source_format: Format = None,
    normalisation: Normalisation = None,
    collage: Collage = None,
    zca_reference: ZcaReference = None,
    gallery: Gallery = True,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a recovered dataset in another layout or size, or distilled tensors as one file.

    Nothing is recovered again. A file of tensors describes itself, without ZCA whitening if asked.
    """
    from diver_trt.distilled.conversion.writing import SUFFIXES
    from diver_trt.distilled.options import ReadOptions
    from diver_trt.recovered.convert import is_recovery

    side = None if size == "keep" else positive("--size", size)
    given = ReadOptions(method=source_format, normalisation=normalisation, collage=collage)
    if is_recovery(source):
        of_tensors = {
            "--format": source_format,
            "--normalisation": normalisation,
            "--collage": collage,
            "--zca-reference": zca_reference,
        }
        refuse(of_tensors, f"{source} is a recovered dataset, whose manifest states its format")
        if output.suffix.lower() in SUFFIXES:
            raise OutputError(
                f"{output}: is the name of a file, but a recovered dataset becomes a folder; "
                "choose another name"
            )
    else:
        of_recovered = {
            "--layout": layout,
            "--size": side,
            "--no-gallery": not gallery,
            "--overwrite": overwrite,
        }
        if source.is_file():
            refuse(of_recovered, f"{source} is a file of tensors")
        # With such an option, `_convert_recovered` reports that a folder is not a recovered one.
        if (layout, side, gallery, overwrite) == (None, None, True, False):
            _convert_tensors(source, output, given, zca_reference, as_json=as_json)
            return
    _convert_recovered(
        source, output, layout, side, gallery=gallery, overwrite=overwrite, as_json=as_json
    )


def _convert_recovered(
    source: Path,
    output: Path,
    layout: str | None,
    size: int | None,
    *,
    gallery: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    from diver_trt.manifest import unlisted_note
    from diver_trt.recovered.convert import convert_recovered

    with phases() as show:
        done = convert_recovered(
            source,
            output,
            layout=layout,
            size=size,
            gallery=gallery,
            overwrite=overwrite,
            on_progress=show,
        )
    if note := unlisted_note(output):
        say(f"warning: {note}")
    if done.drops_soft_labels:
        say(
            f"note: layout {done.layout} does not hold soft labels; those of "
            f"{printable(str(source))} are not in the new folder"
        )
    if as_json:
        print_json(
            output=str(output),
            source=str(source),
            layout=done.layout,
            size=done.size,
            images=done.images,
            skipped=done.skipped,
        )
    else:
        print(
            f"converted {counted(done.images, 'image')} into {printable(str(output))}: "
            f"layout {done.layout}, {done.size} px"
        )
    end_with_left_out(done.skipped, silent=as_json)


def _convert_tensors(
    source: Path, output: Path, given: ReadOptions, zca_reference: Path | None, *, as_json: bool
) -> None:
    from diver_trt.distilled.companion import options_beside
    from diver_trt.distilled.conversion.reading import read_to_convert
    from diver_trt.distilled.conversion.writing import write_converted
    from diver_trt.distilled.dataset import pixel_notes
    from diver_trt.distilled.source import StoredImages
    from diver_trt.distilled.tensor_files import find_one_tensor_file

    file = find_one_tensor_file(source)
    options = options_beside(file, given)
    tensors = read_to_convert(file, options, zca_reference)
    # What the user states, else what the file states, else what the method usually does.
    stated = options.collage or tensors.collage
    factor = stated or tensors.format.default_collage(min(tensors.size))
    notes = [*tensors.notes]
    # The new file states the factor, so that no later command doubts it. Whitened values show none.
    if not tensors.whitened:
        images = StoredImages(tensors.path, tensors.images, tensors.normalisation)
        notes += pixel_notes(images, factor, stated=stated is not None)
    # A subset that only the path names would be lost: the new file may lie anywhere.
    classes = options.classes or tensors.subset
    write_converted(tensors, factor, classes, output)
    whitening = tensors.whitened.value if tensors.whitened else None
    facts = {
        "format": tensors.format.name,
        "normalisation": tensors.normalisation.name,
        "whitening": whitening,
        "unwhitened": tensors.unwhitened,
        "collage": factor,
        "classes": classes,
        "images": len(tensors.images),
    }
    if whitening:
        notes.append(
            f"the values are ZCA-whitened ({whitening}) and written as they are; to recover them, "
            "convert them with --zca-reference"
        )
    for note in notes:
        say(f"note: {note}")
    if as_json:
        print_json(output=str(output), source=str(tensors.path), **facts)
        return
    found = (
        f"{counted(len(tensors.images), 'image')}, {tensors.format.title}, "
        f"normalisation {tensors.normalisation.name}, collage {factor}"
    )
    print(
        f"wrote {printable(str(output))}: {found}{f', classes as in {classes}' if classes else ''}"
    )
