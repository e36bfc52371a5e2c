"""Stable Diffusion: its steps are those of diffusers' UNet, scheduler and pipeline."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from diver_trt.bundle import Bundle
from diver_trt.errors import ExportError, MissingExtraError
from diver_trt.method.ddpm import Ddpm
from diver_trt.method.schedule import Schedule, noise_ratios
from diver_trt.models import ModelOptions
from diver_trt.models.prompts import Prompts
from diver_trt.models.recognition import recognised_base
from diver_trt.models.stable_diffusion import StableDiffusion, load_model
from diver_trt.pixels import from_network
from diver_trt.recipe import PRESETS, Recipe
from diver_trt.runtime.recoverer import Recoverer
from tests.cli.command import run
from tests.comparison.command import QUICK, compare
from tests.conftest import made_once
from tests.models.conftest import assert_same_steps, edit
from tests.models.tiny_stable_diffusion import CHAIN, save_stable_diffusion

pytestmark = pytest.mark.slow

PROMPTS = Prompts(("cat", "dog", "red apple"), ("a cat", "a dog", "a red apple"), "cartoon")
LABELS = [2, 0, 1]


@pytest.fixture(scope="session")
def pipeline(shared: Path) -> Path:
    def save(folder: Path) -> None:
        folder.mkdir()
        save_stable_diffusion(folder)

    return made_once(shared / "stable-diffusion", save)


@pytest.fixture(scope="session")
def bundle(export_to: Callable[..., Bundle], pipeline: Path) -> Bundle:
    return export_to(pipeline, prompts=PROMPTS)


@pytest.fixture(scope="session")
def model(pipeline: Path) -> StableDiffusion:
    return load(pipeline)


@pytest.fixture(scope="session")
def original(pipeline: Path) -> Any:
    """Load diffusers' own pipeline."""
    pipe: Any = StableDiffusionPipeline.from_pretrained(pipeline)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def copied(pipeline: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pipeline, tmp_path / "pipeline")


def load(pipeline: Path, prompts: Prompts = PROMPTS) -> StableDiffusion:
    return load_model(str(pipeline), ModelOptions(prompts=prompts))


def test_a_bundle_has_the_facts_of_its_pipeline(bundle: Bundle, pipeline: Path) -> None:
    assert recognised_base(str(pipeline)) == bundle.model.base == "sd"
    assert bundle.process == Ddpm(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        train_timesteps=1000,
        steps_offset=1,
        set_alpha_to_one=False,
    )
    assert (bundle.num_classes, bundle.null_label) == (3, 3)
    assert bundle.class_names == PROMPTS.names
    assert bundle.prompts == ("a cat", "a dog", "a red apple", "cartoon")
    assert bundle.guided_channels == 4
    assert not bundle.learned_variance
    assert bundle.timestep_frequencies is None


def test_the_paper_starts_at_twice_dits_signal_to_noise_ratio(bundle: Bundle) -> None:
    assert noise_ratios(bundle.process, 50)[24] == pytest.approx(0.66, abs=0.005)


