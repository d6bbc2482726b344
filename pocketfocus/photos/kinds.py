"""What files are that are taken for photos and cannot be opened, and what to do about it."""

from __future__ import annotations

from pathlib import Path

OTHERS = (
    (0, b"\xff\x0a", "a JPEG XL file"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL file"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"gimp xcf", "a GIMP file"),
    (0, b"%PDF", "a PDF document"),
    (0, b"%!PS", "a PostScript file"),
    (0, b"<svg", "an SVG drawing"),
    (0, b"<?xml", "an SVG drawing or another XML file"),
    (0, b"v/1\x01", "an OpenEXR file"),
    (0, b"#?RADIANCE", "a Radiance HDR file"),
    (0, b"II\xbc\x01", "a JPEG XR file"),
    (0, b"\0\0\x01\0", "an icon"),
    (0, b"FUJIFILMCCD-RAW", "a raw photo (RAF)"),
    (0, b"IIU\0", "a raw photo (RW2)"),
    (0, b"IIRO", "a raw photo (ORF)"),
    (0, b"IIRS", "a raw photo (ORF)"),
    (4, b"ftypcrx ", "a raw photo (CR3)"),
    (4, b"ftypheic", "a HEIC file that is damaged"),
    (4, b"ftypavif", "an AVIF file that is damaged"),
    (4, b"ftyp", "a video"),
    (0, b"\x1aE\xdf\xa3", "a video"),
    (8, b"AVI ", "a video"),
    (0, b"PK\x03\x04", "an archive"),
)
"""How files begin that are taken for photos, from which byte on, and what they are."""

PHOTOS = ("a raw", "a JPEG X", "a HEIC", "an AVIF")
"""How the names of those begin that hold photos."""


def kind_of(path: Path) -> str:
    """Return what a file is that cannot be opened, by how it begins; "" for what is not known."""
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError:
        return ""
    return next((name for at, sign, name in OTHERS if start.startswith(sign, at)), "")


def unknown_content(path: Path) -> str:
    """Return why a file that is no image is not read, and what it is where that is known."""
    if path.stat().st_size == 0:
        return f"{path} is empty: export the photo again"
    kind, no_image = kind_of(path), "not an image that can be read"
    what = f"{kind}, {no_image}" if kind else f"{no_image} (its content, not its name, decides)"
    return f"{path} is {what}: save it as JPEG, PNG, WebP, TIFF, HEIC, AVIF, JPEG 2000, BMP or GIF"


def unreadable(path: Path, error: Exception) -> str:
    """Return why an image that its decoder failed at is not read."""
    if isinstance(error, FileNotFoundError):
        return f"{path} does not exist: name an image file"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{path} cannot be read ({error.strerror}): name another file"
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    return f"{path} is damaged or cut short ({reason}): export the photo again"
