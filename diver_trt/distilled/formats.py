"""The formats that distillation methods write, and what each leaves unsaid.

What a file does not hold, how many images are glued into one, or what its values were normalised with, is taken from the method's own code
and can be overridden. A name is what `--format` takes; the methods beside it share their files' structure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from diver_trt.errors import DatasetError

LARGE_PIXELS = 128
"""Images of this side and more are ImageNet's, for which some methods choose other collages."""


@dataclass(frozen=True, slots=True)
class Format:
    """One way to store a distilled dataset.

    Attributes:
        name: What `--format` takes.
        methods: Which methods write it, as it is said on screen.
        holds: Image files in folders, or tensors in a file.
        collage: Images along a side of each stored one, below `LARGE_PIXELS`.
        large_collage: The same for larger ones.
        advice: What to know about it, said once.
    """

    name: str
    methods: str
    holds: Literal["folders", "tensors"]
    collage: int = 1
    large_collage: int = 1
    advice: str | None = None

    def default_collage(self, side: int) -> int:
        """Return the documented collage factor for stored images of this side in pixels."""
        return self.large_collage if side >= LARGE_PIXELS else self.collage


_STALE = "soft labels saved for these images (FKD) do not fit the recovered ones: label those anew"

FORMATS = {
    entry.name: entry
    for entry in (
        Format("folders", "class folders", "folders"),
        Format(
            "sre2l",
            "SRe2L, CDA, DWA, G-VBSM or EDC",
            "folders",
            advice=f"{_STALE}; EDC's ImageNet images are collages: --collage 2",
        ),
        Format("rded", "RDED", "folders", 1, 2),
        Format(
            "d4m",
            "D4M",
            "folders",
            advice=f"{_STALE}; D4M's prompts swap ImageNet's two cranes, 134 and 517",
        ),
        Format("minimax", "Minimax, IGD or MGD3", "folders"),
        Format("mtt", "MTT, TESLA, DATM, EDF or SeqMatch", "tensors"),
        Format(
            "glad",
            "GLaD",
            "tensors",
            advice="GLaD's latents (--space wp) are normalised with SVHN's mean; for --space p say --normalisation imagenet",
        ),
        Format("dc", "DC, DSA, DM or CAFE", "tensors"),
        Format("idc", "IDC", "tensors", 2, 3),
        Format("dream", "DREAM or SeqMatch-IDC", "tensors", 2, 2),
        Format("ncfm", "NCFM", "tensors", 2, 2),
        Format("frepo", "FRePo", "tensors"),
        Format("kip", "KIP", "tensors"),
        Format("arrays", "plain", "tensors"),
    )
}

RECOVERED = Format("recovered", "images recovered by diver-trt", "folders")
"""Our own output; its manifest says what it is, so nobody has to."""


def find_format(name: str, holds: Literal["folders", "tensors"]) -> Format:
    """Return the format that `--format` asks for, a name of `FORMATS`.

    Raises:
        DatasetError: If it is a format of the other kind.
    """
    choices = [entry.name for entry in FORMATS.values() if entry.holds == holds]
    if name not in choices:
        raise DatasetError(
            f"--format {name} is a format of {FORMATS[name].holds}, but the input holds {holds}; expected one of {', '.join(choices)}"
        )
    return FORMATS[name]


def format_of_folders(folder: Path, file: Path) -> Format:
    """Return the format that the names of a class folder and of an image in it tell of."""
    if re.fullmatch(r"new\d{3,5}", folder.name) and re.match(r"class\d+_id\d+", file.name):
        return FORMATS["sre2l"]
    if re.fullmatch(r"\d{5}", folder.name) and re.fullmatch(r"class\d{5}_id\d{5}", file.stem):
        return FORMATS["rded"]
    if folder.name.isdigit() and re.fullmatch(rf"{int(folder.name[:9])}-image\d+", file.stem):
        return FORMATS["d4m"]
    if re.fullmatch(r"n\d{8}", folder.name) and re.fullmatch(r"\d{1,6}\.png", file.name):
        return FORMATS["minimax"]
    return FORMATS["folders"]