@torch.no_grad()
def diffusers_steps(
    original: Any, anchor: Tensor, noise: Tensor, recipe: Recipe
) -> Iterator[Tensor]:
    """DIVER around diffusers' UNet and DDIMScheduler, each step by its own `step`."""
    scheduler: Any = DDIMScheduler(**CHAIN)
    scheduler.set_timesteps(recipe.steps)
    abar = scheduler.alphas_cumprod.double()
    text, negative = (
        original.encode_prompt(words, "cpu", 1, do_classifier_free_guidance=False)[0]
        for words in ([PROMPTS.texts[label] for label in LABELS], [PROMPTS.negative] * len(LABELS))
    )
    x = noise
    if recipe.inherit_step is not None:
        t = int(scheduler.timesteps[recipe.steps - recipe.inherit_step])
        x = scheduler.add_noise(anchor, noise, torch.tensor([t] * len(anchor)))
    yield x
    for k in range(recipe.start_step, 0, -1):
        t = scheduler.timesteps[recipe.steps - k]
        by_class = original.unet(x, t, text).sample
        by_null = original.unet(x, t, negative).sample
        predicted = by_null + recipe.cfg_scale * (by_class - by_null)
        following = scheduler.step(predicted, t, x).prev_sample
        if recipe.window[1] < k <= recipe.window[0]:
            before = abar[max(int(t) - 1000 // recipe.steps, 0)]
            variance = (1 - before) / (1 - abar[t]) * (1 - abar[t] / before)
            following = following - recipe.gamma * variance.sqrt().float() * (x - anchor)
        x = following
        yield x


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        PRESETS["d4m"],
        Recipe(start_step=25, window=(25, 10)),
        PRESETS["paper"].scaled_to(20),
    ],
    ids=["paper", "d4m", "matched", "20 steps"],
)
def test_every_step_is_that_of_diffusers_unet_and_scheduler(
    bundle: Bundle, original: Any, recipe: Recipe
) -> None:
    generator = np.random.default_rng(0)
    anchor, noise = generator.standard_normal((2, 3, *bundle.latent_shape)).astype(np.float32)
    expected = list(diffusers_steps(original, torch.tensor(anchor), torch.tensor(noise), recipe))
    start = Schedule(bundle.process, recipe, bundle.layout).start(anchor, noise)
    found = [start]
    with Recoverer(bundle, recipe, batch=3) as recoverer:
        for _ in recoverer.denoise(start, anchor, noise, LABELS):
            found.append(recoverer.latent.copy())
        images = np.stack(recoverer.decode(found[-1])).astype(int)
    assert len(found) == recipe.start_step + 1
    assert_same_steps(found, expected)
    with torch.no_grad():
        decoded = original.vae.decode(expected[-1] / 0.18215).sample.clamp(-1, 1).numpy()
    assert np.abs(images - np.stack([from_network(one) for one in decoded])).max() <= 1


def test_without_inheritance_and_guidance_it_is_diffusers_pipeline(
    bundle: Bundle, original: Any
) -> None:
    noise = np.random.default_rng(1).standard_normal((3, *bundle.latent_shape)).astype(np.float32)
    theirs = original(
        [PROMPTS.texts[label] for label in LABELS],
        negative_prompt=[PROMPTS.negative] * len(LABELS),
        guidance_scale=8.0,
        num_inference_steps=50,
        latents=torch.tensor(noise),
        output_type="latent",
    ).images.numpy()
    recipe = Recipe(cfg_scale=8.0, inherit_step=None, gamma=0.0)
    with Recoverer(bundle, recipe, batch=3) as recoverer:
        for _ in recoverer.denoise(noise, noise, noise, LABELS):
            pass
        found = recoverer.latent.copy()
    assert np.abs(found - theirs).max() <= 1e-4 * np.abs(theirs).max()


def test_compare_takes_the_prompts_from_the_bundle(bundle: Bundle, pipeline: Path) -> None:
    result = compare(bundle.path, "--model", pipeline, "--engine", "onnx", *QUICK)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "passed: onnx fp32 stays with torch fp32"


def test_compare_runs_torch_in_other_types_too(bundle: Bundle, pipeline: Path) -> None:
    engines = ("--engine", "torch-fp16", "--engine", "torch-bf16")
    result = compare(bundle.path, "--model", pipeline, *engines, *QUICK)
    # How far they are depends on the CPU.
    assert all(f"{name}: " in result.stdout for name in ("torch fp16", "torch bf16"))


def test_other_prompts_are_another_model(pipeline: Path, model: StableDiffusion) -> None:
    other = load(pipeline, Prompts(PROMPTS.names, PROMPTS.texts, "a painting"))
    assert torch.equal(other.table.weight[:3], model.table.weight[:3])
    assert not torch.equal(other.table.weight[3], model.table.weight[3])


def test_the_table_has_what_the_pipeline_encodes(original: Any, model: StableDiffusion) -> None:
    encoded = original.encode_prompt(list(PROMPTS.stored), "cpu", 1, False)[0]
    assert torch.allclose(model.table.weight, encoded.flatten(1), atol=1e-6)


