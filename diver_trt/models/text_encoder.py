"""CLIP's text encoder, run once: the prompt of every class becomes a row of a table.

The runtime therefore needs neither the encoder nor its tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from diver_trt.errors import ExportError, shown
from diver_trt.models.model_files import ModelFiles, one_line
from diver_trt.models.prompts import Prompts
from diver_trt.models.weights import load_weights, stored_weights
from diver_trt.packages import importing

ENCODER = "CLIPTextModel"
_TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
"""The files of a tokenizer as transformers 5 writes them, and as transformers 4 did."""
_TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_STEMS: Mapping[str, str] = {"safetensors": "model", "bin": "pytorch_model"}
_PREFIX = "text_model."
"""Of every name until transformers 5."""
_AT_ONCE = 16
"""Prompts in one run of the encoder."""


@torch.no_grad()
def embedded_prompts(
    encoder_files: ModelFiles, tokenizer_files: ModelFiles, prompts: Prompts
) -> tuple[nn.Embedding, int, list[str]]:
    """Return the embedding of each class's prompt, then of the null class's, as a pipeline has it.

    Args:
        encoder_files: The pipeline's folder `text_encoder`.
        tokenizer_files: The pipeline's folder `tokenizer`.
        prompts: The classes and their prompts.

    Returns:
        A table [classes + 1, S * E] float32, the number `S` of tokens, and notes on what was found.

    Raises:
        ExportError: If the encoder or the tokenizer cannot be read, a prompt has more tokens than
            the encoder reads, or two classes have prompts of the same tokens.
        MissingExtraError: If transformers is not installed.
    """
    tokenizer = _load_tokenizer(tokenizer_files)
    encoder, notes = _load_encoder(encoder_files)
    # transformers makes up a tokenizer of three tokens where it does not understand a file.
    if (found := len(tokenizer)) != (expected := encoder.config.vocab_size):
        raise ExportError(
            f"{tokenizer_files.where()}: has {found:,} tokens, the text encoder {expected:,}. Give "
            "the tokenizer that it was trained with."
        )
    tokens: int = encoder.config.max_position_embeddings
    rows, classes = [], dict[tuple[int, ...], int]()
    texts = prompts.stored
    for first in range(0, len(texts), _AT_ONCE):
        some = list(texts[first : first + _AT_ONCE])
        # Not truncated: a prompt that was cut would be another one, and nobody would notice.
        coded = tokenizer(some, padding="max_length", max_length=tokens)
        for label, (text, ids) in enumerate(zip(some, coded["input_ids"], strict=True), first):
            if len(ids) > tokens:
                raise ExportError(
                    f"the prompt {shown(repr(text))} has {len(ids)} tokens, "
                    f"the model reads {tokens}. Shorten it."
                )
            # CLIP's tokenizer drops case and repeated spaces, so texts that differ may be one.
            other = classes.setdefault(tuple(ids), label) if label < len(prompts.names) else label
            if other != label:
                raise ExportError(
                    f"classes {other} and {label} have prompts that the model reads alike, "
                    f"{shown(repr(texts[other]))} and {shown(repr(text))}. Give each its own."
                )
        # Some encoders were trained with the padding masked, which their configuration states.
        masked = getattr(encoder.config, "use_attention_mask", False)
        mask = torch.tensor(coded["attention_mask"]) if masked else None
        # The last layer's states [k, S, E], as the pipeline takes them without clip_skip
        states = encoder(torch.tensor(coded["input_ids"]), attention_mask=mask)[0]
        rows.append(states.flatten(1))
    values = torch.cat(rows)
    table = nn.Embedding(len(values), values.shape[1], _weight=values).requires_grad_(False)
    return table, tokens, notes


def _load_tokenizer(files: ModelFiles) -> Any:
    transformers = _import_transformers()
    sources = [[files.find(name) for name in names] for names in _TOKENIZERS]
    folder = next((paths[0].parent for paths in sources if all(paths) and paths[0]), None)
    if folder is None:
        expected = " or ".join(" and ".join(names) for names in _TOKENIZERS)
        raise ExportError(
            f"{files.where()}: has no {expected}; expected the tokenizer of a pipeline"
        )
    for name in _TOKENIZER_SETTINGS:  # brings them here, too, where they are on the hub
        files.find(name)
    try:
        return transformers.CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as cause:  # transformers raises many kinds
        raise ExportError(
            f"{files.where()}: is not the tokenizer of CLIP ({one_line(cause)})"
        ) from cause


def _load_encoder(files: ModelFiles) -> tuple[Any, list[str]]:
    transformers = _import_transformers()
    config = files.read_json("config.json", "expected the text encoder of a pipeline")
    where = files.where("config.json")
    if (kinds := config.get("architectures", [ENCODER])) != [ENCODER]:
        raise ExportError(f"{where}: holds a {shown(str(kinds))}, expected a {ENCODER}")
    try:
        encoder = transformers.CLIPTextModel(transformers.CLIPTextConfig(**config))
    except Exception as cause:  # as above
        raise ExportError(
            f"{where}: not a configuration of {ENCODER}: {one_line(cause)}"
        ) from cause
    # Position numbers, which older files store beside the weights.
    state, notes = stored_weights(files, _STEMS, without="position_ids")
    prefix = _PREFIX if any(name.startswith(_PREFIX) for name in encoder.state_dict()) else ""
    # Under the names that the installed transformers has, whichever of them the file has.
    state = {f"{prefix}{name.removeprefix(_PREFIX)}": value for name, value in state.items()}
    load_weights(encoder, state, files.where(), "config.json")
    return encoder.eval().float(), notes


def _import_transformers() -> Any:
    with importing("sd", "a text encoder"):
        import transformers

        # transformers imports the modules of these at their first use.
        _ = transformers.CLIPTextConfig, transformers.CLIPTextModel, transformers.CLIPTokenizer
    transformers.logging.set_verbosity_error()  # what it would warn about is checked here
    return transformers
