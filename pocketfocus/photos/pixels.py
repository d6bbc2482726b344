"""A photo for refocusing at its own size: its pixels in their own colours, and what else it tells.

Nothing is converted that need not be: wide-gamut pixels stay in their colour space, 10 and 16 bits
stay where the file that is written can hold them. Legend: H, W pixels, upright.
"""

from __future__ import annotations

import io
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pillow_heif
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps
from PIL.ExifTags import IFD, TAGS, Base

from pocketfocus.photos.images import (
    Pixels,
    is_deep,
    opened,
    size_of,
    to_srgb,
    unpacked,
)
from pocketfocus.run.constants import Size
from pocketfocus.run.progress import say

LEFT_BEHIND = {
    "HDR gain map": rb"hdrgainmap|hdr-gain-map|urn:iso:std:iso:ts:21496",
    "depth map": rb"photos/1\.0/depthmap|auxid:2\0|auxiliary:depth|depthData/1\.0",
    "motion": rb"""(MotionPhoto|MicroVideo)(\s*=\s*["']|>)\s*[1-9]""",
}
"""What phones keep beside the pixels, and the patterns by which it is found in any kind of file."""
WITH_MORE = ("JPEG", "MPO", "HEIF", "AVIF")
LAYOUT = {  # tags of how a file's pixels lie, which say nothing of the picture
    *(Base.ImageWidth, Base.ImageLength, Base.BitsPerSample, Base.Compression, Base.Orientation),
    *(Base.PhotometricInterpretation, Base.SamplesPerPixel, Base.PlanarConfiguration),
    *(Base.StripOffsets, Base.RowsPerStrip, Base.StripByteCounts, Base.SubIFDs, Base.SampleFormat),
    *(Base.TileWidth, Base.TileLength, Base.TileOffsets, Base.TileByteCounts, Base.Predictor),
    *(Base.ColorMap, Base.ExtraSamples, Base.JPEGTables, Base.XMLPacket, Base.InterColorProfile),
    *(Base.FillOrder, Base.NewSubfileType, Base.SubfileType, Base.YCbCrSubSampling),
    *(Base.FreeOffsets, Base.FreeByteCounts, Base.JPEGProc, Base.JpegIFOffset),
    *(Base.JpegIFByteCount, Base.JpegQTables, Base.JpegDCTables, Base.JpegACTables, 400),
    *(Base.IPTCNAA, Base.ImageResources, 37724, 50838, 50839),  # an editor's layers, ImageJ's notes
}
IPTC = 0x0404  # among Photoshop's resources in a JPEG file
EIGHT_BITS = 257  # times an 8-bit number is the same grey in 16 bits
IN_8_BITS = "read in 8 bits, its further ones cannot be"
SAME = 1.5  # levels of 8 bits between two decoders, on average


@dataclass(frozen=True)
class Photo:
    """A photo as its file has it, upright.

    Attributes:
        name: of its file.
        pixels: [H, W, 3], 8 bits, or 16 where more were asked for and there are more.
        profile: the ICC profile of their colour space; None for sRGB.
        exif: without orientation, thumbnail, and what says how the file's pixels lay.
        xmp: a packet of further metadata; None where there is none.
    """

    name: str
    pixels: Pixels
    profile: bytes | None
    exif: Image.Exif
    xmp: bytes | None

    @property
    def size(self) -> Size:
        """(H, W)."""
        height, width = self.pixels.shape[:2]
        return height, width

    def limited(self, most: int | None) -> Photo:
        """The photo with no side longer than `most` pixels, scaled down (Lanczos) if need be."""
        return self if most is None else replace(self, pixels=shortened(self.pixels, most))

    def in_srgb(self) -> Photo:
        """The photo in 8 bits of sRGB."""
        if self.profile is None:
            return self
        image = Image.fromarray(self.pixels)
        image.info["icc_profile"] = self.profile
        return replace(self, pixels=np.asarray(to_srgb(image, self.name)), profile=None)