def test_files_of_older_releases_are_the_same_model(copied: Path, model: StableDiffusion) -> None:
    """Names began with `text_model.`, position numbers were stored, and the file was a `.bin`."""
    weights = copied / "text_encoder" / "model.safetensors"
    state = {f"text_model.{name}": value for name, value in load_file(weights).items()}
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    torch.save(state, copied / "text_encoder" / "pytorch_model.bin")
    weights.unlink()
    assert torch.equal(load(copied).table.weight, model.table.weight)


@pytest.mark.parametrize(("set_alpha_to_one", "steps_offset"), [(True, 1), (False, 1), (True, 0)])
def test_the_steps_are_those_of_diffusers_pipeline(
    copied: Path, set_alpha_to_one: bool, steps_offset: int
) -> None:
    """The pipeline itself replaces another offset by 1."""
    edit(
        copied / "scheduler" / "scheduler_config.json",
        set_alpha_to_one=set_alpha_to_one,
        steps_offset=steps_offset,
    )
    process = load(copied).process
    assert isinstance(process, Ddpm)
    assert (process.steps_offset, process.set_alpha_to_one) == (1, set_alpha_to_one)


@pytest.mark.parametrize(
    ("file", "fields", "complaint"),
    [
        ("unet/config.json", {"in_channels": 9}, "in_channels is 9, expected 4: a UNet that reads"),
        ("unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "other UNets are not supported"),
        (
            "unet/config.json",
            {"time_cond_proj_dim": 256},
            "time_cond_proj_dim is 256, expected None",
        ),
        ("unet/config.json", {"sample_size": 7}, "sample_size is 7, expected a multiple of 2"),
        (
            "unet/config.json",
            {"sample_size": None},
            "sample_size is None, expected a multiple of 2",
        ),
        ("unet/config.json", {"block_out_channels": None}, "block_out_channels is None, expected"),
        ("unet/config.json", {"cross_attention_dim": [32, 32]}, "expected a whole number"),
        (
            "unet/config.json",
            {"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]},
            "down_block_types is ['AttnDownBlock2D', 'DownBlock2D'], expected a list of",
        ),
        ("unet/config.json", {"block_out_channels": [32, 32]}, "the tensors are not those of"),
        ("unet/config.json", {"_class_name": "UNet3D"}, "holds a UNet3D"),
        (
            "scheduler/scheduler_config.json",
            {"prediction_type": "v_prediction"},
            "the model predicts 'v_prediction', expected the noise",
        ),
        ("scheduler/scheduler_config.json", {"set_alpha_to_one": 1}, "expected true or false"),
        ("text_encoder/config.json", {"architectures": ["T5EncoderModel"]}, "expected a CLIPText"),
        ("text_encoder/config.json", {"hidden_size": 64}, "the tensors are not those of"),
        (
            "model_index.json",
            {"_class_name": "StableDiffusionXLPipeline"},
            "holds a StableDiffusionXLPipeline, expected a DiTPipeline",
        ),
        ("model_index.json", {"unet": ["diffusers", "UNet3D"]}, "the unet is diffusers.UNet3D"),
    ],
)
def test_another_pipeline_is_refused(
    copied: Path, file: str, fields: Mapping[str, Any], complaint: str
) -> None:
    edit(copied / file, **fields)
    with pytest.raises(ExportError) as error:
        load(copied)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


def test_a_tokenizer_of_another_model_is_refused(copied: Path) -> None:
    vocabulary = copied / "tokenizer" / "vocab.json"
    words = json.loads(vocabulary.read_text())
    vocabulary.write_text(json.dumps({word: i for word, i in words.items() if word != "a"}))
    with pytest.raises(ExportError, match="has 55 tokens, the text encoder 56"):
        load(copied)
    (copied / "tokenizer" / "merges.txt").unlink()
    with pytest.raises(ExportError, match=r"has no tokenizer\.json or vocab\.json and merges\.txt"):
        load(copied)


def test_a_prompt_that_would_be_cut_is_refused(pipeline: Path) -> None:
    long = Prompts(("cat",), ("a" * 76,), "")
    with pytest.raises(ExportError, match=r"has 78 tokens, the model reads 77\. Shorten it"):
        load(pipeline, long)


def test_prompts_that_the_tokenizer_reads_alike_are_refused(pipeline: Path) -> None:
    alike = Prompts(("a", "b", "c"), ("a red apple", "a dog", "a Red  apple"), "a dog")
    with pytest.raises(ExportError, match="classes 0 and 2 have prompts that the model"):
        load(pipeline, alike)


def test_what_a_pipeline_does_not_have_is_refused(pipeline: Path, random_pipeline: Path) -> None:
    from diver_trt.models.dit import load_model as load_dit

    with pytest.raises(ExportError, match="states its own sinusoids"):
        load_model(str(pipeline), ModelOptions(timestep_frequencies="dit", prompts=PROMPTS))
    with pytest.raises(ExportError, match="is conditioned on class numbers"):
        load_dit(str(random_pipeline), ModelOptions(prompts=PROMPTS))
    with pytest.raises(ExportError, match="holds a DiTPipeline, expected a StableDiff"):
        load(random_pipeline)


def test_a_missing_transformers_names_its_extra(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'diver-trt\[sd\]'"):
        load(pipeline)


def test_the_command_exports_classes_that_folders_are_named_by(
    pipeline: Path, traced_once: None, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    from PIL import Image

    bundle = tmp_path / "bundle"
    options = ("--classes", "cat,red apple", "--prompt", "a photo of a {name}")
    exported = run("export", pipeline, bundle, *options, "--negative-prompt", "")
    assert exported.exit_code == 0, exported.output
    assert Bundle.open(bundle).prompts == ("a photo of a cat", "a photo of a red apple", "")
    inspected = run("inspect", bundle)
    assert "'a photo of a cat', 'a photo of a red apple'; negative: ''" in inspected.stdout
    (tmp_path / "in" / "Red_Apple").mkdir(parents=True)
    Image.fromarray(images[0][:16, :16]).save(tmp_path / "in" / "Red_Apple" / "a.png")
    quick = ("--bundle", bundle, "--engine", "onnx", "--steps", 10, "--preset", "d4m")
    recovered = run("recover", tmp_path / "in", tmp_path / "out", *quick)
    assert recovered.exit_code == 0, recovered.output
    assert "signal-to-noise ratio" in recovered.stderr
    assert (tmp_path / "out" / "00001" / "00000.png").exists()


def test_doubts_about_prompts_are_notes_of_the_model(pipeline: Path) -> None:
    named = Prompts(("tench 0", "church 497"), ("a", "b"), "")
    (note,) = load(pipeline, named).notes
    assert "such as 'tench 0'" in note


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--prompt", "a photo"), "expected {name} in it"),
        (("--classes", "cat"), "no such file; expected imagenet, a file with a name per line"),
        (("--classes", "cat,cat"), "classes 0 and 1 have the same prompt, 'cat'"),
        (("--classes", "cat,"), "class 1 has no name"),
        (("--prompts", "{file}"), "there are 2 prompts for 1000 classes"),
        (("--prompts", "{file}", "--prompt", "{name}"), "exclude each other"),
        (("--prompts", "{blank}"), "line 2 is blank"),
        (("--prompts", "{folder}"), "cannot be read"),
        (("--classes", "cat,do\tg"), "is not a text on one line"),
    ],
)
def test_prompts_that_contradict_each_other_are_refused(
    pipeline: Path, tmp_path: Path, options: tuple[str, ...], complaint: str
) -> None:
    (tmp_path / "file").write_text("a\nb\n")
    (tmp_path / "blank").write_text("a\n\nb\n")
    places = {"file": "file", "blank": "blank", "folder": "."}
    words = [
        str(tmp_path / places[word.strip("{}")]) if word.strip("{}") in places else word
        for word in options
    ]
    result = run("export", pipeline, tmp_path / "bundle", *words)
    assert result.exit_code == 2, result.output
    assert complaint in result.stderr
    assert not (tmp_path / "bundle").exists()
