"""What an fp16 bundle keeps in float32: the plans that were tried, with their error and memory.

    python -m benchmarks.precision --digits
    python -m benchmarks.real_size --folder /tmp/real-size
    python -m benchmarks.precision --folder /tmp/real-size

The first command runs the ten distilled digits under every plan, in torch on the CPU, which rounds
to float16 after every operation, and compares them with torch in float32 as `diver-trt compare`
does. The last one takes DiT-XL/2-256 with random weights: one step inside the semantic window in
ONNX Runtime and torch, the VAE in torch, and the memory of both as TensorRT-RTX's compiler reports
it for SM86. Nothing is run on a GPU. Prints the tables of `docs/precision.md`.
"""

from __future__ import annotations

import argparse
import copy
import gc
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel
from torch import Tensor, nn

from benchmarks.compiling import compile_alone
from benchmarks.heading import heading
from diver_trt.bundle import Bundle
from diver_trt.comparison.figures import mean_psnr
from diver_trt.comparison.inputs import distilled_inputs
from diver_trt.comparison.lineup import torch_participant
from diver_trt.comparison.metrics import difference
from diver_trt.comparison.runs import Participant, Reference, record
from diver_trt.comparison.torch_engine import TorchSession
from diver_trt.comparison.verdict import Comparison, compare_engine
from diver_trt.contract import NetworkName, contract
from diver_trt.digits import default_bundle
from diver_trt.export.onnx_graph import graph_from_network
from diver_trt.method.schedule import Schedule
from diver_trt.models import ModelOptions
from diver_trt.models.attention import SelfAttention
from diver_trt.models.denoiser import Denoiser
from diver_trt.models.dit import Dit, load_model, set_timestep_frequencies
from diver_trt.models.dit_networks import Block, Predictor
from diver_trt.models.layers import InFloat32
from diver_trt.models.vae import Decoder, Encoder
from diver_trt.pixels import to_network
from diver_trt.recipe import Recipe
from diver_trt.runtime.backends.onnx_package import import_onnxruntime
from diver_trt.runtime.backends.tensorrt.sidecar import Profile
from diver_trt.runtime.backends.tensorrt.target import resolve_target

MODEL = Path(__file__).parent.parent / "examples" / "digits" / "dit-digits"
STEP = 30
BATCH = 8
HALF, SINGLE = torch.float16, torch.float32


@dataclass(frozen=True, slots=True)
class Plan:
    """A precision plan: the types that differ between plans.

    Matrix products and convolutions are float16 in all of them.
    """

    name: str
    norms: torch.dtype = SINGLE  # layer normalisation, scale and shift
    residual: torch.dtype = SINGLE  # residual stream and gates
    attention: torch.dtype = HALF  # scores, softmax and their product with the values
    group_norms: torch.dtype = SINGLE  # the VAE's

    @property
    def vae_only(self) -> bool:
        return self.group_norms == HALF


PLANS = (
    Plan("as shipped"),
    Plan("attention in float32 too", attention=SINGLE),
    Plan("norms, scale and shift in float16", norms=HALF),
    Plan("residual and gates in float16", residual=HALF),
    Plan("all of the DiT in float16", norms=HALF, residual=HALF),
    Plan("group norms of the VAE in float16", group_norms=HALF),
)


class PlannedAttention(SelfAttention):
    """The exporter's attention with its scores, softmax and last product in either type."""

    def __init__(self, attention: Any, plan: Plan) -> None:
        super().__init__(attention, HALF)
        self.plan = plan

    def forward(self, tokens: Tensor) -> Tensor:
        heads = self.query_key_value(tokens).reshape(*tokens.shape[:2], 3 * self.heads, -1)
        heads = heads.transpose(1, 2).to(self.plan.attention)
        query, key, value = torch.split(heads, self.heads, dim=1)
        attended = torch.softmax(query @ key.transpose(2, 3), dim=-1) @ value
        projected: Tensor = self.output(attended.to(HALF).transpose(1, 2).flatten(2))
        return projected


