"""Photos in, pictures out: any file a phone or an editor writes becomes 8-bit sRGB.

Here alone 8-bit pixels become tensors in [-1, 1] and back. Legend: H, W pixels; tensors are sRGB.
"""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

from pocketfocus.run.constants import MULTIPLE, Size, size_text
from pocketfocus.run.errors import UserError
from pocketfocus.run.progress import say

MAX_PIXELS = 200_000_000  # a decompression bomb beyond this; 20 000 x 10 000 still opens
SMALLEST_SIDE = 16
LONGEST_ASPECT = 16
DRAFT = (64, 64)  # pixels at least
DNG_VERSION, THUMBNAIL, PLANES_APART = 50706, 1, 2  # a tag of TIFF files, and values of others
BYTE, DEEP, UNUSED = 8, 16, 4  # bits of a colour; the last are the highest ones of 12 in 16
WORKING_PIXELS = 256 * 256  # what the default reference and student were trained at

pillow_heif.register_heif_opener()

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "HEIF", "AVIF", "GIF", "BMP", "JPEG2000", "PPM")
"""Pillow's names of what is opened: no others, some of which start programs, as EPS does."""

BROKEN = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for files that are damaged, foreign or too large."""

Pixels = NDArray[Any]
"""uint8 or uint16 [H, W, 3], red, green, blue; black is 0, white the largest number of the type."""

_MODE_OF_SPACE = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "LAB": "LAB"}


def load_photo(path: Path) -> Image.Image:
    """Open a photo as 8-bit sRGB: upright (EXIF), its ICC profile applied, alpha over white.

    16 bits are scaled down, grey and palette images become RGB, CMYK is converted (through its
    profile if it has one), of an animation the first frame is taken (saying so); EXIF data or a
    profile that cannot be read is ignored (saying so). Raises UserError for anything that is not a
    readable image of at least 16 pixels a side, at most 200 million pixels, and at most 16 times
    as long as wide.
    """
    with opened(path) as image:
        return to_srgb(ImageOps.exif_transpose(image), path.name)


@contextmanager
def opened(path: Path, draft: bool = False) -> Iterator[Image.Image]:
    """Yield the image of a file, decoded, as its file has it; EXIF data that cannot be read are
    gone (saying so). A `draft` of a JPEG file is small. UserError as of `load_photo`, also for what
    goes wrong with it meanwhile."""
    path = Path(path)
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder, not a photo: name one image file")
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a regular file: name an image file")
        with bomb_limit(), Image.open(path, formats=FORMATS) as image:
            _check_size(path, size_of(image))
            _check_frames(path, image)
            _check_tiff(path, image)
            if draft:
                image.draft("RGB", DRAFT)
            image.load()
            _check_depth(path, image)
            yield _with_sound_exif(image, path.name)
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise UserError(
            f"{path} has over {MAX_PIXELS:,} pixels: scale it down, then name the smaller file"
        ) from None
    except UnidentifiedImageError:
        raise UserError(_unknown_content(path)) from None
    except Exception as error:  # on damaged files decoders raise nearly anything
        raise UserError(_unreadable(path, error)) from error


@contextmanager
def bomb_limit() -> Iterator[None]:
    """Let Pillow refuse what it warns of: it warns above MAX_IMAGE_PIXELS and refuses above twice
    that."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # decoders' remarks; what matters raises
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _check_size(path: Path, size: Size) -> None:
    found = f"{path} is {size_text(size)} pixels"
    if min(size) < SMALLEST_SIDE:
        raise UserError(
            f"{found}, at least {SMALLEST_SIDE}x{SMALLEST_SIDE} are needed: name a larger photo"
        )
    if max(size) > LONGEST_ASPECT * min(size):
        raise UserError(
            f"{found}, over {LONGEST_ASPECT} times as long as wide: crop it, then name the crop"
        )


def _check_frames(path: Path, image: Image.Image) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a phone's JPEG with a depth map or preview behind
        say(f"{path.name} holds {frames} frames: the first one is used")


def _check_tiff(path: Path, image: Image.Image) -> None:
    """Raise UserError for a TIFF file whose first picture is not the photo, or cannot be decoded
    by Pillow, which then gives another picture."""
    if image.format != "TIFF":
        return
    tags = image.tag_v2  # type: ignore[attr-defined]
    if DNG_VERSION in tags:
        raise UserError(
            f"{path} is a raw photo (DNG), of which only a preview can be read: develop it, then "
            "name the JPEG or TIFF"
        )
    if int(tags.get(ExifTags.Base.NewSubfileType, 0)) & THUMBNAIL:
        raise UserError(
            f"{path} begins with a thumbnail, which is all that would be read: save the photo alone"
        )
    planes = tags.get(ExifTags.Base.PlanarConfiguration, 1) == PLANES_APART
    if planes and bits_of(path, image) > BYTE:
        raise UserError(
            f"{path} keeps {bits_of(path, image)}-bit colours apart, plane by plane, which cannot "
            "be read: save it with its colours interleaved (planar configuration 1)"
        )


