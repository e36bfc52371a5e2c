"""The same images through every engine: networks alone, single steps, final images.

A `Recording` is what one engine makes of the inputs by itself: its own anchor, conditions, latents
after every step, and images. A `Trial` adds what it makes of the reference's values: every step of
the reference's latent with the reference's conditions ("teacher-forced", so that errors do not pile
up), and the image decoded from the reference's last latent. Encoder and conditioner read the same
images and labels everywhere, so for them the recording is the network alone.

Axis 0 of latents over steps is time: entry 0 is the start, entry i the latent after step
`start_step - i + 1`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diver_trt.bundle import Bundle
from diver_trt.comparison.blocks import Probe
from diver_trt.comparison.inputs import Inputs
from diver_trt.method.process import Process
from diver_trt.method.schedule import Schedule
from diver_trt.pixels import Pixels, from_network, to_network
from diver_trt.recipe import Recipe
from diver_trt.runtime.conditions import class_conditions
from diver_trt.runtime.engine import Conditions, Denoiser, Engine, Latents, Session

Float32 = NDArray[np.float32]

_SHOWN = 1024
"""Conditions of every class that are compared."""


@dataclass(frozen=True, slots=True)
class Participant:
    """One engine with one bundle or model.

    Attributes:
        name: What reports call it: `"onnx fp16"`.
        precision: `"fp32"`, `"fp16"` or `"bf16"`.
        bundle: Its bundle; for the torch model, the one whose shapes it follows.
        process: The diffusion process that it follows, its bundle's or the model's own.
        open: Opens a session on it.
        probe: Opens what can be looked into: the torch model itself, or the bundle's graph.
    """

    name: str
    precision: str
    bundle: Bundle
    process: Process
    open: Callable[[], Session]
    probe: Callable[[], Probe]

    def schedule(self, recipe: Recipe) -> Schedule:
        """Return its process under a recipe."""
        return Schedule(self.process, recipe, self.bundle.layout)


@dataclass(frozen=True, slots=True)
class Recording:
    """What an engine makes of the inputs by itself.

    Attributes:
        anchor: z_0 of every image, [n, c, h, w] float32.
        conditions: By label of the inputs, null included, those of every step, [start_step, M] in
            the engine's type.
        classes: The first of the conditions of every label that the model has, null included, at
            one time, [classes + 1, P] float32.
        latents: The start and the latent after every step, [start_step + 1, n, c, h, w] float32.
        final: The latent that a whole run ends with, [n, c, h, w] float32: of a replayed graph,
            where `latents` are of steps alone.
        decoded: What its decoder makes of `final`, [n, 3, H, W] float32.
    """

    anchor: Latents
    conditions: Mapping[int, Conditions]
    classes: Float32
    latents: Float32
    final: Latents
    decoded: Float32

    @property
    def images(self) -> list[Pixels]:
        """The final images, each [H, W, 3] uint8; NaN becomes black."""
        return [from_network(np.nan_to_num(image, nan=-1.0)) for image in self.decoded]


@dataclass(frozen=True, slots=True)
class Trial:
    """An engine compared with a reference.

    Attributes:
        recording: What it makes of the inputs by itself.
        teacher_forced: What it makes of the reference's latent in every step, [start_step, n, c, h,
            w] float32.
        decoded_reference: What its decoder makes of the reference's last latent, [n, 3, H, W]
            float32.
    """

    recording: Recording
    teacher_forced: Float32
    decoded_reference: Float32


@dataclass(frozen=True, slots=True)
class Reference:
    """The engine that others are compared with.

    Attributes:
        participant: The engine, its bundle or model.
        recording: What it made of the inputs.
        probe: A look into its denoiser.
    """

    participant: Participant
    recording: Recording
    probe: Probe

    def condition_pair(self, inputs: Inputs, k: int, images: list[int]) -> Float32:
        """Return the conditions of step k for some images, [2, n, M]: class, then null class."""
        tables, null = self.recording.conditions, self.participant.bundle.null_label
        by_class = [tables[inputs.labels[image]][k - 1] for image in images]
        return np.stack([np.stack(by_class), np.stack([tables[null][k - 1]] * len(by_class))])


def record(
    participant: Participant,
    inputs: Inputs,
    recipe: Recipe,
    on_step: Callable[[], None] = lambda: None,
) -> Recording:
    """Run an engine by itself; `on_step` is called after every step of every batch."""
    recording, _ = _run(participant, inputs, recipe, None, on_step)
    return recording


def try_against(
    reference: Recording,
    participant: Participant,
    inputs: Inputs,
    recipe: Recipe,
    on_step: Callable[[], None] = lambda: None,
) -> Trial:
    """Run an engine by itself and on the reference's values.

    `on_step` is called after every step of every batch, twice in all.
    """
    recording, forced = _run(participant, inputs, recipe, reference, on_step)
    assert forced is not None, "there was a reference"
    return Trial(recording, *forced)


def steps_in(participants: int, inputs: Inputs, recipe: Recipe, batch: int) -> int:
    """Return how often `on_step` is called for a reference and the engines compared with it."""
    return (2 * participants - 1) * recipe.start_step * -(-len(inputs) // batch)


def _run(
    participant: Participant,
    inputs: Inputs,
    recipe: Recipe,
    reference: Recording | None,
    on_step: Callable[[], None],
) -> tuple[Recording, tuple[Float32, Float32] | None]:
    """Open one network at a time, so that the largest one alone decides the memory."""
    session = participant.open()
    try:
        anchor = _encode(session, inputs)
        schedule = participant.schedule(recipe)
        conditions, classes = _condition(session, participant, inputs, schedule.times)
        start = schedule.start(anchor, inputs.noise)
        denoiser = session.open_denoiser(schedule.table, recipe.start_step)
        try:
            batches = _batches(session, participant, inputs, start, anchor, conditions)
            free = [_free_run(denoiser, batch, session.batch, on_step) for batch in batches]
            latents, final = (
                np.concatenate([path for path, _ in free], axis=1),
                np.concatenate([last for _, last in free]),
            )
            forced = None
            if reference is not None:
                given = _in_type(reference.conditions, conditions)
                batches = _batches(
                    session, participant, inputs, reference.latents, reference.anchor, given
                )
                forced = np.concatenate(
                    [_forced_steps(denoiser, batch, session.batch, on_step) for batch in batches],
                    axis=1,
                )
        finally:
            denoiser.close()
        decoded = _decode(session, final)
        recording = Recording(anchor, conditions, classes, latents, final, decoded)
        return recording, None if reference is None or forced is None else (
            forced,
            _decode(session, reference.final),
        )
    finally:
        session.close()


@dataclass(frozen=True, slots=True)
class _Batch:
    """Some of the images: the latent of each, its anchor and its conditions."""

    latents: Float32
    anchor: Latents
    tables: list[Conditions]
    null: Conditions


def _batches(
    session: Session,
    participant: Participant,
    inputs: Inputs,
    latents: Float32,
    anchor: Latents,
    conditions: Mapping[int, Conditions],
) -> Iterator[_Batch]:
    null = conditions[participant.bundle.null_label]
    for first in range(0, len(inputs), session.batch):
        part = slice(first, first + session.batch)
        tables = [conditions[label] for label in inputs.labels[part]]
        yield _Batch(latents[..., part, :, :, :], anchor[part], tables, null)


def _encode(session: Session, inputs: Inputs) -> Latents:
    encoder = session.open("encoder")
    try:
        latents = []
        for image in inputs.images:
            encoder.write("image", to_network(image)[None])
            encoder.run()
            latents.append(encoder.read("latent").astype(np.float32))
        return np.concatenate(latents)
    finally:
        encoder.close()


def _condition(
    session: Session, participant: Participant, inputs: Inputs, times: Float32
) -> tuple[dict[int, Conditions], Float32]:
    conditioner = session.open("conditioner")
    try:
        labels = sorted({*inputs.labels, participant.bundle.null_label})
        conditions = {label: class_conditions(conditioner, times, label) for label in labels}
        return conditions, _every_class(conditioner, participant.bundle, times[-1])
    finally:
        conditioner.close()


def _every_class(conditioner: Engine, bundle: Bundle, time: np.float32) -> Float32:
    """Return the first `P` conditions of every label, [classes + 1, P].

    A few of them show a whole row of the label table.
    """
    labels = np.arange(bundle.null_label + 1)
    rows = []
    for first in range(0, len(labels), conditioner.batch):
        part = labels[first : first + conditioner.batch]
        conditioner.write("time", np.full(conditioner.batch, time))
        conditioner.write("label", np.resize(part, conditioner.batch))
        conditioner.run()
        rows.append(conditioner.read("condition")[: len(part), :_SHOWN].astype(np.float32))
    return np.concatenate(rows)


def _decode(session: Session, latents: Latents) -> Float32:
    decoder = session.open("decoder")
    try:
        images = []
        for latent in latents:
            decoder.write("latent", latent[None])
            decoder.run()
            images.append(decoder.read("image").astype(np.float32))
        return np.concatenate(images)
    finally:
        decoder.close()


def _free_run(
    denoiser: Denoiser, batch: _Batch, size: int, on_step: Callable[[], None]
) -> tuple[Float32, Latents]:
    """Return the latents of all steps, [start_step + 1, n, c, h, w], and the last, [n, c, h, w].

    A replayed graph only shows its end, so its path is made of steps alone, each on the last one's
    result.
    """
    count = len(batch.anchor)
    _load(denoiser, batch, batch.latents, size)
    path = [batch.latents]
    steps = []
    for k in denoiser.run():
        steps.append(k)
        path.append(denoiser.latent()[:count].copy())
        on_step()
    final = path[-1]
    if not denoiser.stepwise:
        path = [batch.latents]
        for k in steps:
            path.append(denoiser.step(k, _padded(path[-1], size))[:count].copy())
    return np.stack(path), final


def _forced_steps(
    denoiser: Denoiser, batch: _Batch, size: int, on_step: Callable[[], None]
) -> Float32:
    """Return each step's result on the reference's latent, [start_step, n, c, h, w]."""
    count, steps = len(batch.anchor), len(batch.latents) - 1
    _load(denoiser, batch, batch.latents[0], size)
    results = []
    for done in range(steps):
        results.append(
            denoiser.step(steps - done, _padded(batch.latents[done], size))[:count].copy()
        )
        on_step()
    return np.stack(results)


def _load(denoiser: Denoiser, batch: _Batch, start: Latents, size: int) -> None:
    denoiser.load(_padded(start, size), _padded(batch.anchor, size), batch.tables, batch.null)


def _padded(latents: Latents, size: int) -> Latents:
    """Fill a batch up with zeros to what the engine takes."""
    full = np.zeros((size, *latents.shape[1:]), np.float32)
    full[: len(latents)] = latents
    return full


def _in_type(
    given: Mapping[int, Conditions], own: Mapping[int, Conditions]
) -> dict[int, Conditions]:
    """Return the reference's conditions in the type that the engine reads."""
    return {label: table.astype(own[label].dtype) for label, table in given.items()}