class PlannedBlock(Block):
    """A block of the exporter under another plan."""

    def __init__(self, block: Any, plan: Plan) -> None:
        super().__init__(block, HALF)
        self.plan = plan
        self.attention = PlannedAttention(block.attn1, plan)

    def forward(self, tokens: Tensor, modulation: Sequence[Tensor]) -> Tensor:
        norms, residual = self.plan.norms, self.plan.residual
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation
        prepared = self.attention_norm(tokens.to(norms)) * scale_a.to(norms) + shift_a.to(norms)
        tokens = gate_a.to(residual) * self.attention(prepared.to(HALF)).to(residual) + tokens
        prepared = self.mlp_norm(tokens.to(norms)) * scale_m.to(norms) + shift_m.to(norms)
        mixed: Tensor = gate_m.to(residual) * self.mlp(prepared.to(HALF)).to(residual) + tokens
        return mixed


class PlannedPredictor(Predictor):
    """The exporter's DiT under another plan."""

    def __init__(self, transformer: Any, plan: Plan) -> None:
        super().__init__(transformer, HALF)
        self.plan = plan
        self.blocks = nn.ModuleList(
            PlannedBlock(block, plan) for block in transformer.transformer_blocks
        )

    def forward(self, latent: Tensor, condition: Tensor) -> Tensor:
        norms, residual = self.plan.norms, self.plan.residual
        patches = self.patch_projection(latent.to(HALF))
        grid = patches.shape[2]
        tokens = patches.flatten(2).transpose(1, 2).to(residual) + self.position.to(residual)
        vectors = torch.split(condition.unsqueeze(1), self.width, dim=2)
        for i, block in enumerate(self.blocks):
            tokens = block(tokens, vectors[6 * i :][:6])
        shift, scale = (vector.to(norms) for vector in vectors[-2:])
        outputs = self.final_projection(
            (self.final_norm(tokens.to(norms)) * scale + shift).to(HALF)
        ).float()
        patch = self.patch_size
        outputs = outputs.reshape(-1, grid, grid, patch, patch, self.out_channels).permute(
            0, 5, 1, 3, 2, 4
        )
        image: Tensor = outputs.reshape(-1, self.out_channels, grid * patch, grid * patch)
        return image


def planned_predictor(transformer: Any, plan: Plan) -> nn.Module:
    """Return the predictor under a plan; the shipped plan's is the exporter's own."""
    shipped = Predictor(transformer, HALF)
    if plan == PLANS[0]:
        return shipped
    # The other plans need casts in the middle of a forward pass, so they have a copy of it. It must
    # compute the exporter's values wherever the plans agree, up to the rounding of another order.
    copy_of_it = PlannedPredictor(transformer, PLANS[0])
    draw = torch.Generator().manual_seed(0)
    latent = torch.randn(
        2, transformer.config.in_channels, *[transformer.config.sample_size] * 2, generator=draw
    )
    condition = torch.randn(2, shipped.width * (6 * len(shipped.blocks) + 2), generator=draw)
    with torch.no_grad():
        values = (copy_of_it(latent, condition), shipped(latent, condition))
    apart = difference(*(value.numpy() for value in values)).relative_l2
    if not apart <= 1e-3:
        sys.exit(f"the plans' forward pass is a relative {apart:.1e} away from the exporter's")
    return PlannedPredictor(transformer, plan)


