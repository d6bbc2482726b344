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
from unittest.mock import patch

import numpy as np
import pillow_heif
import psutil
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from pocketfocus.photos.colours import add_profile
from pocketfocus.photos.kinds import PHOTOS, kind_of, unknown_content, unreadable
from pocketfocus.run.constants import MULTIPLE, Size, size_text
from pocketfocus.run.errors import UserError
from pocketfocus.run.progress import say

MAX_PIXELS = 200_000_000  # a decompression bomb beyond this; 20 000 x 10 000 still opens
MAX_TEXT = 1 << 24  # bytes of a profile or text of a PNG file; Pillow's limit is 1 MiB
SMALLEST_SIDE = 16
LONGEST_ASPECT = 16
DRAFT = (64, 64)  # pixels at least
LONG = 2  # times as long for its width as a model's frames: what its photo may be to be enlarged
GAP = 3  # how many times larger than needed a photo at least stays before it is resized
STRIP = 1 << 22  # pixels that are converted at a time
BYTES_A_PIXEL = 12  # of memory at most: as the file has it, as it is decoded, and converted
DEEP_BYTES = 18  # the same where 16 bits are read beside 8
DNG_VERSION, THUMBNAIL, PLANES_APART = 50706, 1, 2  # a tag of TIFF files, and values of others
WHITE_IS_ZERO = 0  # of the greys of a TIFF file
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations
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


