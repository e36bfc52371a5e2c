"""A bundle: one exported model in one directory, which is all that a device needs of it.

It holds `bundle.json` and four ONNX graphs, big ones with their weights in a file beside them;
`contract` describes their inputs and outputs.
"""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from diver_trt.contained_file import open_contained
from diver_trt.contract import NetworkName, Precision, contract
from diver_trt.documents import Document, Limits
from diver_trt.errors import BundleError, shown, shown_value
from diver_trt.files import FileRecord, stream_sha256
from diver_trt.graph_file import require_declared, require_listed_weights
from diver_trt.hub.name import HubName
from diver_trt.method.process import StoredProcess
from diver_trt.method.step import StepLayout
from diver_trt.progress import OnProgress
from diver_trt.strict_json import parse_json
from diver_trt.structs import GIVEN, OMITTED, Count, Invalid, Sha256, dump, whole
from diver_trt.tensors import TensorSpec, describe_all

# Other schemas are refused, never converted; docs/bundle.md states what each of them changed.
SCHEMA = 4
MANIFEST = "bundle.json"
LIMITS = Limits(8 * 1024**2, 1000)
"""Of `bundle.json`: 100,000 classes with names of 80 bytes.

A text is a name, and no file system allows one of more than 255 bytes.
"""
MAX_CLASSES = 100_000
MAX_SIDE = 4096
"""What a bundle may ask for; no known model comes near it."""