def _check_depth(path: Path, image: Image.Image) -> None:
    """Raise UserError for 12 bits that were put into 16 unscaled, which would be nearly black; and
    leave out a 16-bit file's transparent colour, which Pillow compares with 8 bits, saying so."""
    if image.format not in ("TIFF", "PNG") or bits_of(path, image) != DEEP:
        return
    if image.info.pop("transparency", None) is not None:
        say(f"{path.name}: its transparent colour, of 16 bits, is taken as any other")
    if image.mode not in ("L", "RGB", "I;16", "I;16B", "I;16L"):
        return
    ends = np.asarray(image)
    largest, white = int(ends.max()), int(np.iinfo(ends.dtype).max)
    if 0 < largest <= white >> UNUSED:
        raise UserError(
            f"{path} has 16 bits a colour and uses the lowest {DEEP - UNUSED}, so that white is "
            f"nearly black: scale its values by {1 << UNUSED}, then name that file"
        )


def bits_of(path: Path, image: Image.Image) -> int:
    """Return how many bits a colour of a PNG, TIFF or AVIF file has."""
    if image.format == "TIFF":
        bits = image.tag_v2.get(ExifTags.Base.BitsPerSample, (BYTE,))  # type: ignore[attr-defined]
        return max(bits)
    with open(path, "rb") as file:
        start = file.read(4096)
    if image.format == "PNG":
        return start[24]
    at = start.find(b"av1C")
    return 10 if image.format == "AVIF" and at >= 0 and start[at + 6] & 0x40 else BYTE


def check_photo(path: Path) -> None:
    """Raise UserError as of `load_photo`, decoding a JPEG file at an eighth of its size."""
    with opened(path, draft=True):
        pass


def is_photo(path: Path) -> bool:
    """Return whether a file's content is that of an image of any kind, whole or not."""
    try:
        with bomb_limit(), Image.open(path, formats=FORMATS):
            return True
    except BROKEN as error:
        return isinstance(error, Image.DecompressionBombError)


def _unknown_content(path: Path) -> str:
    if path.stat().st_size == 0:
        return f"{path} is empty: export the photo again"
    return (
        f"{path} is not an image that can be read (its content, not its name, decides): "
        "save it as JPEG, PNG, WebP, TIFF, HEIC, AVIF, JPEG 2000, BMP or GIF"
    )


def _unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{path} does not exist: name an image file"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{path} cannot be read ({error.strerror}): name another file"
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    return f"{path} is damaged or cut short ({reason}): export the photo again"


def _with_sound_exif(image: Image.Image, name: str) -> Image.Image:
    """Return a photo without its EXIF data where these are broken, saying so."""
    try:
        image.getexif().get_ifd(ExifTags.IFD.Exif)
    except Exception:  # the data are free-form bytes
        say(f"{name}: its EXIF data cannot be read, the photo is taken as upright")
        image = image.copy()
        image.info.pop("exif", None)
    return image


def to_srgb(image: Image.Image, name: str) -> Image.Image:
    """Turn a picture into 8-bit sRGB in mode RGB, transparency laid over white."""
    profile = image.info.get("icc_profile")
    alpha = None
    if image.has_transparency_data:
        colours = "L" if image.mode in ("LA", "La") else "RGB"
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert(colours)
    image = _eight_bits(image)
    if profile:
        image = _apply_profile(image, profile, name)
    photo = image.convert("RGB")
    if alpha is None:
        return photo
    return Image.composite(photo, Image.new("RGB", photo.size, "white"), alpha)


