"""One picture as a file: JPEG, PNG or TIFF, with its colour space and what its photo told.

Pillow writes no colours of 16 bits, so PNG and TIFF are written here, of 8 and 16 alike.
Legend: H, W pixels.
"""

from __future__ import annotations

import codecs
import json
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from PIL.ExifTags import GPSTAGS, IFD, TAGS, Base
from PIL.TiffImagePlugin import ImageFileDirectory_v2

import pocketfocus
from pocketfocus.photos.images import Pixels
from pocketfocus.photos.pixels import Photo
from pocketfocus.run.files import write_atomic
from pocketfocus.run.progress import say

QUALITY = 95
MOST_METADATA = 65_000  # bytes of EXIF data or XMP in a JPEG file
ROWS = 256  # that are compressed at a time
LEVEL = 4  # of zlib: higher ones take much longer and gain little on photos
PARTS = (IFD.Exif, IFD.GPSInfo)  # of EXIF data
UNDEFINED_IN_GPS = (27, 28)  # method and area; other bytes there are numbers
ASCII, JIS, UNICODE = b"ASCII\0\0\0", b"JIS\0\0\0\0\0", b"UNICODE\0"  # before a comment
DEFLATE, DIFFERENCES, RGB = 8, 2, 2  # TIFF's numbers for how pixels lie


def save_picture(photo: Photo, path: Path, fields: Mapping[str, object]) -> None:
    """Write a photo's pixels as `path`'s suffix says, with its colour space, EXIF data and XMP.

    `fields`, what was made of it, become JSON in EXIF's UserComment; a comment of the photo's own
    goes with them. The file is whole or absent; UserError when it cannot be written. KeyError for
    another suffix.
    """
    write = WRITERS[path.suffix.lower()]
    exif = _writable(_with_fields(photo, fields), photo.name)
    with write_atomic(path) as scratch, scratch.open("wb") as file:
        write(file, photo, exif)


def is_deep(path: Path) -> bool:
    """Whether files of this suffix hold 16 bits."""
    return WRITERS.get(path.suffix.lower()) is not _jpeg


def _with_fields(photo: Photo, fields: Mapping[str, object]) -> Image.Exif:
    exif, described = photo.exif, {"pocketfocus": pocketfocus.__version__, **fields}
    camera = exif.get_ifd(IFD.Exif)
    before = _text(camera.get(Base.UserComment), exif.endian)
    if before:
        described["comment"] = before
    camera[Base.UserComment] = ASCII + json.dumps(described).encode("ascii")
    height, width = photo.size
    exif[Base.Orientation] = 1  # else some go by what another part of the file tells of it
    camera[Base.ExifImageWidth], camera[Base.ExifImageHeight] = width, height
    return exif


def _text(comment: object, endian: str | None) -> str:
    """A comment in EXIF data of that order of bytes as text; of one written here, the photo's own
    that went with it."""
    if not isinstance(comment, bytes):
        return ""
    kind, content = comment[: len(ASCII)], comment[len(ASCII) :]
    code = {JIS: "iso2022_jp", UNICODE: "utf-16-le" if endian == "<" else "utf-16-be"}
    if kind == UNICODE and content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        code[UNICODE] = "utf-16"
    text = content.decode(code.get(kind, "utf-8"), "ignore").strip("\0 ")
    try:
        found = json.loads(text)
    except ValueError:
        return text
    is_own = isinstance(found, dict) and "pocketfocus" in found
    return str(found.get("comment", "")) if is_own else text


def _writable(exif: Image.Exif, name: str) -> Image.Exif:
    """EXIF data without values that cannot be written, saying so."""
    kept = Image.Exif()
    kept.endian = exif.endian
    kept.update(_sound(dict(exif), None, name))
    for part in PARTS:
        found = _sound(exif.get_ifd(part), part, name)
        if found:
            kept.get_ifd(part).update(found)
    return kept


def _sound(values: Mapping[int, object], part: IFD | None, name: str) -> dict[int, object]:
    kept = {}
    for tag, value in values.items():
        try:
            _directory({tag: value}, part).tobytes()
        except Exception:  # a camera or an editor wrote a value of another kind than is usual
            say(f"{name}: its {_called(tag, part)} is odd and is left out")
        else:
            kept[tag] = value
    return kept


def _called(tag: int, part: IFD | None) -> str:
    names: Mapping[int, str] = GPSTAGS if part == IFD.GPSInfo else TAGS
    return names.get(tag, f"tag {tag}")


def _directory(
    values: Mapping[int, object], part: IFD | None = None, prefix: bytes = b"II"
) -> ImageFileDirectory_v2:
    """EXIF values as a directory of tags, in the order of bytes that its prefix names."""
    tags = ImageFileDirectory_v2(prefix=prefix, group=part)
    tags.update(values if part is None else _typed(values, part))
    return tags


def _typed(values: Mapping[int, object], part: IFD) -> dict[int, object]:
    """Values with bytes that stay UNDEFINED: Pillow writes as BYTE what is a `bytes`."""
    return {
        tag: [bytearray(value)]
        if isinstance(value, bytes) and (part == IFD.Exif or tag in UNDEFINED_IN_GPS)
        else value
        for tag, value in values.items()
    }


