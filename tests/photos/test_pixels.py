"""Photos as phones make them: HEIC, AVIF, 10 and 16 bits, wide gamut, and what lies beside."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pillow_heif
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageCms
from PIL.ExifTags import IFD, Base

from pocketfocus.cli.arguments import PICTURES
from pocketfocus.data.scenes import bundled_photos
from pocketfocus.photos.images import load_photo
from pocketfocus.photos.pixels import Photo, open_photo, turned
from pocketfocus.photos.saving import WRITERS, is_deep, save_picture
from tests.photos.test_images import P3_TO_XYZ, png_16, rgb_profile

P3 = rgb_profile(P3_TO_XYZ, 2.2)


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    return np.ascontiguousarray(bundled_photos()["coffee"][40:104, 30:126])


@pytest.fixture(scope="module")
def deep(pixels: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """The photo with values between those of 8 bits."""
    below = np.arange(pixels.size, dtype=np.uint16).reshape(pixels.shape) % 257
    return (pixels.astype(np.uint16) * 257).clip(0, 65535 - 256) // 257 * 257 + below


def camera_exif(orientation: int = 1) -> Image.Exif:
    exif = Image.Exif()
    exif[Base.Orientation], exif[Base.Make] = orientation, "Maker"
    exif.get_ifd(IFD.Exif).update({Base.DateTimeOriginal: "2026:11:28 05:42:00"})
    exif.get_ifd(IFD.Exif).update({Base.UserComment: b"ASCII\0\0\0at the sea"})
    exif.get_ifd(IFD.GPSInfo).update({1: "N", 2: (52.0, 31.0, 12.0)})
    return exif


@pytest.mark.parametrize("kind", ["HEIF", "AVIF", "JPEG", "PNG"])
def test_it_is_upright_in_its_own_colours(
    kind: str, pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    pillow_heif.register_heif_opener()
    image, path = Image.fromarray(np.rot90(pixels)), tmp_path / "photo"
    exif = camera_exif(6)
    if kind == "HEIF":  # turned as a phone's file is, not by EXIF data alone
        image.info["icc_profile"] = P3
        pillow_heif.from_pillow(image).save(path, quality=95, exif=exif.tobytes())
    else:
        image.save(path, kind, quality=95, exif=exif, icc_profile=P3)
    photo = open_photo(path)
    assert photo.profile == P3
    assert np.abs(photo.pixels.astype(int) - pixels).mean() < 4
    assert photo.size == pixels.shape[:2]
    assert Base.Orientation not in photo.exif
    assert photo.exif[Base.Make] == "Maker"
    assert np.abs(photo.in_srgb().pixels.astype(int) - np.asarray(load_photo(path))).max() <= 1
    assert photo.in_srgb().profile is None


def test_what_is_not_rgb_becomes_srgb(tmp_path: Path) -> None:
    Image.new("RGBA", (20, 20), (200, 100, 0, 51)).save(tmp_path / "clear.png", icc_profile=P3)
    photo = open_photo(tmp_path / "clear.png", deep=True)
    assert photo.profile is None
    assert np.array_equal(photo.pixels, np.asarray(load_photo(tmp_path / "clear.png")))


def write_deep(kind: str, path: Path, deep: NDArray[np.uint16]) -> None:
    if kind == "png":
        path.write_bytes(png_16(deep))
    elif kind == "tif":
        tifffile.imwrite(path, deep, photometric="rgb")
    elif kind == "grey":
        Image.fromarray(deep[..., 0]).save(path, "PNG")
    else:
        made = pillow_heif.from_bytes("RGB;16", deep.shape[1::-1], deep.tobytes())
        made.save(path, quality=-1)


@pytest.mark.parametrize(("kind", "most"), [("png", 0), ("tif", 0), ("grey", 0), ("heif", 700)])
def test_more_than_8_bits_stay(
    kind: str, most: int, deep: NDArray[np.uint16], tmp_path: Path
) -> None:
    write_deep(kind, tmp_path / "photo", deep)
    photo = open_photo(tmp_path / "photo", deep=True)
    expected = deep[..., :1].repeat(3, 2) if kind == "grey" else deep
    assert photo.pixels.dtype == np.uint16
    assert np.abs(photo.pixels.astype(int) - expected).mean() <= most
    assert len(np.unique(photo.pixels)) > 300
    assert open_photo(tmp_path / "photo").pixels.dtype == np.uint8


def test_deep_pixels_are_turned_upright(deep: NDArray[np.uint16], tmp_path: Path) -> None:
    for orientation in range(1, 9):
        exif = camera_exif(orientation)
        few = Image.fromarray((deep // 257).astype(np.uint8))
        few.save(tmp_path / "few.png", exif=exif)
        whole = png_16(deep)
        data = exif.tobytes().removeprefix(b"Exif\0\0")
        chunk = struct.pack(">I", len(data)) + b"eXIf" + data
        chunk += struct.pack(">I", zlib.crc32(b"eXIf" + data))
        (tmp_path / "many.png").write_bytes(whole[:33] + chunk + whole[33:])
        many = open_photo(tmp_path / "many.png", deep=True).pixels
        assert many.dtype == np.uint16
        assert np.array_equal(many // 257, open_photo(tmp_path / "few.png").pixels)


@pytest.mark.parametrize("kind", ["contrast", "grey", "pale"])
def test_deep_tiffs_are_turned_upright(
    kind: str, deep: NDArray[np.uint16], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Pillow has turned them, and says nothing of it; pale ones look alike however they lie."""
    values = deep if kind != "pale" else 30_000 + deep // 500
    values = values[..., 0] if kind == "grey" else values
    for orientation in range(1, 9):
        path = tmp_path / f"{orientation}.tif"
        photometric = "minisblack" if kind == "grey" else "rgb"
        tags = [(int(Base.Orientation), "H", 1, orientation, True)]
        tifffile.imwrite(path, values, photometric=photometric, extratags=tags)
        many = open_photo(path, deep=True).pixels
        expected = values if values.ndim == 3 else values[..., None].repeat(3, 2)
        assert np.array_equal(many, turned(expected, orientation)), orientation
    assert capfd.readouterr().err == ""


