"""The same images through every engine: networks alone, single steps, final images.

A `Recording` holds an engine's own run on the inputs: its anchor, conditions, latents after every
step, and images. A `Trial` adds its outputs for the reference's values: every step from the
reference's latent under the reference's conditions ("teacher-forced", so that errors do not
accumulate), and the image decoded from the reference's last latent. The encoder and the conditioner
read the same images and labels in every engine, so their recording already shows them alone.

Axis 0 of latents over steps is time: entry 0 is the start, entry i the latent after step
`start_step - i + 1`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diver_trt.bundle import Bundle
from diver_trt.comparison.blocks import Probe
from diver_trt.comparison.inputs import Inputs
from diver_trt.files import FileRecord
from diver_trt.method.schedule import Schedule
from diver_trt.pixels import Pixels, from_network
from diver_trt.recipe import Recipe
from diver_trt.runtime.conditions import class_conditions
from diver_trt.runtime.engine import Conditions, Denoiser, Engine, Latents, Session
from diver_trt.runtime.vae import encoded

Float32 = NDArray[np.float32]

_COMPARED = 1024
"""Conditions of each class that are compared, at most. A wrong row of the label table shows in many
of them, and all 195,840 of DiT-XL/2 would take 784 MB for its 1,001 labels.
"""


@dataclass(frozen=True, slots=True)
class Participant:
    """One engine with one bundle or model.

    Attributes:
        name: What reports call it: `"onnx fp16"`.
        precision: `"fp32"`, `"fp16"` or `"bf16"`.
        bundle: Its bundle; for the torch model, the bundle that gives shapes and process.
        open: Opens a session on it.
        probe: Opens its denoiser for reading intermediate values.
        batch: Images per batch of its sessions.
        probed: The files that `probe` reads; empty for the torch model.
    """

    name: str
    precision: str
    bundle: Bundle
    open: Callable[[], Session]
    probe: Callable[[], Probe]
    batch: int
    probed: tuple[FileRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class Recording:
    """An engine's own run on the inputs.

    Attributes:
        anchor: z_0 of every image, [n, c, h, w] float32.
        conditions: By label of the inputs and the null label: the conditions of every step,
            [start_step, M] in the engine's type.
        classes: P of the conditions of every label of the model, the null label last, at the first
            step's time, [classes + 1, P] float32.
        latents: The start and the latent after every step, [start_step + 1, n, c, h, w] float32.
        final: The last latent of a whole run, [n, c, h, w] float32. It differs from `latents[-1]`
            if the engine replays a captured graph: `latents` then come from single steps.
        decoded: The decoder's output for `final`, [n, 3, H, W] float32.
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
        # An image that overflows must still be shown; the 8-bit value of NaN is undefined.
        return [from_network(np.nan_to_num(image, nan=-1.0)) for image in self.decoded]


@dataclass(frozen=True, slots=True)
class Trial:
    """An engine compared with a reference.

    Attributes:
        recording: Its own run on the inputs.
        teacher_forced: The next latent of every step from the reference's latent, [start_step, n,
            c, h, w] float32.
        decoded_reference: Its decoder's output for the reference's last latent, [n, 3, H, W]
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
        recording: Its own run on the inputs.
        probe: Its denoiser, for reading intermediate values.
    """

    participant: Participant
    recording: Recording
    probe: Probe

    def condition_pair(self, inputs: Inputs, k: int, images: list[int]) -> Float32:
        """Return the conditions of step k for some images, [2, n, M]: class, then null class."""
        # Row k - 1 is step k: tables run from step 1, the last, to the noisiest.
        tables, null = self.recording.conditions, self.participant.bundle.null_label
        by_class = [tables[inputs.labels[image]][k - 1] for image in images]
        return np.stack([np.stack(by_class), np.stack([tables[null][k - 1]] * len(by_class))])


def record(
    participant: Participant,
    inputs: Inputs,
    recipe: Recipe,
    on_step: Callable[[], None] = lambda: None,
) -> Recording:
    """Run an engine on the inputs; `on_step` is called after every step of every batch."""
    recording, _ = _run(participant, inputs, recipe, None, on_step)
    return recording


def try_against(
    reference: Recording,
    participant: Participant,
    inputs: Inputs,
    recipe: Recipe,
    on_step: Callable[[], None] = lambda: None,
) -> Trial:
    """Run an engine on the inputs and on the reference's values.

    `on_step` is called after every step of every batch, in both runs.
    """
    recording, forced = _run(participant, inputs, recipe, reference, on_step)
    assert forced is not None, "there was a reference"
    return Trial(recording, *forced)


