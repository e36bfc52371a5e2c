"""`huggingface`: a folder that `datasets.load_dataset` reads, with labels and class names."""

from __future__ import annotations

import json
from collections import Counter

from diver_trt.distilled.normalisation import Normalisation
from diver_trt.recovered.layouts.base import (
    INDEX_FOLDER,
    Layout,
    Written,
    by_index,
    class_name,
    write_soft_labels,
)

METADATA = "train/metadata.jsonl"
CARD = "README.md"


def write(written: Written, _: Normalisation | None) -> list[str]:
    """Write the metadata, the card and the soft labels."""
    labels = {entry["index"]: entry["label"] for entry in written.classes}
    with written.companion(METADATA) as file:
        for name, index in zip(written.files, written.indices, strict=True):
            row = {
                # Relative to the metadata file:
                # https://huggingface.co/docs/datasets/image_dataset#imagefolder
                "file_name": name.removeprefix("train/"),
                "label": index,
                "model_class": labels[index],
            }
            file.write(json.dumps(row).encode() + b"\n")
    with written.companion(CARD) as file:
        file.write(_card(_class_names(written)).encode())
    return [METADATA, CARD, *write_soft_labels(written)]


def _class_names(written: Written) -> list[str]:
    """Return a name for each index from 0 to the last one that occurs, without duplicates."""
    # `class_label` numbers its names from 0 without gaps, and refuses two that are equal:
    # https://huggingface.co/docs/datasets/package_reference/main_classes#datasets.ClassLabel
    named = {entry["index"]: class_name(entry) for entry in written.classes}
    names = [named.get(index, str(index)) for index in range(max(named) + 1)]
    count = Counter(names)
    return [name if count[name] == 1 else f"{name} ({index})" for index, name in enumerate(names)]


def _card(names: list[str]) -> str:
    lines = [
        "---",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        "    path: train/**",
        "  features:",
        "  - name: image",
        "    dtype: image",
        "  - name: label",
        "    dtype:",
        "      class_label:",
        "        names:",
        # Not in ASCII: JSON escapes an emoji as two surrogates, which YAML does not join.
        *(
            f"          '{index}': {json.dumps(name, ensure_ascii=False)}"
            for index, name in enumerate(names)
        ),
        "  - name: model_class",
        "    dtype: int64",
        "---",
        "Recovered with diver-trt; `manifest.json` records from what and how.",
        "",
    ]
    return "\n".join(lines)


HUGGINGFACE = Layout(
    name="huggingface",
    help="datasets.load_dataset",
    write=write,
    image_path=lambda index, number, wnid: f"train/{by_index(index, number, wnid)}",
    folder=f"train/{INDEX_FOLDER}",
    companions=(METADATA, CARD),
)
