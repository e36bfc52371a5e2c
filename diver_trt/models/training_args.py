"""What the settings that trainers store beside a checkpoint's weights say about the model.

Trainers write their command line (`args`, a Namespace) or configuration (nested dictionaries) into
the file, each under a name of its own. What is read here decides whether the weights are of the
base model that they are loaded as, since a SiT has a DiT's very tensors, and whether there is a
null class.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diver_trt.errors import ExportError, shown
from diver_trt.method.ddpm import Ddpm
from diver_trt.method.flow import Flow
from diver_trt.models.containers import contents

NOISE = ("epsilon", "eps", "noise", "pred_noise", "pred_eps", "ddpm")
VELOCITY = ("velocity", "v", "flow", "rectified_flow", "flow_matching")
CLASS_COUNTS = (10, 100, 200, 365, 1000, 21_841)
"""Classes of common data sets: a label table with exactly so many rows has no null class."""
# CIFAR-10, CIFAR-100, Tiny ImageNet, Places365, ImageNet-1K and ImageNet-21K.

REPA_SETTINGS = ("proj_coeff", "encoder_depth")
"""Settings of REPA's trainer that SiT's does not have."""

_PREDICTIONS = (
    *("prediction", "predict", "prediction_type", "pred_type", "model_prediction", "objective"),
    *("parametrization", "parameterization", "parameterisation", "model_mean_type", "mean_type"),
)
_FLOWS = ("path_type", "flow", "use_flow", "use_flow_matching", "flow_matching", "rectified_flow")
_NOT_A_FLOW = (False, "", "none", "None")
# SiT's class of the straight path is ICPlan, and flow matching (arXiv 2210.02747) calls it OT:
# https://github.com/willisma/SiT/blob/main/transport/path.py
_STRAIGHT = ("linear", "true", "yes", "1", "ot", "icplan", "rectified", "rectified_flow")
_MODELS = ("model", "model_name", "model_type", "arch")
_SWITCHES = (
    *("predict_xstart", "predict_x0", "pred_x0", "predict_v", "v_prediction", "v_pred"),
    *("rescale_betas_zero_snr", "zero_terminal_snr", "enforce_zero_terminal_snr", "zero_snr"),
    *("zsnr", "rescale_timesteps"),
)
_OPTION = re.compile(r"(?:^|\s)--([A-Za-z][\w-]*)[ =]([^\s-][^\s]*)")
_LONGEST = 1000
"""Items of a list that may be settings; longer ones are histories."""
_DROPOUTS = (
    *("class_dropout_prob", "class_drop_prob", "label_dropout_prob", "label_drop_prob"),
    *("cfg_prob", "cfg_dropout", "uncond_prob", "p_uncond", "cond_drop_prob"),
)
# Whole words, so that `transit` is not taken for a SiT.
_OTHER_MODELS = re.compile(
    r"(?<![a-z])(sit|repa|(?:lightning|light|u|fast|flow|mask|sd|m)-?dit|mdt(?:v2)?|fit|u-?vit|mar"
    r"|edm2?|jit|dim|pixart|sana)(?![a-z])",
    re.IGNORECASE,
)
_OTHER_NAMES = re.compile(
    r"(?<![a-z])(sit|repa|lightning-?dit|mdt(?:v2)?|velocity|flow|rectified)(?![a-z])",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How the models of one base were trained, as far as it decides what their weights compute.

    Attributes:
        title: What it is called, such as `"DiT"`.
        family: How its sizes are named: `"DiT"` for DiT-XL/2, `"SiT"` for SiT-XL/2.
        names: Words in a model's name that do not speak against it, in lower case.
        process: The process that it was trained on.
        has_projectors: Whether tensors that only the training used may be stored beside it.
    """

    title: str
    family: str
    names: tuple[str, ...]
    process: Ddpm | Flow
    has_projectors: bool = False

    @property
    def is_flow(self) -> bool:
        """Whether it is trained on a straight path, and not on DDPM's linear chain."""
        return isinstance(self.process, Flow)

    @property
    def predicts(self) -> str:
        """What it predicts, for messages."""
        return "the velocity of a straight path" if self.is_flow else "the noise"

    @property
    def predictions(self) -> tuple[str, ...]:
        """What settings call that, in lower case."""
        return VELOCITY if self.is_flow else NOISE


