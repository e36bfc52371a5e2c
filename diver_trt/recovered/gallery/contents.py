"""What a gallery's page shows of a dataset: its settings, and a row for each image.

A row is kept as the JSON that the page holds, which takes a tenth of the memory of a manifest's
entry: a page may show 50,000 images, and is made on the device that recovered them.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diver_trt.manifest import open_recovered
from diver_trt.records import Manifest, position_of
from diver_trt.structs import dump


class Rows:
    """The images of a dataset, added in its order.

    Attributes:
        engines: How many images each engine recovered.
        left_out: How many images were left out.
        folders: The folder of each class's images within the output folder, by index.
        of_class: The rows of each class, by index, in JSON: `[number, source, file, engine]`, the
            engine by its place in `engines`; for an image that was left out
            `[number, source, null, reason]`.
    """

    def __init__(self) -> None:
        self.engines, self.left_out = Counter[str](), 0
        self.folders: dict[int, str] = {}
        self.of_class: defaultdict[int, list[str]] = defaultdict(list)

    @property
    def recovered(self) -> int:
        """How many images were recovered."""
        return self.engines.total()

    def add(self, entry: Mapping[str, Any]) -> None:
        """Add an image, from its entry in a journal or a manifest."""
        index, number = position_of(entry["key"])
        row = [number, entry["source"]]
        if "file" in entry:
            folder, _, name = entry["file"].rpartition("/")
            self.folders.setdefault(index, folder)
            self.engines[entry["engine"]] += 1
            # A Counter keeps the order in which engines came, which is that of the page's list.
            row += [name, list(self.engines).index(entry["engine"])]
        else:
            self.left_out += 1
            row += [None, entry["problem"]]
        self.of_class[index].append(json.dumps(row, separators=(",", ":")))


@dataclass(frozen=True, slots=True)
class Contents:
    """What a page shows of a dataset.

    Attributes:
        manifest: The dataset's, whose samples are not needed.
        rows: The images.
    """

    manifest: Manifest
    rows: Rows

    @classmethod
    def read(cls, root: Path) -> Contents:
        """Return the contents of a finished dataset from its manifest.

        Raises:
            DatasetError: If the manifest is damaged.
        """
        return cls.of(open_recovered(root).manifest)

    @classmethod
    def of(cls, manifest: Manifest) -> Contents:
        """Return the contents of a dataset with this manifest."""
        rows = Rows()
        # A page lists the images that were left out in their places among the others.
        entries = (*manifest.samples, *manifest.skipped)
        for entry in sorted(entries, key=lambda entry: position_of(entry.key)):
            rows.add(dump(entry))
        return cls(manifest, rows)
