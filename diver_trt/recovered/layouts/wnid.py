"""`wnid`: a folder per ImageNet class, named by its wnid."""

from __future__ import annotations

from diver_trt.errors import OutputError
from diver_trt.recovered.layouts.base import Layout, write_soft_labels


def by_wnid(index: int, number: int, wnid: str | None) -> str:  # noqa: ARG001
    """Return the path of an image in the folder of its ImageNet class.

    Raises:
        OutputError: If the class has no wnid.
    """
    if wnid is None:
        raise OutputError(
            "--layout wnid: the model's classes are not ImageNet's, so they have no wnids; "
            "choose --layout index"
        )
    return f"{wnid}/{number:05d}.png"


WNID = Layout(
    name="wnid",
    help="Minimax, IGD, MGD3",
    write=write_soft_labels,
    image_path=by_wnid,
    folder="n[0-9]{8}",
    shares_folders=True,
)
