"""Photos in, pictures out: any file a phone or an editor writes becomes 8-bit sRGB.

Legend: T frames, H, W pixels. Tensors are sRGB in [-1, 1].
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

from pocketfocus.errors import UserError
from pocketfocus.progress import console

MAX_PIXELS = 200_000_000  # a decompression bomb beyond this; 20 000 x 10 000 still opens
SMALLEST_SIDE = 16
WORKING_PIXELS = 256 * 256  # what the default reference and student were trained at
MULTIPLE = 64


def load_photo(path: Path) -> Image.Image:
    """Open a photo as 8-bit sRGB: upright (EXIF), its ICC profile applied, alpha over white.

    16 bits are scaled down, grey and palette images become RGB, CMYK is converted, of an animation
    the first frame is taken (saying so). Raises UserError for anything that is not a readable image
    of at least 16 x 16 and at most 200 million pixels.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a photo: name one image file")
    try:
        with _bomb_limit(), Image.open(path) as image:
            _check_size(path, image.size)
            frames = getattr(image, "n_frames", 1)
            if frames > 1:
                console.print(f"{path.name} holds {frames} frames: the first one is used")
            image.load()
            upright = ImageOps.exif_transpose(image)
            return _flatten(_to_srgb(upright, path.name))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: name an image file") from None
    except Image.DecompressionBombError:
        raise UserError(f"{path} has over {MAX_PIXELS:,} pixels: scale it down first") from None
    except UnidentifiedImageError:
        raise UserError(
            f"{path} is not an image that can be read (its content, not its name, decides): "
            "save it as JPEG, PNG, WebP or TIFF"
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError, ImageCms.PyCMSError) as error:
        raise UserError(f"{path} is damaged or cut short ({error}): export it again") from error


@contextmanager
def _bomb_limit() -> Iterator[None]:
    """Pillow warns above MAX_IMAGE_PIXELS and refuses above twice that; here it only refuses."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _check_size(path: Path, size: tuple[int, int]) -> None:
    if min(size) < SMALLEST_SIDE:
        raise UserError(
            f"{path} is {size[0]}x{size[1]} pixels, at least {SMALLEST_SIDE}x{SMALLEST_SIDE} are "
            "needed: name a larger photo"
        )


def _to_srgb(image: Image.Image, name: str) -> Image.Image:
    """Apply the embedded ICC profile; a broken one is ignored, saying so."""
    image = _eight_bits(image)
    profile = image.info.get("icc_profile")
    if not profile:
        return image
    mode = "RGBA" if image.mode in ("RGBA", "LA", "PA") else "RGB"
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if image.mode in ("P", "PA"):
            image = image.convert(mode)
        converted = ImageCms.profileToProfile(
            image, source, ImageCms.createProfile("sRGB"), outputMode=mode
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        console.print(f"{name}: its ICC profile cannot be used, sRGB is assumed")
        return image
    return converted if converted is not None else image


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit and float greys scaled to 8 bits; other modes as they are."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image, dtype=np.float64)
    if image.mode == "F":
        scale = 255.0 if values.max(initial=0.0) <= 1.0 else 1.0
    else:
        scale = 1.0 if values.max(initial=0.0) <= 255 and image.mode == "I" else 255.0 / 65535.0
    return Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8), "L")


def _flatten(image: Image.Image) -> Image.Image:
    """RGB, with any transparency laid over white."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def fit_size(width: int, height: int, max_pixels: int, multiple: int = MULTIPLE) -> tuple[int, int]:
    """The (width, height) in multiples of `multiple`, at most `max_pixels` in all, that keeps the
    aspect ratio best and, among equals, is largest; never below one multiple a side.

    ValueError when not even one multiple a side fits.
    """
    if max_pixels < multiple**2:
        raise ValueError(f"{max_pixels} pixels do not hold one {multiple}x{multiple} tile")
    aspect = math.log(width / height)
    most = max_pixels // multiple**2
    area = math.sqrt(most)

    def cost(size: tuple[int, int]) -> float:
        columns, rows = size
        stretch = abs(math.log(columns / rows) - aspect)
        return stretch + 0.5 * math.log(most / (columns * rows))

    longest = min(most, max(1, math.ceil(area * math.exp(abs(aspect) / 2)) + 1))
    sizes = [(c, r) for c in range(1, longest + 1) for r in range(1, min(longest, most // c) + 1)]
    columns, rows = min(sizes, key=cost)
    return columns * multiple, rows * multiple


def prepare(photo: Image.Image, size: tuple[int, int]) -> Tensor:
    """Resize to (width, height) with Lanczos: [1, 3, H, W] in [-1, 1]."""
    resized = photo.resize(size, Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1)
    return pixels[None].float() / 127.5 - 1


def to_uint8(frames: Tensor) -> NDArray[np.uint8]:
    """[T, 3, H, W] in [-1, 1] -> uint8 [T, H, W, 3], clipped and rounded."""
    scaled = ((frames.detach().float().clamp(-1, 1) + 1) * 127.5).round()
    pixels: NDArray[np.uint8] = scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return pixels


def to_image(frame: Tensor) -> Image.Image:
    """[3, H, W] in [-1, 1] -> an 8-bit RGB picture."""
    return Image.fromarray(to_uint8(frame[None])[0])
