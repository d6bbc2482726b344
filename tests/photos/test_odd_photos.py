"""Photos with something unusual in them: greys upside down, odd values, long texts, more bits."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pillow_heif
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from PIL.ExifTags import IFD, Base
from PIL.TiffImagePlugin import IFDRational, ImageFileDirectory_v2
from PIL.TiffTags import UNDEFINED

from pocketfocus.cli.app import describe
from pocketfocus.data.scenes import bundled_photos
from pocketfocus.photos import pixels as reader
from pocketfocus.photos.images import load_photo
from pocketfocus.photos.pixels import Photo, open_photo
from pocketfocus.photos.saving import save_picture
from tests.photos.test_images import P3_TO_XYZ, icc, png_16, rgb_profile

IN_8_BITS = "read in 8 bits, its further ones cannot be\n"
KINDS = (".jpg", ".png", ".tif")


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    return np.ascontiguousarray(bundled_photos()["coffee"][40:104, 30:126])


@pytest.fixture(scope="module")
def deep(pixels: NDArray[np.uint8]) -> NDArray[np.uint16]:
    return pixels.astype(np.uint16) * 257


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("white", [255, 65535, 1.0])
def test_greys_whose_white_is_zero_are_no_negative(
    white: float, compression: str | None, pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    kinds: dict[float, type] = {255: np.uint8, 65535: np.uint16, 1.0: np.float32}
    upside_down = (1 - pixels[..., 0] / 255) * white
    kind = kinds[white]
    values = upside_down.astype(kind) if kind is np.float32 else np.rint(upside_down).astype(kind)
    path = tmp_path / "photo.tif"
    tifffile.imwrite(path, values, photometric="miniswhite", compression=compression)
    grey = np.repeat(pixels[..., :1], 3, 2).astype(int)
    assert np.abs(np.asarray(load_photo(path)) - grey).max() <= 1
    found = open_photo(path, deep=True).pixels
    assert found.dtype == (np.uint16 if white == 65535 else np.uint8)
    assert np.abs(found // (257 if found.dtype == np.uint16 else 1) - grey).max() <= 1


def odd_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[Base.Make], exif[Base.XResolution], exif[Base.ResolutionUnit] = "Maker", "72", 70_000
    exif[Base.Software] = IFDRational(3, 2)
    exif.get_ifd(IFD.GPSInfo).update({0: "2.3", 1: "N", 6: IFDRational(-72, 1)})
    return exif


@pytest.mark.parametrize("suffix", KINDS)
def test_odd_values_of_exif_data_are_left_out_and_said(
    suffix: str, pixels: NDArray[np.uint8], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_picture(Photo("odd", pixels, None, odd_exif(), None), tmp_path / f"made{suffix}", {})
    said = capfd.readouterr().err.splitlines()
    names = ("XResolution", "ResolutionUnit", "Software", "GPSVersionID", "GPSAltitude")
    assert sorted(said) == sorted(f"odd: its {name} is odd and is left out" for name in names)
    written = Image.open(tmp_path / f"made{suffix}").getexif()
    assert written[Base.Make] == "Maker"
    assert written.get_ifd(IFD.GPSInfo) == {1: "N"}


@pytest.mark.parametrize("suffix", KINDS)
def test_xmp_of_a_tiff_that_is_text(suffix: str, pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    odd = [(700, "s", 0, "<x:xmpmeta/>", True)]
    tifffile.imwrite(tmp_path / "photo.tif", pixels, photometric="rgb", extratags=odd)
    save_picture(open_photo(tmp_path / "photo.tif"), tmp_path / f"made{suffix}", {})
    assert Image.open(tmp_path / f"made{suffix}").info["xmp"] == b"<x:xmpmeta/>"


def test_bytes_of_exif_data_stay_undefined(pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    exif = Image.Exif()
    numbers: dict[int, bytes] = {
        Base.MakerNote: b"Nikon\0",
        Base.FileSource: b"\3",
        Base.ExifVersion: b"0232",
    }
    exif.get_ifd(IFD.Exif).update({**numbers, Base.ComponentsConfiguration: b"\1\2\3\0"})
    path = tmp_path / "made.jpg"
    save_picture(Photo("photo", pixels, None, exif, None), path, {})
    data = Image.open(path).info["exif"].removeprefix(b"Exif\0\0")
    whole, part = (ImageFileDirectory_v2(data[:8], group=group) for group in (None, IFD.Exif))
    for tags, start in ((whole, lambda: 8), (part, lambda: whole[IFD.Exif])):
        file = io.BytesIO(data)
        file.seek(start())
        tags.load(file)
    assert IFD.GPSInfo not in whole, "there is none"
    for tag in (*numbers, Base.ComponentsConfiguration, Base.UserComment):
        assert part.tagtype[tag] == UNDEFINED, tag
    assert part[Base.MakerNote] == b"Nikon\0"


def test_a_png_with_a_long_profile_or_text_is_read(
    pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, 1_200_000, dtype=np.uint8).tobytes()
    profile = rgb_profile(P3_TO_XYZ, 2.2) + noise
    profile = struct.pack(">I", len(profile)) + profile[4:]
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", "a" * 1_200_000, zip=True)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "photo.png", icc_profile=profile, pnginfo=texts)
    photo = open_photo(tmp_path / "photo.png")
    assert photo.profile == profile
    assert np.array_equal(photo.pixels, pixels)


def grey_profile() -> bytes:
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    curve = b"curv\0\0\0\0" + struct.pack(">IHH", 1, 563, 0)
    return icc(b"GRAY", b"mntr", b"XYZ ", {b"wtpt": white, b"kTRC": curve})


def write_of_16_bits(kind: str, path: Path, deep: NDArray[np.uint16]) -> None:
    opaque = np.full_like(deep[..., :1], 65535)
    if kind == "grey with a profile":
        tifffile.imwrite(path, deep[..., 0], photometric="minisblack", iccprofile=grey_profile())
    elif kind == "transparency":
        values = np.dstack([deep, opaque])
        tifffile.imwrite(path, values, photometric="rgb", extrasamples=["unassalpha"])
    elif kind == "CMYK":
        tifffile.imwrite(path, np.dstack([65535 - deep, 65535 - opaque]), photometric="separated")
    elif kind == "HEIC with transparency":
        values = np.dstack([deep, opaque])
        made = pillow_heif.from_bytes("RGBA;16", deep.shape[1::-1], values.tobytes())
        made.save(path, quality=-1, format="HEIF")
    else:
        whole, broken = png_16(deep), b"eXIfno TIFF header"
        chunk = struct.pack(">I", len(broken) - 4) + broken + struct.pack(">I", zlib.crc32(broken))
        path.write_bytes(whole[:33] + chunk + whole[33:])


@pytest.mark.parametrize(
    "kind", ["grey with a profile", "transparency", "CMYK", "HEIC with transparency", "broken EXIF"]
)
def test_16_bits_become_8_saying_so(
    kind: str,
    deep: NDArray[np.uint16],
    pixels: NDArray[np.uint8],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "photo"
    write_of_16_bits(kind, path, deep)
    found = open_photo(path, deep=True).pixels
    said = capfd.readouterr().err
    if found.dtype == np.uint16:  # as ffmpeg may read what Pillow does
        assert kind == "broken EXIF"
        assert IN_8_BITS not in said
    else:
        assert said.endswith(f"photo: {IN_8_BITS}")
    open_photo(path)
    assert IN_8_BITS not in capfd.readouterr().err, "nobody asked for more"


def test_a_photo_with_broken_exif_still_tells_its_gain_map(
    pixels: NDArray[np.uint8], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    xmp = b'<x:xmpmeta xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/"/>'
    exif = b"Exif\0\0no TIFF header"
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", exif=exif, xmp=xmp)
    assert open_photo(tmp_path / "photo.jpg").xmp is None
    assert "HDR gain map not carried over" in capfd.readouterr().err


@pytest.mark.parametrize("suffix", KINDS)
@pytest.mark.parametrize("form", ['tiff:Orientation="6"', "<tiff:Orientation>6</tiff:Orientation>"])
def test_an_orientation_that_xmp_tells_otherwise_turns_no_picture(
    form: str, suffix: str, pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[Base.Orientation] = 1
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", exif=exif, xmp=f"<x {form}/>".encode())
    save_picture(open_photo(tmp_path / "photo.jpg"), tmp_path / f"made{suffix}", {})
    again = open_photo(tmp_path / f"made{suffix}")
    assert again.size == pixels.shape[:2]
    assert again.xmp == f"<x {form}/>".replace("6", "1").encode()
    with Image.open(tmp_path / f"made{suffix}") as image:
        assert image.getexif()[Base.Orientation] == 1


def test_too_little_memory_is_not_the_files_fault(
    pixels: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Image.Image) -> NDArray[np.uint8]:
        raise MemoryError

    Image.fromarray(pixels).save(tmp_path / "photo.png")
    monkeypatch.setattr(reader, "unpacked", full)
    with pytest.raises(MemoryError) as caught:
        open_photo(tmp_path / "photo.png")
    said = describe(caught.value)
    assert said == "out of memory: close other programs or use smaller photos"


def test_without_ffmpeg_there_are_8_bits(
    deep: NDArray[np.uint16],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def missing() -> str:
        raise RuntimeError("No ffmpeg exe could be found.")

    (tmp_path / "photo.png").write_bytes(png_16(deep))
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", missing)
    assert open_photo(tmp_path / "photo.png", deep=True).pixels.dtype == np.uint8
    assert capfd.readouterr().err == f"photo.png: {IN_8_BITS}"


def test_xmp_that_leaves_no_room_is_said(
    pixels: NDArray[np.uint8], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    photo = Photo("photo.png", pixels, None, Image.Exif(), b"<x>" + bytes(65_000) + b"</x>")
    save_picture(photo, tmp_path / "a.jpg", {})
    line = "photo.png: its XMP leaves no room in a JPEG file and is left out\n"
    assert capfd.readouterr().err == line


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_iptc_data_are_said(
    suffix: str, pixels: NDArray[np.uint8], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, iptc = tmp_path / f"photo{suffix}", b"\x1c\x02\x74\x00\x05(c)me"
    if suffix == ".tif":
        tags = [(int(Base.IPTCNAA), "B", len(iptc), iptc, True)]
        tifffile.imwrite(path, pixels, photometric="rgb", extratags=tags)
    else:
        resource = b"Photoshop 3.0\x008BIM\x04\x04\0\0" + struct.pack(">I", len(iptc)) + iptc
        segment = b"\xff\xed" + struct.pack(">H", len(resource) + 2) + resource
        Image.fromarray(pixels).save(path, extra=segment, xmp=b"<x:xmpmeta/>")
    photo = open_photo(path)
    said = f"photo{suffix}: IPTC data (caption, copyright) not carried over\n"
    assert capfd.readouterr().err == said
    assert suffix == ".tif" or photo.xmp == b"<x:xmpmeta/>", "which they say nothing of"


def test_of_several_pictures_the_main_one_is_used(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = pillow_heif.HeifFile()
    for colour in ("red", "blue"):
        made.add_from_pillow(Image.new("RGB", (64, 64), colour))
    made.save(tmp_path / "two.heic", primary_index=1, quality=90)
    assert open_photo(tmp_path / "two.heic").pixels[5, 5, 2] > 200
    assert capfd.readouterr().err == "two.heic holds 2 pictures: the main one is used\n"