TimestepFrequencies = Literal["dit", "diffusers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """One ONNX graph of a bundle.

    Attributes:
        name: `"encoder"`, `"conditioner"`, `"denoiser"` or `"decoder"`; the key in `bundle.json`.
        graph: The `.onnx` file.
        weights: The file with the graph's external data, if it has one.
        inputs: Tensors that it reads, in the graph's order.
        outputs: Tensors that it writes, in the graph's order.
        parameters: Number of weights.
    """

    name: NetworkName = field(metadata=GIVEN)
    graph: FileRecord
    weights: FileRecord | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: Count

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """The graph and, where it has one, its external data."""
        return (self.graph,) if self.weights is None else (self.graph, self.weights)


Side = Annotated[int, whole(1, MAX_SIDE)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The model that a bundle was exported from.

    Attributes:
        base: The kind of base model, by its name in `diver_trt.models.BASES`.
        id: The model's name on the hub, or its directory.
        revision: Revision on the hub, if known.
        licence: Licence of the weights as the model card states it, if it does.
        weights_sha256: Hash of the float32 weights, in hex: the same in every precision.
    """

    base: str
    id: str
    revision: str | None
    licence: str | None
    weights_sha256: Sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """One exported model: the fields of `bundle.json`, and where they were read.

    Attributes:
        path: The bundle's directory; absolute, so that a process may change its folder.
        sha256: Hash of `bundle.json`, which holds the hash of every other file: the identity of the
            whole bundle.
        schema: Version of `bundle.json`.
        model: The model that was exported.
        precision: `"fp32"` (the reference), `"fp16"`, or int8 weights with all else in float32
            (`"int8"`) or in float16 (`"int8-fp16"`).
        image_size: Side of the images in pixels.
        latent_shape: `(c, h, w)`.
        scaling_factor: The VAE's factor, already inside encoder and decoder.
        num_classes: Number of classes; labels run from 0.
        null_label: Label of the null class of classifier-free guidance.
        class_names: Name per class, if the model has them.
        prompts: The prompt of each class, then the null class's, if the model reads a text.
        process: The diffusion process that it was trained on.
        learned_variance: Whether the model predicts its variance.
        guided_channels: How many latent channels, from the first, the model's own sampler guides.
        timestep_frequencies: `"dit"` or `"diffusers"`: the sinusoids the weights were trained with;
            None if the model has no such choice.
        places: Where `compare` looks into the denoiser: the name of each layer normalisation, in
            order.
        networks: The four graphs by name.
        exported_with: Versions of the packages that wrote it.
    """

    path: Path = field(metadata=GIVEN)
    sha256: str = field(metadata=GIVEN)
    schema: int = SCHEMA
    model: Model
    precision: Precision
    image_size: Side
    latent_shape: tuple[Side, Side, Side]
    scaling_factor: float
    num_classes: Annotated[int, whole(1, MAX_CLASSES)]
    null_label: int
    class_names: tuple[str, ...] | None
    process: StoredProcess
    learned_variance: bool
    guided_channels: Count
    timestep_frequencies: TimestepFrequencies | None
    places: tuple[str, ...]
    networks: Mapping[NetworkName, Network]
    exported_with: Mapping[str, str]
    # Omitted when empty, so that other bundles are written as before.
    prompts: tuple[str, ...] | None = field(default=None, metadata=OMITTED)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        on_note: Callable[[str], None] = lambda _: None,
        on_progress: OnProgress = lambda *_: None,
    ) -> Bundle:
        """Read a bundle's manifest and check that its files are there with the right sizes.

        Contents are hashed later, by `verified`, before a network is loaded.

        Args:
            path: The bundle's directory, or its name on the Hugging Face hub,
                `hf://OWNER/NAME[@REVISION]`: it is then downloaded, unless it has been already.
            on_note: Receives notes, one line of text each.
            on_progress: Receives how much of it is there: a phase, the MB done, and all its MB.

        Raises:
            BundleError: No bundle is there, a file is missing or of another size, or the manifest
                is not of this schema.
            UsageError: If it begins with `hf://`, but is not a name on the hub.
            OutputError: If the folder of a bundle from the hub cannot be written.
            MissingExtraError: If the hub's client is needed and not installed.
        """
        if not isinstance(path, (str, os.PathLike)):
            raise BundleError(
                f"the path of the bundle is {shown_value(path)}; expected a text or a Path"
            )
        if name := HubName.parse(path):
            # Imported here, because only a name on the hub needs it.
            from diver_trt.hub.download import Listing, downloaded

            listing = Listing(
                MANIFEST,
                SCHEMA,
                LIMITS,
                lambda document: document.load(cls, path=Path(), sha256="").files,
            )
            path = downloaded(name, listing, on_note, on_progress)
        # Path("") would be the current folder.
        if not os.fspath(path):
            raise BundleError(
                "the path of the bundle is empty; give its folder, or hf://OWNER/NAME"
            )
        path = Path(path)
        manifest, export = path / MANIFEST, f"diver-trt export MODEL {shlex.quote(str(path))}"
        if not os.path.lexists(manifest):
            raise BundleError(
                f"{path}: not a bundle (it has no {MANIFEST}); make one with `{export}`"
            )
        document = Document.read(manifest, BundleError, LIMITS)
        # Before the fields are read: those of another schema would be refused one by one, without
        # the command that renews the bundle.
        document.require_schema(SCHEMA, f"remove the folder and export the model again: {export}")
        bundle = document.load(cls, path=path.absolute(), sha256=document.sha256)
        for record in bundle.files:
            _open_checked(path, record).close()
        return bundle

    def write(self) -> None:
        """Write `bundle.json` into the bundle's directory.

        Raises:
            BundleError: If `open` would refuse what is written.
        """
        text = json.dumps(dump(self), indent=1, ensure_ascii=False) + "\n"
        where = str(self.path / MANIFEST)
        # Read back first, so that nothing is written which `open` refuses.
        document = Document(parse_json(text, where, BundleError), where, BundleError, LIMITS)
        document.load(Bundle, path=self.path, sha256="")
        (self.path / MANIFEST).write_text(text, encoding="utf-8")

    def check(self) -> None:
        """Compare the fields with each other, when they have been read.

        Raises:
            Invalid: If they contradict each other.
        """
        self.check_facts()
        self._check_contract()

    def check_facts(self) -> None:
        """Compare the fields that are known before the networks.

        Raises:
            Invalid: If they contradict each other.
        """
        # Each side is within MAX_SIDE, but three such sides are a buffer of 275 GB per image.
        if (values := math.prod(self.latent_shape)) > (most := 3 * self.image_size**2):
            raise Invalid(
                f"found {values:,} values, expected at most {most:,}, as many as an image of the "
                "model has",
                "latent_shape",
            )
        if self.guided_channels > self.latent_shape[0]:
            raise Invalid(
                f"found {self.guided_channels}, expected at most {self.latent_shape[0]}, the "
                "latent's channels",
                "guided_channels",
            )
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise Invalid(
                f"found {len(self.class_names)} names, expected {self.num_classes}", "class_names"
            )
        if self.prompts is not None and len(self.prompts) != self.num_classes + 1:
            raise Invalid(
                f"found {len(self.prompts)} prompts, expected {self.num_classes + 1}: one for each "
                "class, and the null class's",
                "prompts",
            )
        # As in DiT's label table, whose last row is the null class (LabelEmbedder):
        # https://github.com/facebookresearch/DiT/blob/main/models.py
        if self.null_label != self.num_classes:
            raise Invalid(
                f"found {self.null_label}, expected {self.num_classes}: the null class comes right "
                "after the classes",
                "null_label",
            )

    def _check_contract(self) -> None:
        # Only the width M of a condition is the model's own choice: the other shapes follow from
        # fields of the manifest.
        conditions = self.networks["conditioner"].outputs
        width = conditions[0].shape[-1:] if len(conditions) == 1 else ()
        if not width or not isinstance(width[0], int):
            raise Invalid("expected one output, condition [m, M]", "networks", "conditioner")
        expected = contract(
            self.image_size, self.latent_shape, self.layout, width[0], self.precision
        )
        for name, network in self.networks.items():
            for direction, found, wanted in zip(
                ("reads", "writes"), (network.inputs, network.outputs), expected[name], strict=True
            ):
                if found != wanted:
                    raise Invalid(
                        f"{direction} {shown(describe_all(found))}, but the rest of the manifest "
                        f"requires {describe_all(wanted)}",
                        "networks",
                        name,
                    )

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """Every file of the bundle but `bundle.json`, network by network."""
        return tuple(record for network in self.networks.values() for record in network.files)

    @property
    def model_id(self) -> str:
        """The model's name on the hub, or its directory."""
        # By the name that `distilled.class_map.ModelClasses` asks for.
        return self.model.id

    @property
    def layout(self) -> StepLayout:
        """Columns of the step table for this model."""
        return StepLayout(self.latent_shape[0], self.learned_variance, self.guided_channels)

    @property
    def condition_pair(self) -> TensorSpec:
        """The denoiser's conditions, [2, n, M]: of the class, then of the null class."""
        (pair,) = (spec for spec in self.networks["denoiser"].inputs if spec.name == "condition")
        return pair

    @property
    def condition_width(self) -> int:
        """Number of values `M` of a condition."""
        width = self.networks["conditioner"].outputs[0].shape[1]
        assert isinstance(width, int), "checked when the bundle was opened"
        return width

    def verified(self, name: NetworkName) -> Path:
        """Return the path of a network's graph after verifying its files.

        All its files are hashed, and the graph is checked not to read any others.

        Raises:
            BundleError: If a file has changed since the export, the graph or a link would have
                another file read, or the graph declares other inputs or outputs than the manifest.
        """
        network = self.networks[name]
        for record in network.files:
            with _open_checked(self.path, record) as file:
                found = stream_sha256(file)
            if found != record.sha256:
                raise BundleError(
                    f"{self.path / record.name}: SHA-256 is {found[:12]}…, {MANIFEST} lists "
                    f"{record.sha256[:12]}…: the file has changed since the export. Restore it, "
                    "or export the model again; if the bundle is from the hub, delete the file and "
                    "run again."
                )
        graph = self.path / network.graph.name
        # Hashes show that the files are those of the manifest, not what is in them: see graph_file.
        require_listed_weights(graph, network.weights.name if network.weights else None)
        require_declared(graph, network.inputs, network.outputs)
        return graph


def _open_checked(folder: Path, record: FileRecord) -> BinaryIO:
    """Open a regular file inside the bundle that has the right size."""
    path = folder / record.name
    try:
        file = open_contained(path, folder, BundleError, "the bundle")
    except FileNotFoundError as cause:
        raise BundleError(
            f"{path}: missing; the bundle is incomplete, export the model again"
        ) from cause
    except OSError as cause:
        raise BundleError(f"{path}: cannot be read ({cause.strerror or cause})") from cause
    # Of the open file, since its path may name another one by now.
    if (size := os.fstat(file.fileno()).st_size) != record.size_bytes:
        file.close()
        raise BundleError(
            f"{path}: {size:,} bytes, {MANIFEST} lists {record.size_bytes:,}; the bundle is "
            "damaged, export the model again"
        )
    return file
