"""What names a reference or a shipped student, and where its files are, without torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from pocketfocus.run.errors import UserError
from pocketfocus.run.files import sha256

WEIGHTS = Path(__file__).parent.parent / "weights"
DEFAULT_WEIGHTS = WEIGHTS / "reference"
STUDENT = "student"
STUDENTS = {name: WEIGHTS / name for name in (STUDENT, "student-open")}
"""The shipped students by their names; the second learned from openly licensed photos alone."""
LEARN2REFOCUS = "tedlasai/learn2refocus"
LEARN2REFOCUS_UNET = "checkpoint-200000/unet"
BASE = "stabilityai/stable-video-diffusion-img2vid"
SVD = "svd"  # its name as the start of a fine-tuning
FP16 = ":fp16"
REVISION = "#"  # between a Hub id and a branch, tag or commit of it
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(#[\w-][\w.-]*(/[\w-][\w.-]*)*)?")
COMPONENTS = ("vae", "image_encoder", "scheduler")  # folders of a base
SAMPLING_FILE = "sampling.json"  # of a consistency model: steps, guidance, temperature
RECORDS = (SAMPLING_FILE, "training.json")  # beside a UNet: how to draw, and how it was trained
CHECKPOINT = "checkpoint-"  # of a fine-tuning, with the number of its step


def shipped_student(name: str) -> Path | None:
    """Return the folder of a shipped student by its name, unless something here is called so."""
    return None if Path(name).exists() else STUDENTS.get(name)


@dataclass(frozen=True)
class Places:
    """Where a reference is: local folders in the diffusers layout, or Hub ids.

    Attributes:
        base: holds vae/, image_encoder/ and scheduler/.
        unet: what holds the UNet, and its folder there.
        name: the reference's.
        variant: of the weights of autoencoder and UNet, preferred where both are there: None for
            the full ones, or `fp16`.
        tuned: whether the UNet was tuned away from its base, whose number of frames its config may
            still tell, as that of the published one does.
    """

    base: str
    unet: tuple[str, str]
    name: str
    variant: str | None = None
    tuned: bool = False

    @property
    def roots(self) -> tuple[str, ...]:
        """The places, each once."""
        return tuple(dict.fromkeys((self.unet[0], self.base)))

    @property
    def folders(self) -> list[Path]:
        """The local ones; fewer than there are places where the rest is on the Hub."""
        return [Path(root) for root in self.roots if _is_local(root)]

    @property
    def on_hub(self) -> bool:
        """Whether something has to be fetched."""
        return len(self.folders) < len(self.roots)

    @property
    def key(self) -> str:
        """What tells this reference from another: hashes of what is loaded of its local folders,
        wherever they lie, the names of what is on the Hub, and the variant.

        What else is there does not count, such as stacks and checkpoints of its training.
        """
        found = "+".join(
            sha256(Path(root), self._loaded_from(root)) if _is_local(root) else root
            for root in self.roots
        )
        return found if self.variant is None else f"{found}:{self.variant}"

    @property
    def weights(self) -> list[Path]:
        """The files of weights on this disk that are loaded."""
        local = [root for root in self.roots if _is_local(root)]
        parts = [Path(root) / part for root in local for part in self._loaded_from(root)]
        return [path for part in parts for path in part.glob("*.safetensors")]

    def _loaded_from(self, root: str) -> tuple[str, ...]:
        """Return the folders and files of a root that say what the reference is."""
        own = (self.unet[1], *RECORDS) if root == self.unet[0] else ()
        return (*own, *COMPONENTS) if root == self.base else own


def find_places(spec: str) -> Places:
    """Return the places that `spec` names.

    `spec` is `default` (shipped), `learn2refocus` (the published model), a local folder in the
    diffusers layout (unet/, vae/, image_encoder/, scheduler/), a Hub id of that layout, or
    UNET+BASE, two of these: a fine-tuned UNet (unet/, checkpoint-*/unet/ as Learn2Refocus has it,
    or the UNet's own folder) and what it was tuned from. Of what is on the Hub `#REVISION`, a
    branch, a tag or a commit, may be said; else it is the newest. With `:fp16` after any of them
    the fp16 files of autoencoder and UNet are taken where there are such, as the authors take them;
    the full ones are otherwise. UserError when it names none of them.
    """
    root = spec if _is_local(spec) else spec.removesuffix(FP16)
    variant = None if root == spec else FP16[1:]
    published, revision = hub_place(root)
    if published in ("learn2refocus", LEARN2REFOCUS) and "+" not in root:
        unet = LEARN2REFOCUS + (f"{REVISION}{revision}" if revision else "")
        name = "learn2refocus" + spec[len(published) :]
        return Places(BASE, (unet, LEARN2REFOCUS_UNET), name, variant, tuned=True)
    if root == "default":
        root = str(DEFAULT_WEIGHTS)
    finetuned, plus, base = root.partition("+")
    if not plus or _is_local(root):
        finetuned = base = root
    for place in (finetuned, base):
        hub_id = HUB_ID.fullmatch(place) is not None
        if not place or not (hub_id or _is_local(place)):
            raise UserError(
                f"no reference at {place or spec}: name `default`, `learn2refocus`, a local folder "
                "in the diffusers layout, a Hub id such as owner/model or owner/model#revision, or "
                "the folders of a fine-tuned UNet and of its base, UNET_DIR+BASE_DIR"
            )
    folder = _unet_folder(finetuned)
    if _is_local(finetuned) and not (Path(finetuned) / folder / "config.json").is_file():
        raise UserError(
            f"{finetuned} is no reference (it has no {folder}/config.json): name a folder in the "
            "diffusers layout, made by `pocketfocus train-reference`"
        )
    tuned = finetuned != base or folder.startswith(CHECKPOINT)
    return Places(base, (finetuned, folder), spec, variant, tuned)


def find_start(spec: str) -> Places:
    """Return the places of what a fine-tuning starts from: `svd`, the published video model, with
    `:fp16` or without, or what `find_places` takes, of any number of frames."""
    named = spec in (SVD, SVD + FP16)
    return replace(find_places(BASE + spec[len(SVD) :] if named else spec), tuned=True)


def hub_place(root: str) -> tuple[str, str | None]:
    """Return the Hub id of a place that is no local folder, and its revision, None for the newest
    state; of a local folder itself."""
    if _is_local(root):
        return root, None
    name, _, revision = root.partition(REVISION)
    return name, revision or None


def _is_local(root: str) -> bool:
    return Path(root).is_dir()


def _unet_folder(root: str) -> str:
    """Return where below `root` the UNet lies: unet/, the last of checkpoint-*/unet/, or root
    itself."""
    if hub_place(root)[0] == LEARN2REFOCUS:
        return LEARN2REFOCUS_UNET
    if (Path(root) / "unet").is_dir() or not _is_local(root):
        return "unet"
    steps = [p.parent.name for p in Path(root).glob(f"{CHECKPOINT}*/unet") if p.is_dir()]
    if steps:
        return f"{max(steps, key=lambda name: (len(name), name))}/unet"
    return "" if (Path(root) / "config.json").is_file() else "unet"