def format_of_list(file: Path) -> Format:
    """Return the format of a list `[images, labels]` by the file's name."""
    if re.fullmatch(r"data_(\d+|init)", file.stem):
        return FORMATS["ncfm"]
    if re.fullmatch(r"data(\d+|_best|_com_best)", file.stem):
        return FORMATS["dream"]
    return FORMATS["idc"]


_GLAD_DATASETS = r"imagenet-(fruits|yellow|cats|birds|[a-e])"
"""Names of data sets that GLaD's code alone has."""


def format_of_tensors(file: Path) -> Format:
    """Return the format of a bare tensor: GLaD pads its iterations to five digits and names its data sets in its own way."""
    padded = any(
        re.fullmatch(r"images_0\d{4}", sibling.stem)
        for sibling in file.parent.glob("images_0????.*")
    )
    folders = [part.lower() for part in file.resolve().parts[-5:-1]]
    named = any(
        re.search(r"(^|[^a-z])glad([^a-z]|$)", part) or re.fullmatch(_GLAD_DATASETS, part)
        for part in folders
    )
    return FORMATS["glad" if padded or named else "mtt"]


def format_of_experiments(file: Path) -> Format:
    """Return the format of a dictionary of experiments: GLaD's own DC and DM write such files too, of its data sets."""
    return FORMATS["glad" if re.match(rf"res_[^_]+_{_GLAD_DATASETS}_", file.stem) else "dc"]


_COLLAGE_NAMES = {
    "rded": re.compile(r"_f([1-9])_mipc\d+_"),
    "idc": re.compile(r"_factor([1-9])(_|$)"),
    "dream": re.compile(r"_factor([1-9])(_|$)"),
}
"""How methods write the collage factor into the names of their folders: `imagenet-nette_resnet18_f2_mipc300_ipc10_cr5/syn_data`,
`conv3in_grad_mse_nd2000_cut_niter2000_factor2_lr0.005_ipc10/data.pt`."""


def collage_of_path(folder: Path, entry: Format) -> int | None:
    """Return the collage factor that a folder's name, or that of one around it, tells of a set of this format."""
    if pattern := _COLLAGE_NAMES.get(entry.name):
        for part in reversed(folder.resolve().parts):
            if match := pattern.search(part):
                return int(match[1])
    return None


_SUBSET_NAMES = {
    "imagefruits": "imagefruit",
    "imagenetfruits": "imagefruit",
    "imagenetfruit": "imagefruit",
    "imagenetyellow": "imageyellow",
    "imagenetcats": "imagemeow",
    "imagenetmeow": "imagemeow",
    "imagenetbirds": "imagesquawk",
    "imagenetsquawk": "imagesquawk",
    "imagenetnette": "imagenette",
    "imagenetwoof": "imagewoof",
    **{
        name: name
        for name in (
            "imagenette",
            "imagewoof",
            "imagefruit",
            "imageyellow",
            "imagemeow",
            "imagesquawk",
        )
    },
    **{f"imagenet{letter}": f"imagenet-{letter}" for letter in "abcde"},
    **{f"imagenet{count}": f"imagenet-{count}" for count in (10, 100)},
}
"""How methods call the subsets in the names of their folders, without punctuation."""


def subset_of_path(path: Path) -> str | None:
    """Return the ImageNet subset that a path names, if its last folders name one and no other."""
    found = set()
    for part in path.resolve().parts[-5:]:
        words = [word for word in re.split(r"[^a-z0-9]+", part.lower()) if word]
        pairs = (
            first + second for first, second in pairwise(words)
        )  # imagenet-10, imagenet_fruits
        found |= {_SUBSET_NAMES[name] for name in (*pairs, *words) if name in _SUBSET_NAMES}
    return found.pop() if len(found) == 1 else None
