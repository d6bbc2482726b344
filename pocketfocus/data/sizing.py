"""Pictures brought to a size: squeezed into it, cropped to it, or at most as large."""

from __future__ import annotations

from PIL import Image, ImageOps

from pocketfocus.run.constants import Size

LARGEST = 640  # pixels of the longer side of a photo that windows are cut out of
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


def limited_size(size: Size, longest: int = LARGEST, shortest: int = 1) -> Size:
    """Return a size (H, W) scaled down to so many pixels at its longer side, of which the shorter
    one keeps as many as are needed; one that is no larger as it is."""
    scale = max(longest / max(size), shortest / min(size))
    if scale >= 1:
        return size
    return round(size[0] * scale), round(size[1] * scale)


def limited(image: Image.Image, longest: int = LARGEST, shortest: int = 1) -> Image.Image:
    """Return an image at its `limited_size`."""
    own = image.height, image.width
    size = limited_size(own, longest, shortest)
    return image if size == own else squeezed(image, size)


def _cropped(image: Image.Image, size: Size, aspect: float) -> Image.Image:
    """Scale an image to what the lens saw and then into a size, cutting off what it does not
    hold."""
    seen = squeezed(image, (image.height, round(image.height * aspect)))
    return ImageOps.fit(seen, (size[1], size[0]), Image.Resampling.LANCZOS)
