"""Bundles whose graphs were changed after the export, and their hashes with them."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from diver_trt.bundle import Bundle, NetworkName
from diver_trt.files import FileRecord


def list_again(folder: Path, *networks: str) -> None:
    """Write the hashes of graphs that were changed into the manifest, as whoever did so can."""
    manifest = json.loads((folder / "bundle.json").read_text())
    for network in networks:
        record = FileRecord.of(folder / f"{network}.onnx")
        manifest["networks"][network]["graph"] = asdict(record)
    (folder / "bundle.json").write_text(json.dumps(manifest))


def with_another_graph(bundle: Bundle, network: NetworkName, folder: Path) -> Path:
    """Copy a bundle, and put another graph in a network's place."""
    shutil.copytree(bundle.path, folder)
    other = "decoder" if network == "encoder" else "encoder"
    shutil.copy(folder / f"{other}.onnx", folder / f"{network}.onnx")
    list_again(folder, network)
    return folder
