"""`webdataset`: tar files that the `webdataset` package and Hugging Face's `datasets` stream.

The PNG files stay beside them, in folders by index. A sample is consecutive members of one tar:

    00003_00007.png              the file 00003/00007.png
    00003_00007.cls              the class's index in the dataset, as text
    00003_00007.json             the image's key, the class's number in the model, wnid and name
    00003_00007.soft_label.npy   logits, [classes] float32, if the distilled set had some

Readers split a name at its first dot, and some take a slash for a folder: a key has neither.
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import PurePath
from typing import Any

import numpy as np

from diver_trt.distilled.normalisation import Normalisation
from diver_trt.files import reported
from diver_trt.recovered.layouts.base import (
    Layout,
    Numbered,
    Written,
    class_name,
    write_header,
    write_soft_labels,
)

# Few images, because a loader's workers divide the tars among themselves, and the package refuses
# to run with fewer tars than workers. At 256 pixels, 100 images take at most 20 MB.
TARS = Numbered("train-", ".tar", images=100)


def write(written: Written, _: Normalisation | None) -> list[str]:
    """Write the tar files and the soft labels, and delete surplus tar files of an earlier run."""
    order, names = _dealt(written), TARS.names(len(written.files))
    classes = {entry["index"]: entry for entry in written.classes}
    for number, name in enumerate(names):
        # Sizes differ by one image at most, so that workers get about equally many.
        part = order[len(order) * number // len(names) : len(order) * (number + 1) // len(names)]
        with (
            written.companion(name) as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for position in part:
                entry = classes[written.indices[position]]
                for member, data in _members(written, position, entry):
                    _add(tar, member, data)
    _delete_from(written, len(names))
    return [*names, *write_soft_labels(written)]


def _dealt(written: Written) -> list[int]:
    """Return the positions of all images: the first of each class, the second of each, and so on.

    Loaders shuffle within a buffer that is smaller than many sets: in the order of classes, it
    would give batches of few classes.
    """
    seen, rounds = Counter[int](), []
    for index in written.indices:
        rounds.append(seen[index])
        seen[index] += 1
    return sorted(range(len(rounds)), key=rounds.__getitem__)


def _members(
    written: Written, position: int, entry: Mapping[str, Any]
) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of each member of a sample."""
    file = written.root / written.files[position]
    key = PurePath(written.files[position]).with_suffix("").as_posix()
    name = key.replace("/", "_")
    with reported(file, "read"):
        yield f"{name}.png", file.read_bytes()
    yield f"{name}.cls", str(entry["index"]).encode()
    facts = {
        "key": key,
        "label": entry["index"],
        "model_class": entry["label"],
        "wnid": entry["wnid"],
        "name": class_name(entry),
    }
    yield f"{name}.json", json.dumps(facts).encode()
    # In the sample too, since the tars have another order than the rows of `soft_labels.npy`.
    if written.soft_labels is not None:
        row = np.asarray(written.soft_labels(position), np.float32)
        array = BytesIO()
        write_header(array, row.shape)
        yield f"{name}.soft_label.npy", array.getvalue() + row.tobytes()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    # TarInfo's defaults are the owner 0, no names of users and the time 0: the same bytes anywhere.
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, BytesIO(data))


def _delete_from(written: Written, number: int) -> None:
    """Delete the tar files from a number on, which an earlier run with more images has left."""
    while (path := written.root / TARS.name(number)).is_file():
        with reported(path, "deleted"):
            path.unlink()
        number += 1


WEBDATASET = Layout(
    name="webdataset",
    help="webdataset, datasets.load_dataset",
    write=write,
    numbered=TARS,
)