def without_float32_norms(network: nn.Module) -> nn.Module:
    """Make the group normalisations of a float16 encoder or decoder compute in float16."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, InFloat32):
                setattr(parent, name, child.norm.half())
    return network


class PlannedSession(TorchSession):
    """The torch model in float16 under another plan."""

    def __init__(self, model: Dit, bundle: Bundle, batch: int, plan: Plan) -> None:
        super().__init__(model, bundle, batch, "fp16")
        self.networks["denoiser"] = Denoiser(
            planned_predictor(model.transformer, plan), model.layout
        ).eval()
        if plan.vae_only:
            self.networks["encoder"] = without_float32_norms(Encoder(model.vae, HALF)).eval()
            self.networks["decoder"] = without_float32_norms(Decoder(model.vae, HALF)).eval()


def planned_participant(model: Dit, bundle: Bundle, batch: int, plan: Plan) -> Participant:
    def open_session(size: int = batch) -> Any:
        return PlannedSession(model, bundle, size, plan)

    return Participant(plan.name, "fp16", bundle, open_session, lambda: open_session(1), batch)


def measure_digits() -> None:
    bundle = Bundle.open(default_bundle())
    model = load_model(str(MODEL), ModelOptions(timestep_frequencies="diffusers"))
    inputs, recipe = distilled_inputs(bundle, 10), Recipe()
    participant = torch_participant(model, bundle, 10, "fp32")
    reference = Reference(participant, record(participant, inputs, recipe), participant.probe())
    print(
        "| plan | encoder | decoder | worst step alone | change of a step | last latent, free run "
        "| mean PSNR | lowest PSNR | lowest SSIM |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for plan in PLANS:
        found = compare_engine(
            reference, planned_participant(model, bundle, 10, plan), inputs, recipe
        )
        print(f"| {plan.name} | {' | '.join(digits_cells(found))} |", flush=True)
    largest = largest_residual(reference)
    print(
        "\nThe largest value of the residual stream, over all steps of the first image: "
        f"{largest:.0f}."
    )


def largest_residual(reference: Reference) -> float:
    recording, largest = reference.recording, 0.0
    by_class, null = (
        recording.conditions[0],
        recording.conditions[reference.participant.bundle.null_label],
    )
    for i, latent in enumerate(recording.latents[:-1, :1]):
        k = len(recording.latents) - 1 - i
        stages = reference.probe.stages(latent, np.stack([by_class[k - 1 : k], null[k - 1 : k]]))
        largest = max(largest, *(float(np.abs(values).max()) for values in stages.stream.values()))
    return largest


def digits_cells(found: Comparison) -> list[str]:
    figures = (
        found.figures.networks["encoder"].relative_l2,
        found.figures.networks["decoder"].relative_l2,
        found.figures.worst_step.forced.relative_l2,
        found.figures.median_change,
        found.figures.steps[-1].free.relative_l2,
    )
    lowest = min(image.psnr_db for image in found.figures.images)
    return [f"{figure:.1e}" for figure in figures] + [
        f"{mean_psnr(found.figures.images):.1f} dB",
        f"{lowest:.1f} dB",
        f"{min(image.ssim for image in found.figures.images):.5f}",
    ]


def measure_real_size(folder: Path) -> None:
    """One step of DiT-XL/2 under every plan of the DiT, against torch in float32."""
    bundle = Bundle.open(folder / "fp16")
    transformer: Any = (
        DiTTransformer2DModel.from_pretrained(folder / "pipeline" / "transformer")
        .eval()
        .requires_grad_(False)
    )
    set_timestep_frequencies(transformer, "dit")
    values = step_inputs(bundle)
    expected = run_torch(Denoiser(Predictor(transformer, SINGLE), bundle.layout).eval(), values)
    target = resolve_target("rtx", [86], Profile(BATCH, BATCH, BATCH))
    print(
        "| plan | step, ONNX Runtime | step, torch | graph file | weights | activations, batch 8 |"
    )
    print("|---|---:|---:|---:|---:|---:|")
    for plan in PLANS:
        if plan.vae_only:
            continue
        path = folder / "plans" / plan.name.replace(" ", "-").replace(",", "") / "denoiser.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        inputs, outputs = contract(
            bundle.image_size, bundle.latent_shape, bundle.layout, bundle.condition_width, "fp16"
        )["denoiser"]
        started = time.monotonic()
        denoiser = Denoiser(planned_predictor(transformer, plan), bundle.layout).eval()
        denoiser.requires_grad_(False)
        rounded = difference(run_torch(denoiser, values), expected).relative_l2
        weights = graph_from_network(denoiser, inputs, outputs, path)
        del denoiser
        gc.collect()
        graph = difference(run_onnx(path, values), expected).relative_l2
        memory = compile_alone(path, "denoiser", inputs, outputs, BATCH, target).memory
        size = path.stat().st_size + (weights.stat().st_size if weights else 0)
        megabytes = [
            f"{figure / 1e6:,.0f} MB"
            for figure in (size, memory.weights_bytes, memory.activation_bytes)
        ]
        print(
            f"| {plan.name} | {graph:.1e} | {rounded:.1e} | {' | '.join(megabytes)} |", flush=True
        )
        print(f"{plan.name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        for file in path.parent.iterdir():
            file.unlink()


def measure_real_size_vae(folder: Path) -> None:
    """Encoder and decoder of the SD VAE with group normalisations in either type.

    Errors are against torch in float32 on an image of 64 pixels, since torch's float16 convolutions
    are slow on a CPU; activations are those of the whole image.
    """
    bundle = Bundle.open(folder / "fp16")
    vae: Any = (
        AutoencoderKL.from_pretrained(folder / "pipeline" / "vae").eval().requires_grad_(False)
    )
    target = resolve_target("rtx", [86], Profile(1, 1, 1))
    tensors = contract(
        bundle.image_size, bundle.latent_shape, bundle.layout, bundle.condition_width, "fp16"
    )
    print("\n| group norms | network | torch | activations, one image |")
    print("|---|---|---:|---:|")
    networks: dict[NetworkName, type[Encoder] | type[Decoder]] = {
        "encoder": Encoder,
        "decoder": Decoder,
    }
    for name, build in networks.items():
        inputs, outputs = tensors[name]
        channels, size = {"encoder": (3, 64), "decoder": (4, 8)}[name]
        values = {
            "values": np.random.default_rng(1)
            .standard_normal((1, channels, size, size))
            .astype(np.float32)
        }
        expected = run_torch(build(vae, SINGLE).eval(), values)
        for words, network in (
            ("float32", build(vae, HALF)),
            ("float16", without_float32_norms(build(vae, HALF))),
        ):
            error = difference(run_torch(network.eval(), values), expected).relative_l2
            path = folder / "plans" / f"{name}.onnx"
            path.parent.mkdir(exist_ok=True)
            graph_from_network(network.requires_grad_(False), inputs, outputs, path)
            memory = compile_alone(path, name, inputs, outputs, 1, target).memory
            print(
                f"| {words} | {name} | {error:.1e} | {memory.activation_bytes / 1e6:,.0f} MB |",
                flush=True,
            )


@torch.no_grad()
def measure_summation(folder: Path) -> None:
    """The fp32 encoder in torch and ONNX Runtime against torch in float64.

    The images are two distilled digits, which are mostly flat, and noise.
    """
    bundle = Bundle.open(folder / "fp32")
    vae: Any = (
        AutoencoderKL.from_pretrained(folder / "pipeline" / "vae").eval().requires_grad_(False)
    )
    pictures = [to_network(image)[None] for image in distilled_inputs(bundle, 2).images]
    noise = np.random.default_rng(0).standard_normal(pictures[0].shape).astype(np.float32)
    single, path = Encoder(vae, SINGLE).eval(), bundle.path / "encoder.onnx"
    double = copy.deepcopy(vae).double()
    print("\n| image | ONNX Runtime | torch |")
    print("|---|---:|---:|")
    for name, image in zip(("digit 0", "digit 1", "noise"), (*pictures, noise), strict=True):
        moments = double.quant_conv(double.encoder(torch.from_numpy(image).double()))
        exact = (moments[:, : bundle.latent_shape[0]] * bundle.scaling_factor).numpy()
        found = (run_onnx(path, {"image": image}), run_torch(single, {"image": image}))
        errors = [f"{difference(latent, exact).relative_l2:.1e}" for latent in found]
        print(f"| {name} | {' | '.join(errors)} |", flush=True)


def step_inputs(bundle: Bundle) -> dict[str, np.ndarray]:
    """Return a step's inputs: random latent, anchor and noise, and the conditioner's conditions."""
    generator = np.random.default_rng(1)
    latent, anchor, noise = generator.standard_normal((3, 1, *bundle.latent_shape)).astype(
        np.float32
    )
    schedule = Schedule(bundle.process, Recipe(), bundle.layout)
    times = schedule.times[[STEP - 1, STEP - 1]]
    session = import_onnxruntime().InferenceSession(
        bundle.path / "conditioner.onnx", providers=["CPUExecutionProvider"]
    )
    condition = session.run(None, {"time": times, "label": np.array([207, bundle.null_label])})[0]
    row = schedule.table[STEP - 1]
    return {
        "latent": latent,
        "anchor": anchor,
        "noise": noise,
        "condition": condition[:, None],
        "coefficients": row,
    }


@torch.no_grad()
def run_torch(denoiser: nn.Module, values: dict[str, np.ndarray]) -> np.ndarray:
    result: np.ndarray = denoiser(*(torch.from_numpy(value) for value in values.values())).numpy()
    return result


def run_onnx(path: Path, values: dict[str, np.ndarray]) -> np.ndarray:
    result: np.ndarray = (
        import_onnxruntime()
        .InferenceSession(path, providers=["CPUExecutionProvider"])
        .run(None, values)[0]
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--digits", action="store_true")
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    packages = ("torch", "diffusers", "onnxruntime", "numpy")
    measured_with = heading(*packages, threads=torch.get_num_threads())
    print(f"{measured_with}\n")
    if arguments.digits:
        measure_digits()
    if arguments.folder:
        measure_real_size(arguments.folder)
        measure_real_size_vae(arguments.folder)
        measure_summation(arguments.folder)


if __name__ == "__main__":
    main()