def steps_in(
    reference: Participant, others: Sequence[Participant], inputs: Inputs, recipe: Recipe
) -> int:
    """Return how often `on_step` is called for a reference and the engines compared with it."""
    # The reference runs once, every other engine twice.
    runs = [reference, *others, *others]
    return recipe.start_step * sum(-(-len(inputs) // one.batch) for one in runs)


def _run(
    participant: Participant,
    inputs: Inputs,
    recipe: Recipe,
    reference: Recording | None,
    on_step: Callable[[], None],
) -> tuple[Recording, tuple[Float32, Float32] | None]:
    """Return an engine's recording and, given a reference, its forced steps and decoded images."""
    bundle = participant.bundle
    # One network is open at a time, so that the largest one alone decides the memory.
    with closing(participant.open()) as session:
        # Encode
        with closing(session.open("encoder")) as encoder:
            anchor = encoded(encoder, inputs.images, bundle.image_size)
        # Condition; the start is each engine's own, from its own anchor
        schedule = Schedule(bundle.process, recipe, bundle.layout)
        conditions, classes = _condition(session, participant, inputs, schedule.times)
        start = schedule.start(anchor, inputs.noise)
        with closing(session.open_denoiser(schedule.table, recipe.start_step)) as denoiser:
            # The engine's own run
            batches = _batches(session, participant, inputs, start, anchor, conditions)
            free = [_free_run(denoiser, batch, session.batch, on_step) for batch in batches]
            # Joined along the images: axis 1 of latents over steps, whose axis 0 is time.
            latents, final = (
                np.concatenate([path for path, _ in free], axis=1),
                np.concatenate([last for _, last in free]),
            )
            forced = None
            if reference is not None:
                # An engine in fp16 reads float16 conditions; that rounding is part of its error.
                given = _in_type(reference.conditions, conditions)
                batches = _batches(
                    session, participant, inputs, reference.latents, reference.anchor, given
                )
                forced = np.concatenate(
                    [_forced_steps(denoiser, batch, session.batch, on_step) for batch in batches],
                    axis=1,
                )
        # Decode, its own latents and the reference's
        decoded = _decode(session, final)
        recording = Recording(anchor, conditions, classes, latents, final, decoded)
        if reference is None or forced is None:
            return recording, None
        return recording, (forced, _decode(session, reference.final))


@dataclass(frozen=True, slots=True)
class _Batch:
    """Some of the images, with latents, anchors, noise and conditions."""

    latents: Float32
    anchor: Latents
    noise: Latents
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
        # The images are the fourth axis from the end, behind that of the steps where there is one.
        yield _Batch(latents[..., part, :, :, :], anchor[part], inputs.noise[part], tables, null)


def _condition(
    session: Session, participant: Participant, inputs: Inputs, times: Float32
) -> tuple[dict[int, Conditions], Float32]:
    with closing(session.open("conditioner")) as conditioner:
        labels = sorted({*inputs.labels, participant.bundle.null_label})
        conditions = {label: class_conditions(conditioner, times, label) for label in labels}
        return conditions, every_class(conditioner, participant.bundle, times[-1])


def every_class(conditioner: Engine, bundle: Bundle, time: np.float32) -> Float32:
    """Return P of the conditions of every label, the null label last, [classes + 1, P] float32."""
    labels = np.arange(bundle.null_label + 1, dtype=np.int64)  # on Windows int32 before numpy 2
    rows = []
    for first in range(0, len(labels), conditioner.batch):
        part = labels[first : first + conditioner.batch]
        conditioner.write("time", np.full(conditioner.batch, time))
        # np.resize repeats the labels until the batch is full.
        conditioner.write("label", np.resize(part, conditioner.batch))
        conditioner.run()
        condition = conditioner.read("condition")[: len(part)]
        # From all over the condition: prompts that begin alike have the same states of their first
        # tokens, since CLIP's attention is causal.
        stride = -(-condition.shape[1] // _COMPARED)
        rows.append(condition[:, ::stride].astype(np.float32))
    return np.concatenate(rows)


def _decode(session: Session, latents: Latents) -> Float32:
    with closing(session.open("decoder")) as decoder:
        images = []
        # One at a time, as in a recovery: on a GPU the activations of several would be the largest
        # thing there.
        for latent in latents:
            decoder.write("latent", latent[None])
            decoder.run()
            images.append(decoder.read("image").astype(np.float32))
        return np.concatenate(images)


def _free_run(
    denoiser: Denoiser, batch: _Batch, size: int, on_step: Callable[[], None]
) -> tuple[Float32, Latents]:
    """Return the latents of all steps, [start_step + 1, n, c, h, w], and the last, [n, c, h, w]."""
    count = len(batch.anchor)
    _load(denoiser, batch, batch.latents, size)
    path = [batch.latents]
    steps = []
    for k in denoiser.run():
        steps.append(k)
        # Copied: engines reuse their output buffer in the next step.
        path.append(denoiser.latent()[:count].copy())
        on_step()
    final = path[-1]
    # A replayed graph only yields its last latent. The path is then made of single steps, each from
    # the latent before it.
    if not denoiser.stepwise:
        path = [batch.latents]
        for k in steps:
            path.append(denoiser.step(k, _padded(path[-1], size))[:count].copy())
    return np.stack(path), final


def _forced_steps(
    denoiser: Denoiser, batch: _Batch, size: int, on_step: Callable[[], None]
) -> Float32:
    """Return the next latent of each step from the reference's latent, [start_step, n, c, h, w]."""
    count, steps = len(batch.anchor), len(batch.latents) - 1
    _load(denoiser, batch, batch.latents[0], size)
    results = []
    for done in range(steps):
        results.append(
            # Entry 0 is the start, which the first step, number `steps`, reads.
            denoiser.step(steps - done, _padded(batch.latents[done], size))[:count].copy()
        )
        on_step()
    return np.stack(results)


def _load(denoiser: Denoiser, batch: _Batch, start: Latents, size: int) -> None:
    start, anchor, noise = (_padded(each, size) for each in (start, batch.anchor, batch.noise))
    denoiser.load(start, anchor, noise, batch.tables, batch.null)


def _padded(latents: Latents, size: int) -> Latents:
    """Fill a batch up with zeros to the engine's size."""
    full = np.zeros((size, *latents.shape[1:]), np.float32)
    full[: len(latents)] = latents
    return full


def _in_type(
    given: Mapping[int, Conditions], own: Mapping[int, Conditions]
) -> dict[int, Conditions]:
    """Return the reference's conditions in the engine's type."""
    return {label: table.astype(own[label].dtype) for label, table in given.items()}