def open_photo(path: Path, deep: bool = False) -> Photo:
    """Open a photo as it is: upright, in its own colour space if that is one of RGB, else in sRGB.

    `deep` keeps more than 8 bits where there are more. Says what the file holds besides that will
    not be in a picture made of it. UserError as of `load_photo`.
    """
    path = Path(path)
    with opened(path, deep=deep) as image:
        left = list(_left_behind(path, image.format))
        for what in (*left, *_captions(image)):
            say(f"{path.name}: {what} not carried over")
        kept = not image.has_transparency_data and _space(image) == "RGB"
        has_more = deep and is_deep(path, image)
        many = _deep_pixels(path, image) if has_more and kept else None
        exif = image.getexif()
        ImageOps.exif_transpose(image, in_place=True)
        profile = image.info.get("icc_profile") if kept else None
        pixels: Pixels
        pixels = unpacked(image if image.mode == "RGB" and kept else to_srgb(image, path.name))
        if many is not None and _is_same(many, pixels):
            pixels = many
        elif has_more:
            say(f"{path.name}: {IN_8_BITS}")
        xmp = None if left else _upright(image.info.get("xmp") or b"")
        return Photo(path.name, pixels, profile, _of_picture(exif, path.name), xmp or None)


def _upright(xmp: bytes | str) -> bytes:
    """XMP that tells no other orientation than upright."""
    packet = xmp.encode() if isinstance(xmp, str) else xmp  # a TIFF file's may be text
    return re.sub(rb"""(tiff:Orientation(\s*=\s*["']|>))\d""", rb"\g<1>1", packet)


def _left_behind(path: Path, kind: str | None) -> Iterator[str]:
    """Names of what a file holds beside its pixels."""
    if kind not in WITH_MORE:
        return
    content = path.read_bytes()
    for what, pattern in LEFT_BEHIND.items():
        if re.search(pattern, content):
            yield what


def _captions(image: Image.Image) -> Iterator[str]:
    """What a file tells of its picture in IPTC's own way, which no file that is written has."""
    if image.format == "TIFF":
        found = Base.IPTCNAA in image.tag_v2  # type: ignore[attr-defined]
    else:
        found = IPTC in image.info.get("photoshop", {})
    if found:
        yield "IPTC data (caption, copyright)"


def _space(image: Image.Image) -> str | None:
    """What an image's numbers mean: "RGB" where they may stay as they are, None where not."""
    if image.mode not in ("RGB", "L", "I;16", "I;16B"):
        return None
    data = image.info.get("icc_profile")
    if not data:
        return "RGB"
    try:
        space = ImageCms.ImageCmsProfile(io.BytesIO(data)).profile.xcolor_space.strip()
    except (ImageCms.PyCMSError, OSError, ValueError, AttributeError):
        return None
    return str(space) if image.mode == "RGB" else None


def _deep_pixels(path: Path, image: Image.Image) -> NDArray[np.uint16] | None:
    """The pixels of a file with more than 8 bits as 16, upright; None where its further bits cannot
    be read."""
    if image.mode.startswith("I;16"):
        found = np.repeat(np.asarray(image).astype(np.uint16)[..., None], 3, 2)
        return turned(found, image.getexif().get(Base.Orientation, 1))
    if image.mode != "RGB":
        return None
    return _by_heif(path) if image.format == "HEIF" else _by_ffmpeg(path, image)


def _by_heif(path: Path) -> NDArray[np.uint16] | None:
    """Decode a HEIC file to 16 bits; None where only 8 can be had."""
    image = pillow_heif.open_heif(path, convert_hdr_to_8bit=False)
    found, bits = np.asarray(image), image.info["bit_depth"]
    return found | found >> bits if found.dtype == np.uint16 else None