def load_photo(path: Path, needed: Size | None = None) -> Image.Image:
    """Open a photo as 8-bit sRGB: upright (EXIF), its ICC profile applied, alpha over white.

    Where a picture of `needed` (H, W) will be made of it, a much larger one is read smaller.

    16 bits are scaled down, grey and palette images become RGB, CMYK is converted (through its
    profile if it has one), of an animation the first frame is taken (saying so); EXIF data or a
    profile that cannot be read is ignored (saying so). Raises UserError for anything that is not a
    readable image of at least 16 pixels a side, at most 200 million pixels, and at most 16 times
    as long as wide; and for one that takes more memory than is free.
    """
    least = None if needed is None else (GAP * max(needed), GAP * max(needed))
    with opened(path, least) as image:
        factor = 1 if least is None else max(1, min(image.size) // max(least))
        photo, turn = to_srgb(image, path.name, factor), ExifTags.Base.Orientation
        photo.getexif()[turn] = image.getexif().get(turn, 1)
        ImageOps.exif_transpose(photo, in_place=True)
        return photo


@contextmanager
def opened(path: Path, draft: Size | None = None, deep: bool = False) -> Iterator[Image.Image]:
    """Yield the image of a file, decoded, as its file has it; EXIF data that cannot be read are
    gone (saying so), an ICC profile is there for colours told otherwise. A JPEG file with a `draft`
    is as small as holds that; where more than 8 bits are to be read after it, `deep`, there is
    memory for them. UserError as of `load_photo`, also for what goes wrong meanwhile."""
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
            if draft is not None:
                image.draft(image.mode, draft[::-1])
            is_more = deep and is_deep(path, image)
            _check_memory(path, size_of(image), DEEP_BYTES if is_more else BYTES_A_PIXEL)
            add_profile(path, image)
            image.load()
            _check_depth(path, image)
            _turn_over(image)
            _check_exif(image, path.name)
            yield image
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise UserError(
            f"{path} has over {MAX_PIXELS:,} pixels: scale it down, then name the smaller file"
        ) from None
    except UnidentifiedImageError:
        raise UserError(unknown_content(path)) from None
    except MemoryError:  # not the file's fault
        raise
    except Exception as error:  # on damaged files decoders raise nearly anything
        raise UserError(unreadable(path, error)) from error


@contextmanager
def bomb_limit() -> Iterator[None]:
    """Let Pillow refuse what it warns of: it warns above MAX_IMAGE_PIXELS and refuses above twice
    that. And let it read the longer profiles and texts of PNG files."""
    pixels = patch.object(Image, "MAX_IMAGE_PIXELS", MAX_PIXELS // 2)
    texts = patch.object(PngImagePlugin, "MAX_TEXT_CHUNK", MAX_TEXT)
    with pixels, texts, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders' remarks; what matters raises
        yield


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


def _check_memory(path: Path, size: Size, a_pixel: int) -> None:
    """Raise UserError for a photo that would take more memory than is free, before it does."""
    wanted = a_pixel * math.prod(size)
    if wanted > STRIP * a_pixel and wanted > psutil.virtual_memory().available:
        free = psutil.virtual_memory().available
        raise UserError(
            f"{path} is {size_text(size)} pixels, which take {wanted / 1e9:.1f} GB of memory, and "
            f"{free / 1e9:.1f} GB are free: scale it down, or close other programs"
        )


def _check_frames(path: Path, image: Image.Image) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a phone's JPEG with a depth map or preview behind
        which = "pictures: the main one" if image.format == "HEIF" else "frames: the first one"
        say(f"{path.name} holds {frames} {which} is used")


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
    if tags.get(ExifTags.Base.Orientation, 1) in SIDEWAYS:
        # Else Pillow maps the pixels of some modes with width and height exchanged.
        image.filename = ""  # type: ignore[attr-defined]
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
    first = np.asarray(next(_strips(image)))
    largest, white = int(_largest(image)), int(np.iinfo(first.dtype).max)
    if 0 < largest <= white >> UNUSED:
        raise UserError(
            f"{path} has 16 bits a colour and uses the lowest {DEEP - UNUSED}, so that white is "
            f"nearly black: scale its values by {1 << UNUSED}, then name that file"
        )


def _turn_over(image: Image.Image) -> None:
    """Make 0 black where it is white, in place: Pillow does so for at most 8 bits."""
    if image.format != "TIFF" or not image.mode.startswith(("I", "F")):
        return
    tags = image.tag_v2  # type: ignore[attr-defined]
    if tags.get(ExifTags.Base.PhotometricInterpretation) != WHITE_IS_ZERO:
        return
    white, row = _white(image), 0
    for strip in _strips(image):
        values = np.asarray(strip)
        image.paste(Image.fromarray((white - values).astype(values.dtype)), (0, row))
        row += strip.height


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


def is_deep(path: Path, image: Image.Image) -> bool:
    """Return whether a file has more than 8 bits a colour."""
    if image.format == "HEIF":
        return int(image.info.get("bit_depth", BYTE)) > BYTE
    return image.mode.startswith(("I", "F")) or bits_of(path, image) > BYTE


def check_photo(path: Path) -> None:
    """Raise UserError as of `load_photo`, decoding a JPEG file at an eighth of its size."""
    with opened(path, DRAFT):
        pass


def stored_size(path: Path) -> Size:
    """Return the (H, W) that the head of a photo's file tells, as it is stored."""
    with bomb_limit(), Image.open(path, formats=FORMATS) as image:
        return size_of(image)


def is_photo(path: Path) -> bool:
    """Return whether a file's content is that of a photo of any kind, whole or not, raw ones and
    others that cannot be read included."""
    try:
        with bomb_limit(), Image.open(path, formats=FORMATS):
            return True
    except Image.DecompressionBombError:
        return True
    except BROKEN:
        return path.is_file() and kind_of(path).startswith(PHOTOS)


def _check_exif(image: Image.Image, name: str) -> None:
    """Leave out a photo's EXIF data where these are broken, saying so."""
    try:
        image.getexif().get_ifd(ExifTags.IFD.Exif)
    except Exception:  # the data are free-form bytes
        say(f"{name}: its EXIF data cannot be read, the photo is taken as upright")
        image.getexif().load(b"")
        image.info.pop("exif", None)


def to_srgb(image: Image.Image, name: str, factor: int = 1) -> Image.Image:
    """Turn a picture into 8-bit sRGB in mode RGB, transparency laid over white, and divide its
    sides by a whole `factor`: strip by strip, so that what lies between takes little memory. A
    profile that does not work is ignored, saying so."""
    profile, white = image.info.get("icc_profile"), _white(image)
    photo = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    row = 0
    for strip in _strips(image, factor):
        plain, alpha = _eight_bits(strip, white), None
        if strip.has_transparency_data:
            plain = strip.convert("RGBA")
            alpha = plain.getchannel("A")
            plain = plain.convert("L" if strip.mode in ("LA", "La") else "RGB")
        converted = _through(plain, profile) if profile else None
        if profile and converted is None:
            profile = None
            say(f"{name}: its ICC profile cannot be used, sRGB is assumed")
        plain = (converted or plain).convert("RGB")
        if alpha is not None:
            plain = Image.composite(plain, Image.new("RGB", plain.size, "white"), alpha)
        plain = plain.reduce(factor)
        photo.paste(plain, (0, row))
        row += plain.height
    return photo


def _strips(image: Image.Image, multiple: int = 1) -> Iterator[Image.Image]:
    """Cut a picture into strips of few pixels, and of a multiple of rows but for the last."""
    rows = multiple * max(1, STRIP // image.width // multiple)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def unpacked(image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels of an RGB picture [H, W, 3], strip by strip: taken as a whole they are in
    memory twice more."""
    made = np.empty((image.height, image.width, 3), np.uint8)
    row = 0
    for strip in _strips(image):
        made[row : row + strip.height] = np.asarray(strip)
        row += strip.height
    return made


def _through(image: Image.Image, profile: bytes) -> Image.Image | None:
    """Convert through an ICC profile to sRGB; None for one that does not work."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODE_OF_SPACE[source.profile.xcolor_space.strip().upper()]
        if image.mode == "1" or (mode == "RGB" and image.mode in ("L", "P")):
            image = image.convert(mode)
        return ImageCms.profileToProfile(
            image,
            source,
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, KeyError, AttributeError):
        return None


def _white(image: Image.Image) -> float:
    """Return which value of 16-bit, 32-bit and float greys is white.

    16-bit values are of 0..65535. 32-bit integers and floats say nothing of their range: the
    smallest of 1 (floats), 255 and 65535 that holds their largest value counts as white.
    """
    if image.mode not in ("I", "F"):
        return 65535.0
    largest = _largest(image)
    whites = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    return next((w for w in whites if largest <= w), largest)


def _largest(image: Image.Image) -> float:
    return max(float(_finite(np.asarray(strip)).max()) for strip in _strips(image))


def _finite(values: NDArray[Any]) -> NDArray[Any]:
    return np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


def _eight_bits(image: Image.Image, white: float) -> Image.Image:
    """Scale 16-bit, 32-bit and float greys to 8 bits; other modes stay as they are."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = _finite(np.asarray(image)).astype(np.float32)
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
    and as high as the photo again, and neither direction loses pixels, but of a photo that is
    longer still. Even, for video.
    """
    scales = working[0] / photo[0], working[1] / photo[1]
    scale = min(max(scales), max(1, LONG * min(scales)))  # a strip of a photo is not blown up
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
