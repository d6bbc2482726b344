"""Files of which a decoder would show another picture are refused, or what is left out is said."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pocketfocus.photos.images import load_photo
from pocketfocus.run.errors import UserError
from tests.photos.test_images import pixels, png_16


def tiff(path: Path, array: NDArray[Any], **tags: Any) -> Path:
    """A TIFF file with further tags, as tifffile would write it: 16 bits, planes apart or not."""
    planar = tags.pop("planar", False)
    height, width = array.shape[:2]
    colours = 1 if array.ndim == 2 else 3
    planes = [array[..., n] for n in range(3)] if planar else [array]
    data = [np.ascontiguousarray(plane).astype("<u2").tobytes() for plane in planes]
    entries = {
        254: (4, [tags.get("subtype", 0)]), 256: (3, [width]), 257: (3, [height]),
        258: (3, [16] * colours), 259: (3, [1]), 262: (3, [2 if colours == 3 else 1]),
        273: (4, [0] * len(data)), 277: (3, [colours]), 278: (3, [height]),
        279: (4, [len(part) for part in data]), 284: (3, [2 if planar else 1]),
    }  # fmt: skip
    if tags.get("dng"):
        entries[50706] = (1, [1, 4, 0, 0])
    sizes = {1: "B", 3: "H", 4: "I"}
    packed = {tag: struct.pack(f"<{len(v)}{sizes[k]}", *v) for tag, (k, v) in entries.items()}
    at = 8 + 2 + 12 * len(entries) + 4
    outside = {tag: at + 8 * n for n, tag in enumerate(t for t in packed if len(packed[t]) > 4)}
    start, offsets = at + 16 * len(outside), []
    for part in data:
        offsets.append(start)
        start += len(part)
    packed[273] = struct.pack(f"<{len(offsets)}I", *offsets)
    extra = bytearray(16 * len(outside))
    table = b""
    for tag, (kind, values) in entries.items():
        value = packed[tag]
        if len(value) > 4:
            place = 16 * list(outside).index(tag)
            extra[place : place + len(value)] = value
            value = struct.pack("<I", at + place)
        table += struct.pack("<HHI", tag, kind, len(values)) + value.ljust(4, b"\0")
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + table + b"\0" * 4
    path.write_bytes(head + bytes(extra) + b"".join(data))
    return path


GREY = np.arange(64 * 48, dtype=np.uint16).reshape(48, 64)
COLOURED = np.stack([GREY * 21, GREY * 10, 65535 - GREY * 21], -1).astype(np.uint16)


def test_16_bit_tiffs_are_read(tmp_path: Path) -> None:
    """The writer above writes what Pillow reads: else what it refuses would prove nothing."""
    assert np.array_equal(pixels(load_photo(tiff(tmp_path / "a.tif", COLOURED))), COLOURED >> 8)
    grey = pixels(load_photo(tiff(tmp_path / "g.tif", GREY * 21)))[..., 0]
    assert np.abs(grey - GREY * 21 / 257).max() <= 0.5


@pytest.mark.parametrize(
    ("array", "tags", "said"),
    [
        (GREY, {}, "uses the lowest 12"),
        (COLOURED >> 4, {}, "uses the lowest 12"),
        (COLOURED, {"planar": True}, "plane by plane"),
        (COLOURED, {"subtype": 1}, "begins with a thumbnail"),
        (COLOURED, {"dng": True}, "raw photo"),
    ],
)
def test_what_would_be_another_picture_is_refused(
    array: NDArray[Any], tags: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        load_photo(tiff(tmp_path / "a.tif", array, **tags))


def test_a_transparent_colour_of_16_bits_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pillow compares its lowest 8 bits with the pixels' highest: other colours would go."""
    data = png_16(COLOURED)
    key = b"tRNS" + struct.pack(">3H", 0x1203, 0x3402, 0x5601)
    chunk = struct.pack(">I", 6) + key + struct.pack(">I", zlib.crc32(key))
    at = data.index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(data[:at] + chunk + data[at:])
    assert np.array_equal(pixels(load_photo(tmp_path / "a.png")), COLOURED >> 8)
    assert "transparent colour" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\xff\x0a" + bytes(40), "a JPEG XL file"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"\0\0\0\x18ftypcrx " + bytes(40), "a raw photo (CR3)"),
        (b"\0\0\0\x14ftypqt  " + bytes(40), "a video"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "a HEIC file that is damaged"),
        (b"RIFF....AVI LIST", "a video"),
        (b"hello", ""),
    ],
)
def test_files_that_are_no_photos_are_named(content: bytes, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    said = f"is {kind}, not an image" if kind else "its content, not its name, decides"
    with pytest.raises(UserError, match=re.escape(said)):
        load_photo(path)
