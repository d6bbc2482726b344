from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketfocus.data.stacks import StackFolder
from pocketfocus.distill.student import plan
from pocketfocus.distill.student.options import REFERENCE, STACKS, Distillation
from pocketfocus.distill.train.crops import Crops
from pocketfocus.models.places import Places
from pocketfocus.photos.images import to_uint8
from pocketfocus.run.constants import FRAMES
from pocketfocus.run.errors import UserError


def test_references_that_differ_on_the_hub_alone_have_keys_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One base's teacher stacks once served the other."""
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}", encoding="utf-8")
    options = Distillation(learn_from=REFERENCE)
    keys = []
    for base in ("owner/svd", "owner/svd-xt"):
        places = Places(base, (str(tmp_path), "unet"), "tuned")
        monkeypatch.setattr(plan, "find_places", lambda _, found=places: found)
        keys.append(plan.make_plan(replace(options, reference=f"{tmp_path}+{base}")).key)
    assert keys[0] != keys[1]


@pytest.mark.parametrize("method", ["consistency", "prior"])
def test_rounding_is_refused_where_nothing_learns_through_it(method: str) -> None:
    """`prior` once took `--qat` and did without."""
    with pytest.raises(UserError, match=f"{method} trains no student that --qat could round"):
        plan.make_plan(Distillation(method=method, qat="int8"))


@pytest.mark.parametrize("side, taken", [(48, 48), (96, 64), (24, 64)])
def test_small_stacks_stay_as_they_are_if_they_hold_crops(
    side: int, taken: int, tmp_path: Path, options: Callable[..., Distillation]
) -> None:
    """Of 64-pixel photos: windows into phone pictures were once enlarged, and with them their blur.

    Larger ones are scaled down, and those too small for a crop of 32 are still enlarged."""
    folder = tmp_path / "scene"
    folder.mkdir()
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
    for position in range(FRAMES):
        Image.fromarray(pixels).save(folder / f"{position}.png")
    chosen = options(sources=(str(tmp_path),), learn_from=STACKS, crops=(Crops(1.0, 1, 32),))
    ((size, (source,)),) = plan.make_plan(chosen).sources.items()
    assert size == (taken, taken)
    assert isinstance(source, StackFolder) and source.register  # what moves teaches to blur
    stack = source.load(0)
    assert stack is not None and stack.frames.shape[-2:] == size
    if side == taken:
        assert np.array_equal(to_uint8(stack.frames)[0], pixels)