# The "linear" schedule of DiT's `create_diffusion`: https://github.com/facebookresearch/DiT
_CHAIN = Ddpm(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, train_timesteps=1000)
DIT = Training(title="DiT", family="DiT", names=("dit",), process=_CHAIN)

_CHAIN_SETTINGS = {
    **dict.fromkeys(("noise_schedule", "beta_schedule", "schedule_name"), _CHAIN.beta_schedule),
    **dict.fromkeys(("diffusion_steps", "num_diffusion_steps"), _CHAIN.train_timesteps),
    **dict.fromkeys(("train_timesteps", "num_train_timesteps"), _CHAIN.train_timesteps),
    "beta_start": _CHAIN.beta_start,
    "beta_end": _CHAIN.beta_end,
}
"""Settings of a chain, and the value of each for DiT's."""


def training_args(checkpoint: Mapping[Any, Any]) -> dict[str, list[Any]]:
    """Return every plain value of a checkpoint by its last key, in lower case."""
    found: dict[str, list[Any]] = {}
    for container, values in contents(checkpoint, _LONGEST):
        if isinstance(container, Mapping):
            for key, value in container.items():
                if isinstance(value, (str, int, float, bool)):
                    found.setdefault(str(key).lower(), []).append(value)
            commands = [value for value in values if isinstance(value, str)]
        else:
            # A command line may be stored word by word, as sys.argv is.
            commands = [" ".join(value for value in values if isinstance(value, str))]
        for command in commands:
            for key, value in _options(command):
                found.setdefault(key, []).append(value)
    return found


def _options(command: str) -> Iterator[tuple[str, str]]:
    """Yield the options of a command line that was stored as it was typed."""
    for key, value in _OPTION.findall(command):
        yield key.lower().replace("-", "_"), value


def states_velocity(args: Mapping[str, list[Any]]) -> bool:
    """Return whether a checkpoint's settings say that it predicts the velocity of a flow."""
    # "v" alone is also what DDPM's v-prediction is called.
    flows = any(value not in _NOT_A_FLOW for key in _FLOWS for value in args.get(key, []))
    return any(
        kind == "velocity" or (kind in VELOCITY and flows)
        for key in _PREDICTIONS
        for kind in map(_kind, args.get(key, []))
    )


def has_repa_settings(args: Mapping[str, list[Any]]) -> bool:
    """Return whether a checkpoint's settings are those of REPA's trainer, and not of SiT's."""
    return any(key in args for key in REPA_SETTINGS)


def check_base(
    args: Mapping[str, list[Any]], path: Path, training: Training, *, stated: bool
) -> list[str]:
    """Refuse a checkpoint that was not trained as its base's models are.

    Args:
        args: See `training_args`.
        path: The file; the last four parts of its path may name another model.
        training: How the base's models are trained.
        stated: Whether the user states that it is one of them.

    Returns:
        Notes on what is assumed or doubtful, none where the file or the user states it.

    Raises:
        ExportError: If the settings, or the path of a file that is not stated, name something else.
    """
    for key, values in args.items():
        for value in values:
            if reason := _unsupported(key, value, training):
                title = training.title
                raise ExportError(
                    f"{shown(str(path))}: its training settings have {key}={shown(repr(value))}, "
                    f"{reason}. Export a {title} that was trained with {title}'s own settings."
                )
    of_repa = has_repa_settings(args)
    if training.is_flow and states_velocity(args) and of_repa != training.has_projectors:
        verb, meant = ("have", "repa") if of_repa else ("lack", "sit")
        return [
            f"its training settings state a velocity and {verb} those of REPA "
            f"({', '.join(REPA_SETTINGS)}): is --base {meant} meant? Their times and velocities "
            "run in opposite directions"
        ]
    # A flow is loaded as one only where the user, the settings or the tensors state it.
    if (
        stated
        or training.is_flow
        or any(
            (key in _MODELS and _is_named(training, value))
            or (key in _PREDICTIONS and isinstance(value, str))
            for key, values in args.items()
            for value in values
        )
    ):
        return []
    name = "/".join(path.parts[-4:])
    if other := _OTHER_NAMES.search(name):
        raise ExportError(
            f"{shown(str(path))}: the path has {other[0]!r} in it, and nothing in the file states "
            "what it predicts; a model that predicts a velocity has a DiT's very tensors. State "
            "it: --base dit if it predicts the noise, --base sit or repa if it predicts a velocity."
        )
    return [
        "nothing in the file states what it predicts; taken to be a DiT that predicts the noise of "
        "DDPM's linear chain over 1,000 steps (a SiT has the same tensors). --base dit states it"
    ]


