"""What every model is to the rest: photo and focal position in, focal stack out.

The reference, a student, an exported file and the baselines are all called through `refocus`.
Legend: T = 9 frames, H, W.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pocketfocus.models.analyse import Analyser
from pocketfocus.models.render import aperture_of, focus_weights
from pocketfocus.run.constants import FRAMES, MULTIPLE, Size, check_position, size_text
from pocketfocus.run.errors import UserError


@dataclass(frozen=True)
class Model:
    """A model at work: `model(photo [1, 3, H, W], position 0..8) -> stack [9, 3, H, W]`, sRGB in
    [-1, 1].

    Attributes:
        name: what tables and pages call it.
        size: the only (H, W) that it takes; None for any whose sides are multiples of `multiple`.
        call: makes the stack, of a photo and a position that were checked.
        analyser: makes images of a photo of any size and shape, at that size; None where there are
            stacks alone.
        fit: the size at which it works on a photo of (H, W) that is resized for it; None where
            that is not known.
        multiple: see `size`.
        reconstruct: gives true frames [N, 3, H, W] as they come out again, of an autoencoder: the
            bound of what uses it. None for models that are given the photo.
    """

    name: str
    size: Size | None
    call: Callable[[Tensor, int], Tensor]
    analyser: Analyser | None = None
    fit: Callable[[Size], Size] | None = None
    multiple: int = MULTIPLE
    reconstruct: Callable[[Tensor], Tensor] | None = None

    def __call__(self, photo: Tensor, position: int) -> Tensor:
        """Return the stack; UserError for a photo or position that the model does not take."""
        check_input(self.name, photo, position, self.size, self.multiple)
        with torch.inference_mode():
            return self.call(photo.float(), position)


@torch.inference_mode()
def refocus(
    model: Model,
    photo: Tensor,
    position: int,
    scene: str = "the photo",
    aspect: float | None = None,
) -> Tensor:
    """Run a model on a photo [1, 3, H, W] of any size: the stack [9, 3, H, W], clamped to [-1, 1].

    A model with an analyser gets the photo at a size of its own, in the proportions that the lens
    saw, if `aspect` says that it was squeezed, and frames are rendered at the photo's. Another of
    one size gets the photo resized (bicubic, antialiased) and its stack is resized back; for one
    that needs multiples, edges are repeated and cropped off again. `scene` is what errors call the
    photo. UserError for a photo or position that is none, and for a model that makes a stack of
    another shape or values that are not finite.
    """
    check_input(model.name, photo, position, multiple=1)
    if model.analyser is not None:
        analysed, _ = model.analyser.analyse_whole(photo, position, scene, aspect)
        weights = (focus_weights(float(at)) for at in range(FRAMES))
        return torch.cat([analysed.render(photo, focus, aperture_of(1.0)) for focus in weights])
    height, width = photo.shape[-2:]
    if model.size is not None:
        stack = _run(model, resized(photo, model.size), position, scene)
        return resized(stack, (height, width)).clamp(-1, 1)
    padding = (0, -width % model.multiple, 0, -height % model.multiple)
    given = F.pad(photo, padding, mode="replicate") if any(padding) else photo
    return _run(model, given, position, scene)[..., :height, :width].clamp(-1, 1)


def check_input(
    name: str, photo: Tensor, position: int, size: Size | None = None, multiple: int = MULTIPLE
) -> None:
    """Raise UserError unless the photo is [1, 3, H, W] of `size`, or else with sides in multiples,
    and the position one of the nine."""
    check_position(position)
    if photo.ndim != 4 or photo.shape[:2] != (1, 3):
        raise UserError(
            f"{name} takes a photo [1, 3, H, W] with sides in multiples of {multiple}, this one is "
            f"{list(photo.shape)}: resize it"
        )
    height, width = photo.shape[2:]
    if size is not None and (height, width) != size:
        raise UserError(
            f"{name} takes photos of {size_text(size)} pixels, this one has "
            f"{size_text((height, width))}: resize it"
        )
    if size is None and (height % multiple or width % multiple):
        raise UserError(
            f"{name} takes sides that are multiples of {multiple}, this photo has "
            f"{size_text((height, width))}: resize it"
        )


def _run(model: Model, photo: Tensor, position: int, scene: str) -> Tensor:
    stack, wanted = model(photo, position).float().cpu(), [FRAMES, *photo.shape[1:]]
    if list(stack.shape) != wanted:
        raise UserError(
            f"{model.name} gives {list(stack.shape)}, a stack of {wanted} is needed: export it "
            "again, or name another model"
        )
    if not bool(stack.isfinite().all()):
        raise UserError(
            f"{model.name} makes values that are not finite from {scene}, position {position}: try "
            "another precision, or leave it out"
        )
    return stack


def resized(images: Tensor, size: Size) -> Tensor:
    """Scale images [B, 3, H, W] in [-1, 1] to (height, width), bicubic and antialiased."""
    if tuple(images.shape[-2:]) == size:
        return images
    resized = F.interpolate(images.float(), size, mode="bicubic", antialias=True)
    return resized.clamp(-1, 1)
