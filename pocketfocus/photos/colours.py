"""The colour space of a photo whose file tells it without an ICC profile, as one.

By numbers (ITU-T H.273) in HEIC, AVIF and PNG files, by EXIF data in a camera's JPEG and TIFF.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms
from PIL.ExifTags import IFD, Base, Interop

from pocketfocus.run.progress import say

ADOBE = "Adobe RGB"
PRIMARIES = {  # x and y of red, green and blue; white is D65
    "Display P3": ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)),
    "BT.2020": ((0.708, 0.292), (0.17, 0.797), (0.131, 0.046)),
    ADOBE: ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)),
}
D65 = (0.3127 / 0.329, 1.0, 0.3583 / 0.329)
NUMBERS = {12: "Display P3", 9: "BT.2020"}
UNTOLD = 2
LIKE_SRGB = (1, UNTOLD, 5, 6, 7)  # those of television are so near that nobody tells them apart
HDR = {16: "PQ", 18: "HLG"}
ADOBE_CURVE = (2.19921875, 1, 0, 0, 0)
ADOBE_NUMBER, ADOBE_INDEX = 2, "R03"  # EXIF's ColorSpace of old cameras, and what others write
ONE = 1 << 16  # of ICC's numbers
HEAD = 1 << 16  # bytes of a file in which its colours are told


def add_profile(path: Path, image: Image.Image) -> None:
    """Give a picture that has no ICC profile that of the colours which its file tells otherwise.

    What no profile holds is taken as sRGB, saying so. To be called before the picture is decoded.
    """
    if image.info.get("icc_profile") or image.mode not in ("RGB", "RGBA"):
        return
    primaries, transfer = _numbers(path, image)
    name = ADOBE if _is_adobe(image) else NUMBERS.get(primaries)
    if transfer in HDR:
        say(
            f"{path.name}: its pixels are {HDR[transfer]} (HDR) and are taken as sRGB, which "
            "changes colours: export it as SDR for true ones"
        )
    elif name is not None:
        image.info["icc_profile"] = profile_of(name)
    elif primaries not in LIKE_SRGB:
        say(f"{path.name}: its colour space (primaries {primaries}) is not known, taken as sRGB")


def _numbers(path: Path, image: Image.Image) -> tuple[int, int]:
    """What a file tells of its primaries and of its transfer function."""
    if image.format == "HEIF":
        nclx = image.info.get("nclx_profile") or {}
        return nclx.get("color_primaries", UNTOLD), nclx.get("transfer_characteristics", UNTOLD)
    if image.format not in ("AVIF", "PNG"):
        return UNTOLD, UNTOLD
    with open(path, "rb") as file:
        head = file.read(HEAD)
    if image.format == "AVIF":
        _, _, after = head.partition(b"colrnclx")
        found = struct.unpack(">HH", after[:4]) if len(after) >= 4 else (UNTOLD, UNTOLD)
    else:
        _, _, after = head.partition(b"IDAT")[0].partition(b"cICP")
        found = struct.unpack("BB", after[:2]) if len(after) >= 2 else (UNTOLD, UNTOLD)
    return found[0], found[1]


def _is_adobe(image: Image.Image) -> bool:
    """Whether EXIF data tell Adobe RGB; not where they cannot be read, which others say."""
    try:
        if image.format == "TIFF":
            exif = image.getexif()
        else:  # not by `getexif`, which fails once and is empty from then on
            exif = Image.Exif()
            exif.load(image.info.get("exif") or b"")
        number = exif.get_ifd(IFD.Exif).get(Base.ColorSpace)
        index = str(exif.get_ifd(IFD.Interop).get(Interop.InteropIndex, ""))
    except Exception:  # the data are free-form bytes
        return False
    return number == ADOBE_NUMBER or index.startswith(ADOBE_INDEX)


def profile_of(name: str) -> bytes:
    """Return an ICC profile of one of `PRIMARIES`: that of sRGB with others, and their name."""
    made = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    made[24:36] = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)  # made then, whenever it is made
    (count,) = struct.unpack_from(">I", made, 128)
    tags = struct.iter_unpack(">4sII", made[132 : 132 + 12 * count])
    at = {tag: start + 8 for tag, start, _ in tags}
    points = PRIMARIES[name]
    lights = np.array([(x / y, 1, (1 - x - y) / y) for x, y in points]).T
    adapted = np.array(struct.unpack_from(">9i", made, at[b"chad"])).reshape(3, 3) / ONE
    colours = adapted @ (lights * np.linalg.solve(lights, np.array(D65)))

    def put(place: int, numbers: object) -> None:
        values = (np.ravel(np.array(numbers)) * ONE).round().astype(">i4").tobytes()
        made[place : place + len(values)] = values

    for letter, colour in zip((b"r", b"g", b"b"), colours.T, strict=True):
        put(at[letter + b"XYZ"], colour)
        if name == ADOBE:
            put(at[letter + b"TRC"] + 4, ADOBE_CURVE)
    put(at[b"chrm"] + 4, points)
    text = name.encode("utf-16-be")
    struct.pack_into(">I", made, at[b"desc"] + 12, len(text))
    made[at[b"desc"] + 20 : at[b"desc"] + 20 + len(text)] = text
    return bytes(made)
