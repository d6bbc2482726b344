"""Every source of focal stacks behind one interface, named as on the command line.

`synthetic`      procedural scenes with the bundled photos as textures
`photos:DIR`     procedural scenes with a folder's photos as textures too
`rgbd`           the bundled Middlebury motorcycle; `rgbd:DIR`, a folder of photos with depth maps
`DIR`            a folder a scene, or Learn2Refocus's own layout; broken scenes are skipped

A folder of stacks may hold `train_scenes.txt` and `test_scenes.txt`, names of scenes one a line:
the first are for training, the second for evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketfocus.data.photo_scenes import PhotoScenes
from pocketfocus.data.scenes import (
    VALIDATION_SEED,
    Photos,
    held_out_photos,
    train_photos,
)
from pocketfocus.data.stacks import (
    NAMED,
    RenderedScenes,
    Source,
    StackFolder,
    read_photos,
)
from pocketfocus.photos.images import load_photo
from pocketfocus.run.constants import Size
from pocketfocus.run.errors import UserError
from pocketfocus.run.progress import say

SYNTHETIC, PHOTOS, RGBD_PAIRS = "synthetic", "photos", "rgbd"
TRAIN, TEST = "train", "test"
RENDERED: Size = (256, 256)
SCENES_APART, SETS = 20_000, VALIDATION_SEED // 20_000  # of training, by `Request.seed`
TEXTURES_KEPT = 128  # about 200 MB of them
Pixels = NDArray[np.uint8]
TEXTURE_SIDE = 900  # photos are scaled down to this for textures: scenes are 256 pixels wide


@dataclass(frozen=True)
class Request:
    """What is wanted of a source: of rendered ones so many `scenes`, with `photos` as textures
    beside the bundled ones; of a folder those of `split`.

    size: (height, width); None is 256 by 256 for rendered scenes and a folder's own otherwise.
    crop: keep the proportions of a folder's images.
    register: undo how a folder's frames move against each other; rendered ones do not.
    phone_width: of `PhotoScenes`.
    seed: another one has other rendered scenes of `TRAIN`; those of `TEST` are always the same.
    """

    scenes: int
    size: Size | None
    split: str = TRAIN
    photos: tuple[Path, ...] = ()
    crop: bool = True
    register: bool = False
    phone_width: int | None = None
    seed: int = 0

    @property
    def rendered(self) -> Size:
        return self.size or RENDERED

    @property
    def seeds(self) -> range:
        train = self.split == TRAIN
        first = self.seed % SETS * SCENES_APART if train else VALIDATION_SEED
        return range(first, first + self.scenes)


def open_source(spec: str, request: Request) -> Source:
    """Return a source by its name; UserError, naming the kinds, when there is none such."""
    check_source(spec)
    if is_rendered(spec):
        kind, _, folder = spec.partition(":")
        return KINDS[kind](folder, request)
    only = scene_list(Path(spec), request.split)
    return StackFolder(Path(spec), request.size, only, request.crop, request.register)


def check_source(spec: str) -> None:
    """Raise UserError, naming the kinds, for a name that is neither one of them nor a folder."""
    if spec.partition(":")[0] not in KINDS and not Path(spec).is_dir():
        raise UserError(
            f"no focal stacks at {spec}: name a folder of them, `{SYNTHETIC}`, `{PHOTOS}:DIR` (a "
            f"folder of photos as textures), or `{RGBD_PAIRS}:DIR` (photos with depth maps)"
        )


def is_rgbd(spec: str) -> bool:
    """Say whether a name is that of scenes of photos with depth."""
    return is_rendered(spec) and spec.partition(":")[0] == RGBD_PAIRS


def is_rendered(spec: str) -> bool:
    """Say whether a name is one of `KINDS`, of which a folder of that very name is none: ./NAME."""
    return spec in KINDS or not Path(spec).exists()


def scene_list(folder: Path, split: str) -> set[str] | None:
    """Return the names in a folder's list for a split, None when it has no list.

    Names of which the folder has no scene are left out, saying so. UserError for an empty list, for
    one of such names alone, and for one that is there as a pickle only, as Learn2Refocus publishes
    them: those are not opened.
    """
    path = folder / f"{split}_scenes.txt"
    if path.is_file():
        names = _lines(path)
        if not names:
            raise UserError(f"{path} is empty: name a scene of {folder} a line, or delete it")
        missing = sorted(names - {entry.name for entry in folder.iterdir() if entry.is_dir()})
        if missing:
            some = ", ".join(missing[:NAMED]) + ", …" * (len(missing) > NAMED)
            if len(missing) == len(names):
                raise UserError(
                    f"{folder} holds none of the {len(names)} scenes that {path.name} names "
                    f"({some}): name a folder in it a line, spelled alike, or delete the list"
                )
            say(f"warning: {len(missing)} of {len(names)} scenes in {path} are not there: {some}")
        return names - {*missing}
    pickled = path.with_suffix(".pkl")
    if pickled.exists():
        raise UserError(
            f"{pickled} is a pickle, which can run code and is refused: write its names, one a "
            f"line, into {path.name}"
        )
    return None


def _lines(path: Path) -> set[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): save it as UTF-8 text") from error
    return {line.strip() for line in text.splitlines()} - {""}


class Textures(Sequence[Pixels]):
    """Photos [H, W, 3] uint8 for the surfaces of rendered scenes: some that are there, and files,
    which are decoded as they are asked for; `TEXTURES_KEPT` of them stay decoded."""

    def __init__(self, files: Sequence[Path], there: Photos = ()) -> None:
        self.files, self.there = tuple(files), tuple(there)

    def __len__(self) -> int:
        return len(self.there) + len(self.files)

    def __getitem__(self, index: int) -> Pixels:  # type: ignore[override]
        """Return one photo; there are no slices of them."""
        place = range(len(self))[index] - len(self.there)
        return self.there[place] if place < 0 else texture(self.files[place])


@lru_cache(TEXTURES_KEPT)
def texture(file: Path) -> Pixels:
    """Return a photo as a texture."""
    picture = load_photo(file)
    picture.thumbnail((TEXTURE_SIDE, TEXTURE_SIDE))
    return np.asarray(picture)


def _synthetic(folder: str, request: Request, extra: Sequence[Path] = ()) -> Source:
    if folder:
        raise UserError(f"{SYNTHETIC}:{folder} is no source: name {SYNTHETIC} alone")
    photos: Photos = held_out_photos() if request.split == TEST else train_photos()
    found = Textures([*request.photos, *extra], photos)
    return RenderedScenes(request.seeds, request.rendered, found)


def _photos(folder: str, request: Request) -> Source:
    return _synthetic("", request, read_photos(Path(folder)))


def _rgbd(folder: str, request: Request) -> Source:
    return PhotoScenes(
        Path(folder) if folder else None,
        request.rendered,
        request.seeds,
        request.phone_width,
        request.split == TEST,
    )


KINDS: dict[str, Callable[[str, Request], Source]] = {
    SYNTHETIC: _synthetic,
    PHOTOS: _photos,
    RGBD_PAIRS: _rgbd,
}
