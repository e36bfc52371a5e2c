"""Train the model of an example: a small AutoencoderKL and a class-conditional DiT.

The result is a standard diffusers pipeline; with `--base sit` it is a checkpoint in SiT's own
layout, without a VAE.

    python -m examples.train digits --output examples/digits/dit-digits
    python -m examples.train fashion --output examples/fashion/dit-fashion
    python -m examples.train digits --base sit --vae examples/digits/dit-digits/vae --output \\
        examples/digits/sit-digits.pt

Everything follows from `--seed`; takes about an hour on two CPU cores.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from torch import Tensor

from examples.dataset import DATASETS, NUM_CLASSES, load_dataset
from examples.latent_diffusion import (
    HEADS,
    TRAIN_TIMESTEPS,
    Diffusion,
    StraightPath,
    encode_variants,
    reconstruction_psnr,
    train_autoencoder,
    train_transformer,
)


def save_pipeline(
    folder: Path,
    transformer: DiTTransformer2DModel,
    vae: AutoencoderKL,
    scheduler: DDIMScheduler,
    class_names: tuple[str, ...],
) -> None:
    for block in transformer.transformer_blocks[1:]:
        # safetensors stores no tensor under two names.
        block.norm1.emb = copy.deepcopy(block.norm1.emb)
    DiTPipeline(transformer, vae, scheduler).save_pretrained(folder)
    index = folder / "model_index.json"
    # DiTPipeline reads them from here, but does not save them.
    names = {"id2label": {str(i): name for i, name in enumerate(class_names)}}
    index.write_text(json.dumps(json.loads(index.read_text()) | names, indent=2) + "\n")


def save_checkpoint(path: Path, transformer: DiTTransformer2DModel) -> None:
    """Write a checkpoint as SiT's trainer does, with weights of float16."""
    settings = argparse.Namespace(
        model="SiT-digits",
        num_heads=HEADS,
        num_classes=NUM_CLASSES,
        prediction="velocity",
        path_type="Linear",
    )
    weights = {name: tensor.half() for name, tensor in dit_state(transformer).items()}
    torch.save({"ema": weights, "args": settings}, path)


def dit_state(transformer: DiTTransformer2DModel) -> dict[str, Tensor]:
    """Return the weights of diffusers' module under the names of DiT's own code."""
    embedder = transformer.transformer_blocks[0].norm1.emb
    layers = {
        "x_embedder.proj": transformer.pos_embed.proj,
        "t_embedder.mlp.0": embedder.timestep_embedder.linear_1,
        "t_embedder.mlp.2": embedder.timestep_embedder.linear_2,
        "final_layer.adaLN_modulation.1": transformer.proj_out_1,
        "final_layer.linear": transformer.proj_out_2,
    }
    state = {
        "pos_embed": transformer.pos_embed.pos_embed,
        "y_embedder.embedding_table.weight": embedder.class_embedder.embedding_table.weight,
    }
    for i, block in enumerate(transformer.transformer_blocks):
        attention, name = block.attn1, f"blocks.{i}"
        layers |= {
            f"{name}.attn.proj": attention.to_out[0],
            f"{name}.mlp.fc1": block.ff.net[0].proj,
            f"{name}.mlp.fc2": block.ff.net[2],
            f"{name}.adaLN_modulation.1": block.norm1.linear,
        }
        for part in ("weight", "bias"):
            projections = (attention.to_q, attention.to_k, attention.to_v)
            state[f"{name}.attn.qkv.{part}"] = torch.cat(
                [getattr(one, part) for one in projections]
            )
    for name, layer in layers.items():
        state |= {f"{name}.weight": layer.weight, f"{name}.bias": layer.bias}
    return {name: tensor.detach() for name, tensor in state.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", choices=DATASETS)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--base", choices=("dit", "sit"), default="dit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vae-steps", type=int, help="default: as the committed model")
    parser.add_argument("--dit-steps", type=int, help="default: as the committed model")
    parser.add_argument("--vae", type=Path, help="use this trained VAE instead of training one")
    args = parser.parse_args()
    if args.base == "sit" and args.vae is None:
        parser.error("--base sit needs --vae")
    dataset = load_dataset(args.dataset)

    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    splits = dataset.load()
    images, labels = splits.train.images, torch.from_numpy(splits.train.labels)

    vae = (
        AutoencoderKL.from_pretrained(args.vae).eval()
        if args.vae
        else train_autoencoder(
            images, dataset.augment, generator, steps=args.vae_steps or dataset.vae_steps
        )
    )
    psnr = reconstruction_psnr(vae, splits.test.images)
    print(f"vae: {psnr:.1f} dB on the {len(splits.test)} images of the test set", flush=True)
    if args.base == "dit":
        vae.save_pretrained(args.output / "vae")
    scheduler = DDIMScheduler(
        num_train_timesteps=TRAIN_TIMESTEPS,
        beta_schedule="linear",
        beta_start=1e-4,
        beta_end=0.02,
        clip_sample=False,
    )
    latents = encode_variants(
        vae, images, dataset.augment, generator, variants=dataset.dit_variants
    )
    print(
        f"latents: mean {np.round(latents.mean((0, 1, 3, 4)).numpy(), 3)}, "
        f"std {np.round(latents.std((0, 1, 3, 4)).numpy(), 3)}",
        flush=True,
    )
    transformer = train_transformer(
        latents,
        labels,
        StraightPath() if args.base == "sit" else Diffusion(scheduler),
        generator,
        steps=args.dit_steps or dataset.dit_steps,
    )
    if args.base == "sit":
        save_checkpoint(args.output, transformer)
    else:
        save_pipeline(args.output, transformer, vae, scheduler, dataset.class_names)


if __name__ == "__main__":
    main()