def _is_named(training: Training, value: Any) -> bool:
    return isinstance(value, str) and any(
        re.match(rf"{name}\b", value, re.IGNORECASE) for name in training.names
    )


def _kind(value: Any) -> str:
    """Return a prediction's name without the class that an enumeration's member is printed with."""
    return value.lower().rpartition(".")[2] if isinstance(value, str) else ""


def _unsupported(key: str, value: Any, training: Training) -> str | None:
    """Return why a setting is not supported, or None."""
    if key in _PREDICTIONS and isinstance(value, str):
        known = _kind(value) in training.predictions
        return None if known else f"expected a model that predicts {training.predicts}"
    if key in _FLOWS and value not in _NOT_A_FLOW:
        if not training.is_flow:
            return "expected a DDPM chain, not a flow (--base sit and repa are flows)"
        straight = not isinstance(value, str) or value.lower() in _STRAIGHT
        return None if straight else "expected the straight path, 'linear'"
    if key in _SWITCHES and value is True:
        return f"expected a model that predicts {training.predicts}, as it is"
    if key in _MODELS and isinstance(value, str):
        words = {word.lower() for word in _OTHER_MODELS.findall(value)}
        if words <= set(training.names) and not (training.is_flow and _is_named(DIT, value)):
            return None
        return f"expected a {training.title}"
    return None if training.is_flow else _unsupported_in_a_chain(key, value)


def _unsupported_in_a_chain(key: str, value: Any) -> str | None:
    expected = _CHAIN_SETTINGS.get(key)
    if expected is None or isinstance(value, str) != isinstance(expected, str):
        return None
    found = value.lower() if isinstance(value, str) else value
    return None if found == expected else f"expected {expected!r}"


def count_classes(rows: int, args: Mapping[str, list[Any]], where: str) -> tuple[int, list[str]]:
    """Return the number of classes of a label table, whose last row is the null class, and notes.

    A DiT trained with `class_dropout_prob=0` has a row per class and no other; its last class must
    not be taken for the null class of classifier-free guidance.

    Args:
        rows: Rows of the table.
        args: See `training_args`; `num_classes` and `class_dropout_prob` count.
        where: The file, as the message names it.

    Raises:
        ExportError: If the table has no null class, or one that was never trained, or if its size
            contradicts `num_classes`.
    """
    no_null = (
        "DIVER guides with a null class. Export a model that was trained with "
        "class_dropout_prob above 0"
    )
    for key in _DROPOUTS:
        # In a command line that was stored, numbers are texts.
        if any(value in (0, "0", "0.0") for value in args.get(key, [])):
            raise ExportError(
                f"{where}: was trained with {key}=0, so it has no trained null class; {no_null}."
            )
    stated = [value for value in args.get("num_classes", []) if type(value) is int]
    if stated and rows - 1 not in stated:
        if rows in stated:
            raise ExportError(
                f"{where}: the label table has {rows} rows for {rows} classes, so there is no null "
                f"class; {no_null}."
            )
        raise ExportError(
            f"{where}: the label table has {rows} rows, but its training settings have "
            f"num_classes={stated[0]}, expected {stated[0] + 1} rows. Give the file as it was "
            "saved."
        )
    if not stated and (rows < 2 or rows in CLASS_COUNTS):
        raise ExportError(
            f"{where}: the label table has {rows} rows, taken to be {rows} classes without a null "
            f"class; {no_null}. If it is {rows - 1} classes and a null class, save it with "
            f"args=argparse.Namespace(num_classes={rows - 1})."
        )
    if not stated and rows - 1 not in CLASS_COUNTS:
        return rows - 1, [
            "nothing in the file states how many classes it has; its label table of "
            f"{rows} rows is taken for {rows - 1} classes and a null class"
        ]
    return rows - 1, []