def _apply_profile(image: Image.Image, profile: bytes, name: str) -> Image.Image:
    """Convert through the embedded ICC profile to sRGB; one that does not work is ignored."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODE_OF_SPACE[source.profile.xcolor_space.strip().upper()]
        if image.mode == "1" or (mode == "RGB" and image.mode in ("L", "P")):
            image = image.convert(mode)
        converted = ImageCms.profileToProfile(
            image,
            source,
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, KeyError, AttributeError):
        converted = None
    if converted is None:
        say(f"{name}: its ICC profile cannot be used, sRGB is assumed")
        return image
    return converted


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit and float greys to 8 bits; other modes stay as they are.

    16-bit values are scaled from 0..65535. 32-bit integers and floats say nothing of their range:
    the smallest of 1 (floats), 255 and 65535 that holds their largest value counts as white.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if values.dtype.kind == "u":
        table = np.rint(np.arange(65536) * (255 / 65535)).astype(np.uint8)
        return Image.fromarray(table[values])
    values = np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    largest = float(values.max())
    whites = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    white = next((w for w in whites if largest <= w), largest)
    return Image.fromarray(np.clip(np.rint(values * (255 / white)), 0, 255).astype(np.uint8))


def size_of(image: Image.Image) -> Size:
    """Return the (H, W) of a picture."""
    return image.height, image.width


def fit_size(photo: Size, max_pixels: int, multiple: int = MULTIPLE) -> Size:
    """Return the working size of a photo: multiples of `multiple`, at most `max_pixels` in all.

    Keeping the photo's aspect ratio and being large are weighed in logarithms: 10 % of stretch
    costs as much as 10 % of a side's length. Never below one multiple a side. ValueError when not
    even one such tile fits.
    """
    if max_pixels < multiple**2:
        raise ValueError(f"{max_pixels} pixels do not hold one {multiple}x{multiple} tile")
    height, width = photo
    aspect = math.log(width / height)
    most = max_pixels // multiple**2

    def cost(size: Size) -> float:
        rows, columns = size
        stretch = abs(math.log(columns / rows) - aspect)
        return stretch + 0.5 * math.log(most / (columns * rows))

    longest = min(most, math.ceil(math.sqrt(most) * math.exp(abs(aspect) / 2)) + 1)
    sizes = [(r, c) for c in range(1, longest + 1) for r in range(1, min(longest, most // c) + 1)]
    rows, columns = min(sizes, key=cost)
    return rows * multiple, columns * multiple


def photo_size(working: Size, photo: Size) -> Size:
    """Return the smallest even size of the photo's aspect ratio that holds `working`.

    A model's frames are stretched to multiples of 64 or to a square; at this size they are as wide
    and as high as the photo again, and neither direction loses pixels. Even, for video.
    """
    scale = max(working[0] / photo[0], working[1] / photo[1])
    height, width = (2 * max(1, round(side * scale / 2)) for side in photo)
    return height, width


def from_uint8(pixels: NDArray[np.uint8] | Tensor, planar: bool = False) -> Tensor:
    """Turn 8-bit [..., H, W, 3], or `planar` [..., 3, H, W], into [..., 3, H, W] in [-1, 1]."""
    values = pixels if isinstance(pixels, Tensor) else torch.from_numpy(np.array(pixels))
    return (values if planar else values.movedim(-1, -3)).float() / 127.5 - 1


def to_uint8(frames: Tensor, planar: bool = False) -> NDArray[np.uint8]:
    """Invert `from_uint8`: values are clipped and rounded, NaN becomes grey."""
    scaled = ((frames.detach().float().nan_to_num(0.0).clamp(-1, 1) + 1) * 127.5).round()
    values = scaled if planar else scaled.movedim(-3, -1)
    pixels: NDArray[np.uint8] = values.to(torch.uint8).contiguous().cpu().numpy()
    return pixels


def from_pixels(pixels: Pixels) -> Tensor:
    """Turn 8- or 16-bit pixels [H, W, 3] into [1, 3, H, W] in [-1, 1]."""
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32)
    return torch.from_numpy(planes).mul_(2 / np.iinfo(pixels.dtype).max).sub_(1)[None]


def to_pixels(image: Tensor, into: Pixels) -> None:
    """Write an image [1, 3, H, W] in [-1, 1] into 8- or 16-bit pixels [H, W, 3], rounded."""
    most = np.iinfo(into.dtype).max
    into[...] = image[0].add(1).mul_(most / 2).round_().permute(1, 2, 0).numpy()


def light_to_uint8(frames: Tensor) -> NDArray[np.uint8]:
    """SRGB [..., 3, H, W] in [0, 1] to 8-bit pixels [..., H, W, 3]."""
    return (frames.clamp(0, 1) * 255).round().to(torch.uint8).movedim(-3, -1).cpu().numpy()


def to_tensor(photo: Image.Image) -> Tensor:
    """Turn an 8-bit RGB picture into [1, 3, H, W] in [-1, 1]."""
    return from_uint8(np.asarray(photo.convert("RGB")))[None]


def prepare(
    photo: Image.Image,
    size: int | Size = WORKING_PIXELS,
    how: Image.Resampling = Image.Resampling.LANCZOS,
) -> Tensor:
    """Resize to `size`, or to fit that many pixels (`fit_size`): [1, 3, H, W]."""
    height, width = fit_size(size_of(photo), size) if isinstance(size, int) else size
    return to_tensor(photo.resize((width, height), how))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return the bytes of an image file; written in one go, a full disk is an error with its
    reason."""
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def data_uri(data: bytes, kind: str = "png") -> str:
    """Return an image file as a URI that holds all of it."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def to_image(frame: Tensor) -> Image.Image:
    """Turn [3, H, W] in [-1, 1] into an 8-bit RGB picture."""
    return Image.fromarray(to_uint8(frame))
