"""A bundle in which one network's graph is another network's, and its hash is right."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from diver_trt.bundle import Bundle, NetworkName
from diver_trt.files import FileRecord


def with_another_graph(bundle: Bundle, network: NetworkName, folder: Path) -> Path:
    """Copy a bundle, and put another graph in a network's place.

    Whoever swaps the files can write their hashes too.
    """
    shutil.copytree(bundle.path, folder)
    other = "decoder" if network == "encoder" else "encoder"
    shutil.copy(folder / f"{other}.onnx", folder / f"{network}.onnx")
    manifest = json.loads((folder / "bundle.json").read_text())
    record = FileRecord.of(folder / f"{network}.onnx")
    manifest["networks"][network]["graph"] = {
        "name": record.name,
        "size_bytes": record.size_bytes,
        "sha256": record.sha256,
    }
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return folder