def test_a_name_with_a_colon_is_a_files(
    deep: NDArray[np.uint16], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("12:30.tif", deep, photometric="rgb")
    assert np.array_equal(open_photo(Path("12:30.tif"), deep=True).pixels, deep)


def test_bits_that_cannot_be_read_are_said(
    deep: NDArray[np.uint16],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    tifffile.imwrite(tmp_path / "photo.tif", deep, photometric="rgb")
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: "false")
    assert open_photo(tmp_path / "photo.tif", deep=True).pixels.dtype == np.uint8
    assert capfd.readouterr().err == "photo.tif: read in 8 bits, its further ones cannot be\n"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (b"urn:com:apple:photo:2020:aux:hdrgainmap", "HDR gain map not carried over"),
        (b'xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/"', "HDR gain map not carried over"),
        (b"http://ns.google.com/photos/1.0/depthmap/", "depth map not carried over"),
        (b'GCamera:MotionPhoto="1"', "motion not carried over"),
        (b"<GCamera:MotionPhoto>1</GCamera:MotionPhoto>", "motion not carried over"),
        (b'GCamera:MotionPhoto="0"', ""),
        (b"nothing", ""),
    ],
)
def test_what_lies_beside_is_said(
    more: bytes,
    said: str,
    pixels: NDArray[np.uint8],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "photo.jpg"
    Image.fromarray(pixels).save(path, xmp=b"<x:xmpmeta>" + more + b"</x:xmpmeta>")
    photo = open_photo(path)
    assert capfd.readouterr().err.strip() == (f"photo.jpg: {said}" if said else "")
    assert (photo.xmp is None) == bool(said)


# what is written


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".png", ".tif", ".tiff"])
def test_a_picture_keeps_what_its_photo_told(
    suffix: str, pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    Image.fromarray(pixels).save(
        tmp_path / "photo.jpg", exif=camera_exif(6), icc_profile=P3, xmp=b"<x:xmpmeta/>", quality=95
    )
    photo, path = open_photo(tmp_path / "photo.jpg"), tmp_path / f"made{suffix}"
    save_picture(photo, path, {"focus": 3.5, "model": "student"})
    assert sorted(tmp_path.iterdir()) == sorted([path, tmp_path / "photo.jpg"])
    with Image.open(path) as image:
        error = np.abs(np.asarray(image).astype(int) - photo.pixels)
        assert error.mean() < 3 if "j" in suffix.lower() else not error.any()
        assert image.info["icc_profile"] == P3
        assert image.info["xmp"] == b"<x:xmpmeta/>"
        camera = image.getexif().get_ifd(IFD.Exif)
        assert image.getexif()[Base.Orientation] == 1
        assert image.getexif()[Base.Make] == "Maker"
        assert image.getexif().get_ifd(IFD.GPSInfo)[1] == "N"
        assert camera[Base.DateTimeOriginal] == "2026:11:28 05:42:00"
        assert (camera[Base.ExifImageHeight], camera[Base.ExifImageWidth]) == photo.size
        comment = camera[Base.UserComment]
        assert comment.startswith(b"ASCII\0\0\0{")
        assert b'"focus": 3.5, "model": "student", "comment": "at the sea"' in comment
    again = open_photo(path)
    save_picture(again, tmp_path / "again.jpg", {"focus": 1.0})
    camera = Image.open(tmp_path / "again.jpg").getexif().get_ifd(IFD.Exif)
    assert camera[Base.UserComment].count(b"pocketfocus") == 1
    assert b'"comment": "at the sea"' in camera[Base.UserComment]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_are_written(suffix: str, deep: NDArray[np.uint16], tmp_path: Path) -> None:
    path = tmp_path / f"made{suffix}"
    tall = np.tile(deep, (9, 1, 1))  # several strips
    save_picture(Photo("photo", tall, P3, Image.Exif(), None), path, {})
    assert np.array_equal(open_photo(path, deep=True).pixels, tall)
    assert open_photo(path).profile == P3
    if suffix == ".tif":
        assert np.array_equal(tifffile.imread(path), tall)


def test_profiles_are_kept_whole(pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    save_picture(Photo("a", pixels, profile, Image.Exif(), None), tmp_path / "a.png", {})
    found = ImageCms.ImageCmsProfile(io.BytesIO(Image.open(tmp_path / "a.png").info["icc_profile"]))
    assert ImageCms.getProfileDescription(found).strip() == "sRGB built-in"


@pytest.mark.parametrize(
    ("part", "tag", "said"),
    [
        (IFD.Exif, Base.MakerNote, "MakerNote"),
        (None, 65_001, "tag 65001"),
        (IFD.GPSInfo, 27, "GPSProcessingMethod"),
    ],
)
def test_what_leaves_no_room_is_left_out(
    part: IFD | None,
    tag: int,
    said: str,
    pixels: NDArray[np.uint8],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    exif = camera_exif()
    (exif if part is None else exif.get_ifd(part))[tag] = bytes(65_400)
    save_picture(Photo("photo.heic", pixels, None, exif, None), tmp_path / "a.jpg", {})
    line = f"photo.heic: its {said} leaves no room in a JPEG file and is left out\n"
    assert capfd.readouterr().err == line
    written = Image.open(tmp_path / "a.jpg").getexif()
    assert written[Base.Make] == "Maker"
    assert written.get_ifd(IFD.GPSInfo)[1] == "N"


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_layers_of_an_editor_are_not_carried_over(
    suffix: str, pixels: NDArray[np.uint8], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    layers = b"Adobe Photoshop Document Data Block\0" + bytes(200_000)
    tags = [(37724, "B", len(layers), layers, True), (int(Base.Make), "s", 0, "Maker", True)]
    tifffile.imwrite(tmp_path / "photo.tif", pixels, photometric="rgb", extratags=tags)
    path = tmp_path / f"made{suffix}"
    save_picture(open_photo(tmp_path / "photo.tif"), path, {})
    assert b"Document Data Block" not in path.read_bytes()
    assert Image.open(path).getexif()[Base.Make] == "Maker"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("endian", "comment"),
    [
        ("<", b"UNICODE\0" + "am Meer 海辺".encode("utf-16-le")),
        (">", b"UNICODE\0" + "am Meer 海辺".encode("utf-16-be")),
        ("<", b"UNICODE\0\xfe\xff" + "am Meer 海辺".encode("utf-16-be")),
        (">", b"JIS\0\0\0\0\0" + "am Meer 海辺".encode("iso2022_jp")),
        ("<", b"ASCII\0\0\0" + "am Meer 海辺".encode()),
        ("<", bytes(8) + "am Meer 海辺".encode()),
    ],
)
def test_a_comment_is_read_in_its_own_code(
    endian: str, comment: bytes, pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif.endian = endian
    exif.get_ifd(IFD.Exif)[Base.UserComment] = comment
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", exif=exif)
    save_picture(open_photo(tmp_path / "photo.jpg"), tmp_path / "made.jpg", {})
    written = Image.open(tmp_path / "made.jpg").getexif().get_ifd(IFD.Exif)[Base.UserComment]
    assert json.loads(written.removeprefix(b"ASCII\0\0\0"))["comment"] == "am Meer 海辺"


def test_suffixes_that_are_written_are_those_that_are_taken() -> None:
    assert tuple(WRITERS) == PICTURES
    assert [is_deep(Path(f"a{suffix}")) for suffix in (".jpg", ".PNG", ".tif")] == [
        False,
        True,
        True,
    ]


def test_limited(pixels: NDArray[np.uint8], deep: NDArray[np.uint16]) -> None:
    for each in (pixels, deep):
        photo = Photo("photo", each, None, Image.Exif(), None)
        assert photo.limited(None).pixels is photo.limited(96).pixels is each
        small = photo.limited(48)
        assert (small.size, small.pixels.dtype) == ((32, 48), each.dtype)
        means = each.reshape(32, 2, 48, 2, 3).mean((1, 3))
        white = np.iinfo(each.dtype).max
        assert np.abs(small.pixels - means).mean() < 0.03 * white
