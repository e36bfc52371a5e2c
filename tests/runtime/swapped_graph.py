"""Bundles whose graphs were changed after the export, and their hashes with them."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

from diver_trt.bundle import Bundle
from diver_trt.contract import NetworkName
from diver_trt.files import FileRecord
from tests.edited_json import json_file


def list_again(folder: Path, *networks: str) -> None:
    """Write the hashes of graphs that were changed into the manifest, as whoever did so can."""
    with json_file(folder / "bundle.json") as manifest:
        for network in networks:
            record = FileRecord.of(folder / f"{network}.onnx")
            manifest["networks"][network]["graph"] = asdict(record)


def with_another_graph(bundle: Bundle, network: NetworkName, folder: Path) -> Path:
    """Copy a bundle, and put another graph in a network's place."""
    shutil.copytree(bundle.path, folder)
    other = "decoder" if network == "encoder" else "encoder"
    shutil.copy(folder / f"{other}.onnx", folder / f"{network}.onnx")
    list_again(folder, network)
    return folder