def _by_ffmpeg(path: Path, image: Image.Image) -> NDArray[np.uint16] | None:
    """Decode to 16 bits, which Pillow does not, and turn upright; None where ffmpeg cannot."""
    turn, size = _stored(path, image)
    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError:  # there is none
        return None
    name = str(path.absolute())  # before a colon ffmpeg would take another for a protocol's
    words = [program, "-v", "quiet", "-noautorotate", "-i", name, "-frames:v", "1"]
    words += ["-f", "rawvideo", "-pix_fmt", "rgb48le", "-"]
    found = subprocess.run(words, capture_output=True, stdin=subprocess.DEVNULL, check=False).stdout
    if len(found) != 6 * size[0] * size[1]:
        return None
    return turned(np.frombuffer(found, "<u2").reshape(*size, 3), turn)


def _stored(path: Path, image: Image.Image) -> tuple[int, Size]:
    """The orientation that a file tells, and the (H, W) of its pixels as they lie there; of a TIFF
    file Pillow forgets both, as it turns what it decodes."""
    if image.format != "TIFF":
        return image.getexif().get(Base.Orientation, 1), size_of(image)
    with Image.open(path, formats=["TIFF"]) as stored:
        tags = stored.tag_v2  # type: ignore[attr-defined]
        return tags.get(Base.Orientation, 1), (tags[Base.ImageLength], tags[Base.ImageWidth])


def _is_same(many: NDArray[np.uint16], pixels: NDArray[np.uint8]) -> bool:
    """Whether the deep pixels are the same picture as the others."""
    if many.shape != pixels.shape:
        return False
    sample = (slice(None, None, max(1, len(pixels) // 256)),)
    error = np.abs(many[sample].astype(np.float32) / EIGHT_BITS - pixels[sample]).mean()
    return bool(error < SAME)


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """Turn pixels [H, W, 3] upright, as EXIF's orientation 1..8 says."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    flips = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}
    rows, columns = flips.get(orientation, (1, 1))
    return np.ascontiguousarray(pixels[::rows, ::columns])


def _of_picture(exif: Image.Exif, name: str) -> Image.Exif:
    """What EXIF data say of the picture and its camera, without what they say of the file, and
    without what cannot be read, saying so."""
    kept = Image.Exif()
    kept.endian = exif.endian  # the order of bytes in some texts
    for tag in exif:
        if tag not in LAYOUT and tag not in (IFD.Exif, IFD.GPSInfo):
            with _reading(f"{name}: its {TAGS.get(tag, f'tag {tag}')}"):
                kept[tag] = exif[tag]
    for part in (IFD.Exif, IFD.GPSInfo):
        with _reading(f"{name}: its {part.name} data"):
            found = {t: v for t, v in exif.get_ifd(part).items() if t != IFD.Interop}
            if found:
                kept.get_ifd(part).update(found)
    return kept


@contextmanager
def _reading(what: str) -> Iterator[None]:
    try:
        yield
    except Exception:  # the data are free-form bytes
        say(f"{what} cannot be read, left out")


def shortened(pixels: Pixels, most: int) -> Pixels:
    """Scale [H, W, 3] so that no side is longer than `most` pixels, if need be."""
    height, width = pixels.shape[:2]
    longest = max(height, width)
    if longest <= most:
        return pixels
    small = (max(1, round(height * most / longest)), max(1, round(width * most / longest)))
    return resized(pixels, small)


def resized(pixels: Pixels, size: Size) -> Pixels:
    """Scale [H, W, 3] to `size` (Lanczos); 16 bits stay 16, a colour at a time."""
    if pixels.dtype == np.uint8:
        image = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.LANCZOS)
        return np.asarray(image)
    planes = [Image.fromarray(pixels[..., n].astype(np.float32)) for n in range(3)]
    small = [plane.resize(size[::-1], Image.Resampling.LANCZOS) for plane in planes]
    values = np.stack([np.asarray(plane) for plane in small], -1).round()
    return values.clip(0, np.iinfo(np.uint16).max).astype(np.uint16)
