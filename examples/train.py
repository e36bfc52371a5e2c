"""Train the model of an example: a small AutoencoderKL and a class-conditional DiT.

The result is a standard diffusers pipeline.

    python -m examples.train digits --output examples/digits/dit-digits
    python -m examples.train fashion --output examples/fashion/dit-fashion

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

from examples.dataset import DATASETS, load_dataset
from examples.latent_diffusion import (
    TRAIN_TIMESTEPS,
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", choices=DATASETS)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vae-steps", type=int, help="default: as the committed model")
    parser.add_argument("--dit-steps", type=int, help="default: as the committed model")
    parser.add_argument("--vae", type=Path, help="use this trained VAE instead of training one")
    args = parser.parse_args()
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
        latents, labels, scheduler, generator, steps=args.dit_steps or dataset.dit_steps
    )
    save_pipeline(args.output, transformer, vae, scheduler, dataset.class_names)


if __name__ == "__main__":
    main()
