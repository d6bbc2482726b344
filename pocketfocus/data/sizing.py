"""Pictures brought to a size: squeezed into it, cropped to it, or at most as large."""

from __future__ import annotations

from PIL import Image, ImageOps

from pocketfocus.run.constants import Size

ENOUGH = 2  # times the size of a stack that its frames are registered at


def near(image: Image.Image, size: Size | None) -> Image.Image:
    """Return an image at no more than `ENOUGH` times a size, for large ones take seconds and
    gigabytes to register."""
    if size is None:
        return image
    height, width = image.height, image.width
    share = ENOUGH * max(size[0] / height, size[1] / width)
    return image if share >= 1 else squeezed(image, (round(height * share), round(width * share)))


def sized(image: Image.Image, size: Size | None, crop: bool, aspect: float) -> Image.Image:
    """Return an image of which the lens saw that width over height in a size, if one is given."""
    if size is None:
        return image
    return _cropped(image, size, aspect) if crop else squeezed(image, size)


def squeezed(image: Image.Image, size: Size) -> Image.Image:
    """Return an image at a size (H, W), whatever its proportions are."""
    return image.resize((size[1], size[0]), Image.Resampling.LANCZOS)


def _cropped(image: Image.Image, size: Size, aspect: float) -> Image.Image:
    """Scale an image to what the lens saw and then into a size, cutting off what it does not
    hold."""
    seen = squeezed(image, (image.height, round(image.height * aspect)))
    return ImageOps.fit(seen, (size[1], size[0]), Image.Resampling.LANCZOS)