def _whole(exif: Image.Exif, prefix: bytes = b"") -> ImageFileDirectory_v2:
    """All EXIF data as one directory, without parts that would be empty."""
    tags = _directory(dict(exif), None, prefix or (b"II" if exif.endian == "<" else b"MM"))
    for part in PARTS:
        if exif.get_ifd(part):
            tags[part] = _typed(exif.get_ifd(part), part)
    return tags


def _packed(exif: Image.Exif) -> bytes:
    """EXIF data as they stand in a PNG file."""
    tags = _whole(exif)
    head = b"II*\0\x08\0\0\0" if tags.prefix == b"II" else b"MM\0*\0\0\0\x08"
    return head + tags.tobytes(len(head))


def _jpeg(file: BinaryIO, photo: Photo, exif: Image.Exif) -> None:
    _shorten(exif, photo.name)
    more: dict[str, object] = {"exif": b"Exif\0\0" + _packed(exif), "icc_profile": photo.profile}
    if photo.xmp and len(photo.xmp) <= MOST_METADATA:
        more["xmp"] = photo.xmp
    elif photo.xmp:
        say(f"{photo.name}: its XMP leaves no room in a JPEG file and is left out")
    Image.fromarray(photo.pixels).save(file, "JPEG", quality=QUALITY, **more)


def _shorten(exif: Image.Exif, name: str) -> None:
    """Take from EXIF data what is longest until a JPEG file has room for the rest, saying so."""
    parts: dict[IFD | None, MutableMapping[int, Any]] = {None: exif}
    parts |= {part: exif.get_ifd(part) for part in PARTS}
    while len(_packed(exif)) > MOST_METADATA:
        lengths = {
            (part, tag): _length(value)
            for part, values in parts.items()
            for tag, value in values.items()
        }
        part, tag = max(lengths, key=lengths.__getitem__)
        del parts[part][tag]
        say(f"{name}: its {_called(tag, part)} leaves no room in a JPEG file and is left out")


def _length(value: object) -> int:
    """About how many bytes a value of EXIF data takes."""
    if isinstance(value, bytes | str):
        return len(value)
    return 8 * len(value) if isinstance(value, tuple) else 8


def _png(file: BinaryIO, photo: Photo, exif: Image.Exif) -> None:
    def chunk(name: bytes, data: bytes) -> None:
        file.write(struct.pack(">I", len(data)) + name + data)
        file.write(struct.pack(">I", zlib.crc32(name + data)))

    height, width = photo.size
    bits = 8 * photo.pixels.itemsize
    file.write(b"\x89PNG\r\n\x1a\n")
    chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, RGB, 0, 0, 0))
    if photo.profile:
        chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(photo.profile))
    chunk(b"eXIf", _packed(exif))
    if photo.xmp:
        chunk(b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + photo.xmp)
    packer = zlib.compressobj(LEVEL)
    for rows in _strips(photo.pixels):
        values = rows.astype(rows.dtype.newbyteorder(">")).view(np.uint8)
        values = values.reshape(len(rows), width, -1)
        values[:, 1:] -= values[:, :-1].copy()  # a filter that every PNG reader undoes
        lines = values.reshape(len(rows), -1)
        filtered = np.hstack([np.ones((len(rows), 1), np.uint8), lines])
        chunk(b"IDAT", packer.compress(filtered.tobytes()))
    chunk(b"IDAT", packer.flush())
    chunk(b"IEND", b"")


def _tiff(file: BinaryIO, photo: Photo, exif: Image.Exif) -> None:
    height, width = photo.size
    strips = [zlib.compress(_differences(rows).tobytes(), LEVEL) for rows in _strips(photo.pixels)]
    tags = _whole(exif, b"II")
    tags[Base.ImageWidth], tags[Base.ImageLength] = width, height
    tags[Base.BitsPerSample] = (8 * photo.pixels.itemsize,) * 3
    tags[Base.Compression], tags[Base.Predictor] = DEFLATE, DIFFERENCES
    tags[Base.PhotometricInterpretation], tags[Base.SamplesPerPixel] = RGB, 3
    tags[Base.RowsPerStrip], tags[Base.PlanarConfiguration] = ROWS, 1
    tags[Base.StripByteCounts] = tuple(map(len, strips))
    if photo.profile:
        tags[Base.InterColorProfile] = photo.profile
    if photo.xmp:
        tags.tagtype[Base.XMLPacket] = 1
        tags[Base.XMLPacket] = photo.xmp
    tags.tagtype[Base.StripOffsets] = tags.tagtype[Base.StripByteCounts] = 4
    # from where the tags end: Pillow adds that
    tags[Base.StripOffsets] = tuple(accumulate(map(len, strips[:-1]), initial=0))
    file.write(b"II*\0" + struct.pack("<I", 8) + tags.tobytes(8))
    file.writelines(strips)


def _strips(pixels: Pixels) -> Iterator[Pixels]:
    for row in range(0, len(pixels), ROWS):
        yield pixels[row : row + ROWS]


def _differences(rows: Pixels) -> Pixels:
    """Every pixel of [H, W, 3] less the one before it in its row: TIFF's horizontal predictor."""
    made = rows.astype(rows.dtype.newbyteorder("<"))
    made[:, 1:] -= rows[:, :-1]
    return made


WRITERS: Mapping[str, Callable[[BinaryIO, Photo, Image.Exif], None]] = {
    ".jpg": _jpeg,
    ".jpeg": _jpeg,
    ".png": _png,
    ".tif": _tiff,
    ".tiff": _tiff,
}
