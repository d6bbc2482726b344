"""Colours that a file tells without an ICC profile: right where one can hold them, else said."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms
from PIL.ExifTags import IFD, Base

from pocketfocus.photos.colours import profile_of
from pocketfocus.photos.images import load_photo
from pocketfocus.photos.pixels import Photo, open_photo
from pocketfocus.photos.saving import save_picture
from tests.photos.test_images import P3_TO_XYZ, rgb_profile

ADOBE_TO_XYZ = np.array(  # linear RGB to XYZ under D50, from Adobe's specification
    [[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]]
)
BT2020_TO_XYZ = np.array(
    [[0.673459, 0.165661, 0.1251], [0.279033, 0.675338, 0.045629], [-0.001931, 0.029984, 0.797163]]
)
COLOUR = (190, 110, 90)
PICTURE = np.full((32, 48, 3), COLOUR, np.uint8)


def in_srgb(profile: bytes) -> NDArray[np.int64]:
    """The colour of the picture through a profile."""
    image = Image.new("RGB", (1, 1), COLOUR)
    space = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    made = ImageCms.profileToProfile(image, space, ImageCms.createProfile("sRGB"))
    assert made is not None
    return np.array(made.getpixel((0, 0)))


def write(path: Path, primaries: int, transfer: int) -> Path:
    """A picture whose file tells these numbers, as its suffix says."""
    numbers = struct.pack(">HH", primaries, transfer)
    if path.suffix == ".heic":
        told: dict[str, Any] = {"color_primaries": primaries, "transfer_characteristics": transfer}
        pillow_heif.from_pillow(Image.fromarray(PICTURE)).save(path, quality=-1, **told)
    elif path.suffix == ".avif":
        Image.fromarray(PICTURE).save(path, quality=100, subsampling="4:4:4")
        whole = path.read_bytes()
        before, colours, after = whole.partition(b"colrnclx")
        assert colours
        path.write_bytes(before + colours + numbers + after[4:])
    else:
        data = io.BytesIO()
        Image.fromarray(PICTURE).save(data, "PNG")
        whole, chunk = data.getvalue(), b"cICP" + bytes((primaries, transfer, 0, 1))
        chunk = struct.pack(">I", 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        path.write_bytes(whole[:33] + chunk + whole[33:])
    return path


@pytest.mark.parametrize("suffix", [".heic", ".avif", ".png"])
def test_display_p3_by_numbers_is_display_p3(
    suffix: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / f"photo{suffix}", 12, 13)
    photo = open_photo(path)
    assert photo.profile == profile_of("Display P3")
    assert np.abs(photo.pixels.astype(int) - COLOUR).max() <= 3
    shown = np.asarray(load_photo(path)).mean((0, 1))
    assert np.abs(shown - in_srgb(rgb_profile(P3_TO_XYZ, 2.2))).max() < 5
    assert np.abs(shown - COLOUR).max() > 10
    save_picture(photo, tmp_path / "made.jpg", {})
    assert Image.open(tmp_path / "made.jpg").info["icc_profile"] == photo.profile
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("suffix", [".heic", ".avif", ".png"])
@pytest.mark.parametrize(
    ("primaries", "transfer", "said"),
    [
        (9, 16, "its pixels are PQ (HDR) and are taken as sRGB, which changes colours: export it"),
        (12, 18, "its pixels are HLG (HDR) and are taken as sRGB"),
        (11, 1, "its colour space (primaries 11) is not known, taken as sRGB"),
        (1, 13, ""),
        (6, 6, ""),
    ],
)
def test_what_no_profile_holds_is_said(
    suffix: str,
    primaries: int,
    transfer: int,
    said: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    photo = open_photo(write(tmp_path / f"photo{suffix}", primaries, transfer))
    assert photo.profile is None
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == bool(said)
    assert said in "".join(lines)


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
@pytest.mark.parametrize("by_index", [True, False])
def test_adobe_rgb_by_exif_is_adobe_rgb(suffix: str, by_index: bool, tmp_path: Path) -> None:
    exif, path = Image.Exif(), tmp_path / f"photo{suffix}"
    index: dict[int, Any] = {Base.ColorSpace: 65535, IFD.Interop: {1: "R03"}}
    exif.get_ifd(IFD.Exif).update(index if by_index else {Base.ColorSpace: 2})
    save_picture(Photo("photo", PICTURE, None, exif, None), path, {})
    assert open_photo(path).profile == profile_of("Adobe RGB")
    shown = np.asarray(load_photo(path)).mean((0, 1))
    assert np.abs(shown - in_srgb(rgb_profile(ADOBE_TO_XYZ, 2.2))).max() < 4
    assert np.abs(shown - COLOUR).max() > 10


def test_a_profile_goes_before_what_is_told_otherwise(tmp_path: Path) -> None:
    own = rgb_profile(P3_TO_XYZ, 2.2)
    exif = Image.Exif()
    exif.get_ifd(IFD.Exif)[Base.ColorSpace] = 2
    Image.fromarray(PICTURE).save(tmp_path / "photo.jpg", exif=exif, icc_profile=own)
    assert open_photo(tmp_path / "photo.jpg").profile == own


@pytest.mark.parametrize(
    ("name", "to_xyz"),
    [("Display P3", P3_TO_XYZ), ("BT.2020", BT2020_TO_XYZ), ("Adobe RGB", ADOBE_TO_XYZ)],
)
def test_profiles_hold_the_space_they_name(name: str, to_xyz: NDArray[np.float64]) -> None:
    made = ImageCms.ImageCmsProfile(io.BytesIO(profile_of(name)))
    assert ImageCms.getProfileDescription(made).strip() == name
    inner = made.profile
    for n, colour in enumerate((inner.red_colorant, inner.green_colorant, inner.blue_colorant)):
        assert colour is not None
        assert np.abs(np.array(colour[0]) - to_xyz[:, n]).max() < 1e-3
