"""Photos of every kind become 8-bit sRGB; everything else becomes one line."""

from __future__ import annotations

import io
import math
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pocketfocus.data.scenes import bundled_photos
from pocketfocus.photos import images
from pocketfocus.photos.images import (
    from_uint8,
    load_photo,
    prepare,
    to_tensor,
    to_uint8,
)
from pocketfocus.run.errors import UserError

ORIENTATION = 0x112
PIL_TO_FILE = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "TIFF": "tif", "GIF": "gif"}
# Linear RGB to XYZ under D50 (the ICC profile connection space); sRGB is Bradford-adapted
SRGB_TO_XYZ = np.array(
    [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169],
     [0.0139322, 0.0971045, 0.7141733]]
)  # fmt: skip
P3_TO_XYZ = np.array(
    [[0.515121, 0.291977, 0.157104], [0.241196, 0.692245, 0.066559],
     [-0.001054, 0.041885, 0.784073]]
)  # fmt: skip


@pytest.fixture(scope="module")
def coffee() -> Image.Image:
    return Image.fromarray(bundled_photos()["coffee"]).resize((96, 64))


def pixels(image: Image.Image) -> NDArray[np.int64]:
    return np.asarray(image).astype(np.int64)


def icc(space: bytes, kind: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A version 2.4 ICC profile of these tags."""
    table, body, start = b"", b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    size = struct.pack(">I", start + len(body))
    head = size + b"\0" * 4 + b"\x02\x40\0\0" + kind + space + pcs + b"\0" * 12 + b"acsp"
    head += b"\0" * 28 + struct.pack(">3i", 63190, 65536, 54061) + b"\0" * 48
    return head + struct.pack(">I", len(tags)) + table + body


def rgb_profile(to_xyz: NDArray[np.float64], gamma: float) -> bytes:
    curve = b"curv\0\0\0\0" + struct.pack(">IHH", 1, round(gamma * 256), 0)
    tags = {b"wtpt": b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)}
    for i, name in enumerate((b"r", b"g", b"b")):
        column = [round(v * 65536) for v in to_xyz[:, i]]
        tags[name + b"XYZ"] = b"XYZ \0\0\0\0" + struct.pack(">3i", *column)
        tags[name + b"TRC"] = curve
    return icc(b"RGB ", b"mntr", b"XYZ ", tags)


def cmyk_profile_of_red_cyan() -> bytes:
    """A printer whose cyan ink is red: L*a*b* (53, 80, 67); black is black, the others nothing."""
    paper, red, black = (255, 128, 128), (136, 208, 195), (0, 128, 128)
    corners = [(cyan, key) for cyan in (0, 1) for _ in range(4) for key in (0, 1)]
    points = b"".join(bytes(black if key else red if cyan else paper) for cyan, key in corners)
    ramp = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    table = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + matrix + ramp * 4 + points + ramp * 3
    return icc(b"CMYK", b"prtr", b"Lab ", {b"A2B0": table})


def png_16(rows: NDArray[np.uint16]) -> bytes:
    """A 16-bit PNG of [H, W, 3] RGB, which Pillow cannot write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)

    H, W, _ = rows.shape
    data = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", W, H, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


# photos of every kind


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_usual_files_come_as_they_are(kind: str, tmp_path: Path, coffee: Image.Image) -> None:
    path = tmp_path / f"photo.{PIL_TO_FILE[kind]}"
    coffee.save(path, kind, **({"lossless": True} if kind == "WEBP" else {}))
    loaded = load_photo(path)
    assert loaded.mode == "RGB"
    expected = Image.open(path).convert("RGB") if kind == "JPEG" else coffee
    assert np.array_equal(pixels(loaded), pixels(expected))


def test_the_content_decides_not_the_name(tmp_path: Path, coffee: Image.Image) -> None:
    coffee.save(tmp_path / "photo.jpg", "PNG")
    assert np.array_equal(pixels(load_photo(tmp_path / "photo.jpg")), pixels(coffee))


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a.transpose(1, 0, 2)[::-1, ::-1]),
        (8, lambda a: np.rot90(a, 1)),
    ],
)
def test_exif_orientation(
    orientation: int,
    turned: Callable[[NDArray[np.int64]], NDArray[np.int64]],
    tmp_path: Path,
    coffee: Image.Image,
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    coffee.save(tmp_path / "photo.png", exif=exif)
    assert np.array_equal(pixels(load_photo(tmp_path / "photo.png")), turned(pixels(coffee)))


def test_broken_exif_is_ignored_saying_so(
    tmp_path: Path, coffee: Image.Image, capfd: pytest.CaptureFixture[str]
) -> None:
    coffee.save(tmp_path / "photo.png", exif=b"no TIFF header")
    assert np.array_equal(pixels(load_photo(tmp_path / "photo.png")), pixels(coffee))
    assert "photo.png: its EXIF data cannot be read" in capfd.readouterr().err


@pytest.mark.parametrize("orientation", [1, 6])
def test_display_p3_profile(orientation: int, tmp_path: Path, coffee: Image.Image) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    profile = rgb_profile(P3_TO_XYZ, 2.2)
    coffee.save(tmp_path / "photo.png", icc_profile=profile, exif=exif)
    linear = (pixels(coffee) / 255) ** 2.2 @ (np.linalg.inv(SRGB_TO_XYZ) @ P3_TO_XYZ).T
    linear = linear.clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    expected = np.rint(255 * encoded)
    if orientation == 6:
        expected = np.rot90(expected, -1)
    found = pixels(load_photo(tmp_path / "photo.png"))
    assert np.abs(found - expected).max() <= 3
    assert np.abs(found - expected).mean() < 0.5
    upright = pixels(coffee) if orientation == 1 else np.rot90(pixels(coffee), -1)
    assert np.abs(expected - upright).mean() > 2  # the profile matters


def test_broken_profile_is_ignored_saying_so(
    tmp_path: Path, coffee: Image.Image, capfd: pytest.CaptureFixture[str]
) -> None:
    coffee.save(tmp_path / "[red] photo.png", icc_profile=b"garbage" * 40)
    assert np.array_equal(pixels(load_photo(tmp_path / "[red] photo.png")), pixels(coffee))
    assert "[red] photo.png: its ICC profile cannot be used" in capfd.readouterr().err


def test_profile_of_another_colour_space_is_ignored(
    tmp_path: Path, coffee: Image.Image, capfd: pytest.CaptureFixture[str]
) -> None:
    coffee.save(tmp_path / "photo.png", icc_profile=cmyk_profile_of_red_cyan())
    assert np.array_equal(pixels(load_photo(tmp_path / "photo.png")), pixels(coffee))
    assert "cannot be used" in capfd.readouterr().err


def test_grey_photo_with_an_rgb_profile(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image = Image.new("L", (20, 20), 77)
    image.save(tmp_path / "grey.png", icc_profile=rgb_profile(SRGB_TO_XYZ, 1.0))
    encoded = 1.055 * (77 / 255) ** (1 / 2.4) - 0.055
    assert np.abs(pixels(load_photo(tmp_path / "grey.png")) - 255 * encoded).max() <= 1
    assert capfd.readouterr().err == ""


def test_cmyk_without_a_profile(tmp_path: Path) -> None:
    Image.new("CMYK", (20, 20), (0, 255, 255, 0)).save(tmp_path / "ink.jpg")
    red = pixels(load_photo(tmp_path / "ink.jpg"))
    assert np.abs(red - (255, 0, 0)).max() <= 2


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_goes_through_its_profile(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"ink.{suffix}"
    Image.new("CMYK", (20, 20), (255, 0, 0, 0)).save(path, icc_profile=cmyk_profile_of_red_cyan())
    assert np.abs(pixels(load_photo(path)) - (255, 0, 0)).max() <= 12


def test_16_bit_rgb_png(tmp_path: Path, coffee: Image.Image) -> None:
    values = (pixels(coffee) * 257).astype(np.uint16)
    (tmp_path / "deep.png").write_bytes(png_16(values))
    assert np.abs(pixels(load_photo(tmp_path / "deep.png")) - pixels(coffee)).max() <= 1


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey(suffix: str, tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)
    Image.fromarray(np.tile(ramp, (16, 1))).save(tmp_path / f"deep.{suffix}")
    found = pixels(load_photo(tmp_path / f"deep.{suffix}"))
    assert np.array_equal(found, np.tile(np.rint(ramp / 257)[None, :, None], (16, 1, 3)))


@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0, 1e9])
def test_float_tiff_says_nothing_of_its_range(white: float, tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 32, dtype=np.float32)
    image = np.tile(ramp * np.float32(white), (16, 1))
    image[3, 0] = np.nan
    Image.fromarray(image).save(tmp_path / "float.tif")
    found = pixels(load_photo(tmp_path / "float.tif"))
    assert np.array_equal(found, np.tile(np.rint(255 * ramp)[None, :, None], (16, 1, 3)))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LAB", "YCbCr"])
def test_other_modes_become_rgb(mode: str, tmp_path: Path, coffee: Image.Image) -> None:
    image = (
        coffee.convert("RGB").convert(mode) if mode != "LAB" else Image.new("LAB", (20, 20), 255)
    )
    path = tmp_path / "photo.tif"
    image.save(path)
    loaded = load_photo(path)
    assert (loaded.mode, loaded.size) == ("RGB", image.size)
    if mode != "LAB":
        assert np.abs(pixels(loaded) - pixels(image.convert("RGB"))).max() <= 1


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (200, 100, 0, 255), (200, 100, 0)),
        ("RGBA", (200, 100, 0, 0), (255, 255, 255)),
        ("RGBA", (200, 100, 0, 51), (244, 224, 204)),
        ("LA", (100, 51), (224, 224, 224)),
    ],
)
@pytest.mark.parametrize("profile", [b"", rgb_profile(SRGB_TO_XYZ, 2.2)])
def test_transparency_lies_over_white(
    mode: str,
    colour: tuple[int, ...],
    expected: tuple[int, ...],
    profile: bytes,
    tmp_path: Path,
) -> None:
    Image.new(mode, (20, 20), colour).save(tmp_path / "clear.png", icc_profile=profile)
    assert np.abs(pixels(load_photo(tmp_path / "clear.png")) - expected).max() <= 2


def test_transparent_palette_colour(tmp_path: Path) -> None:
    image = Image.new("P", (20, 20), 1)
    image.putpalette([9, 9, 9, 200, 0, 0])
    image.paste(0, (0, 0, 10, 20))
    image.save(tmp_path / "palette.png", transparency=0)
    found = pixels(load_photo(tmp_path / "palette.png"))
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[0, 19].tolist() == [200, 0, 0]


def test_first_frame_of_an_animation(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    red, blue = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (20, 20), "blue")
    red.save(tmp_path / "moving.gif", save_all=True, append_images=[blue, red])
    assert pixels(load_photo(tmp_path / "moving.gif"))[5, 5].tolist() == [255, 0, 0]
    assert "moving.gif holds 3 frames: the first one is used" in capfd.readouterr().err


def test_20_000_pixels_wide(tmp_path: Path) -> None:
    Image.new("L", (20_000, 1_300), 90).save(tmp_path / "wide.png")
    photo = load_photo(tmp_path / "wide.png")
    assert photo.size == (20_000, 1_300)
    assert prepare(photo).shape == (1, 3, 64, 1024)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "I;16", "F", "CMYK"])
def test_strips_change_nothing_nor_does_lying_on_a_side(
    mode: str, tmp_path: Path, coffee: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow reads uncompressed TIFF files of some modes askew that lie on a side."""
    grey = np.asarray(coffee.convert("L"))
    deep: dict[str, NDArray[Any]] = {
        "I;16": grey.astype(np.uint16) * 200,
        "F": grey.astype(np.float32) * 3,
    }
    image = Image.fromarray(deep[mode]) if mode in deep else coffee.convert(mode)
    if mode.endswith("A"):
        image.putalpha(coffee.convert("L"))
    exif = image.getexif()
    for orientation in (1, 6):
        exif[ORIENTATION] = orientation
        path = tmp_path / f"{orientation}.tif"
        image.save(path, exif=exif, icc_profile=rgb_profile(P3_TO_XYZ, 2.2))
    whole = load_photo(tmp_path / "1.tif")
    turned = whole.transpose(Image.Transpose.ROTATE_270)
    monkeypatch.setattr(images, "STRIP", 5 * image.width)
    assert np.array_equal(pixels(load_photo(tmp_path / "1.tif")), pixels(whole))
    assert np.array_equal(pixels(load_photo(tmp_path / "6.tif")), pixels(turned))


# bad input


def damaged(kind: str, keep: float, photo: Image.Image) -> bytes:
    data = io.BytesIO()
    photo.save(data, kind)
    whole = data.getvalue()
    return whole[: int(len(whole) * keep)]


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_photo(path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    assert ": " in text  # what it is: what to do
    return text


def test_missing_photo(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.jpg")


def test_folder(tmp_path: Path) -> None:
    assert "is a folder" in refusal(tmp_path)


def test_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert "not a regular file" in refusal(tmp_path / "pipe.jpg")


def test_name_longer_than_the_system_takes(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / ("n" * 300))


def test_photo_that_may_not_be_read(tmp_path: Path, coffee: Image.Image) -> None:
    coffee.save(tmp_path / "private.png")
    (tmp_path / "private.png").chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root reads anything
    try:
        assert "Permission denied" in refusal(tmp_path / "private.png")
    finally:
        os.seteuid(user)


@pytest.mark.parametrize(("content", "said"), [(b"", "is empty"), (b"Dear diary", "not an image")])
def test_not_an_image(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(content)
    assert said in refusal(tmp_path / "photo.jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF"])
def test_truncated(kind: str, tmp_path: Path, coffee: Image.Image) -> None:
    path = tmp_path / "photo"
    path.write_bytes(damaged(kind, 0.6, coffee))
    refusal(path)


@pytest.mark.parametrize("size", [(1, 1), (15, 40), (40, 15)])
def test_tiny(size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", size).save(tmp_path / "dot.png")
    assert f"is {size[0]}x{size[1]} pixels, at least 16x16" in refusal(tmp_path / "dot.png")


def test_a_strip(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16 * 16)).save(tmp_path / "tall.png")
    assert load_photo(tmp_path / "tall.png").size == (16, 256)
    Image.new("RGB", (16 * 16 + 1, 16)).save(tmp_path / "strip.png")
    assert "crop it" in refusal(tmp_path / "strip.png")


@pytest.mark.parametrize(("width", "bomb"), [(20_001, True), (20_000, False)])
def test_200_million_pixels_and_no_more(width: int, bomb: bool, tmp_path: Path) -> None:
    data = bytearray(png_16(np.zeros((16, 16, 3), np.uint16)))
    data[16:24] = struct.pack(">II", width, 10_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "bomb.png").write_bytes(data)
    before = Image.MAX_IMAGE_PIXELS
    text = refusal(tmp_path / "bomb.png")  # the smaller one has no pixels after its header
    assert ("over 200,000,000 pixels" in text) == bomb
    assert before == Image.MAX_IMAGE_PIXELS


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF", "GIF"]),
    keep=st.floats(0, 1),
    holes=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=4),
)
def test_damage_gives_a_photo_or_one_line(
    kind: str, keep: float, holes: list[tuple[float, bytes]], tmp_path: Path, coffee: Image.Image
) -> None:
    data = bytearray(damaged(kind, keep, coffee))
    for place, values in holes:
        start = int(place * len(data))
        data[start : start + len(values)] = values
    path = tmp_path / "photo"
    path.write_bytes(data)
    try:
        photo = load_photo(path)
    except UserError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
    else:
        assert photo.mode == "RGB"
        assert min(photo.size) >= 16


# tensors


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_there_and_back(seed: int) -> None:
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 7, 3), np.uint8))
    tensor = to_tensor(image)
    assert tensor.shape == (1, 3, 9, 7)
    assert tensor.abs().max() <= 1
    assert np.array_equal(to_uint8(tensor[0]), pixels(image))


def test_to_uint8_rounds_and_clips() -> None:
    values = torch.tensor([-9.0, -1.0, -0.0041, 0.0, 1 / 127.5, 1.0, 9.0, math.nan])
    frames = values.expand(9, 3, 2, 8)
    found = to_uint8(frames)
    assert found.shape == (9, 2, 8, 3)
    assert found[4, 1, :, 2].tolist() == [0, 0, 127, 128, 128, 255, 255, 128]


def test_prepare_is_lanczos_and_takes_a_size_or_a_budget(coffee: Image.Image) -> None:
    tensor = prepare(coffee, (128, 64))
    assert tensor.shape == (1, 3, 128, 64)
    expected = coffee.resize((64, 128), Image.Resampling.LANCZOS)
    assert np.array_equal(to_uint8(tensor[0]), pixels(expected))
    assert prepare(coffee, 256 * 256).shape == (1, 3, 192, 320)


@pytest.mark.parametrize("shape", [(5, 7, 3), (2, 5, 7, 3)])
def test_pixels_and_tensors_in_both_layouts(shape: tuple[int, ...]) -> None:
    made = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    tensor = from_uint8(made)
    assert tensor.shape == (*shape[:-3], 3, 5, 7)
    assert np.allclose(tensor.numpy(), np.moveaxis(made, -1, -3) / 127.5 - 1, atol=1e-6)
    assert np.array_equal(to_uint8(tensor), made)
    planar = np.moveaxis(made, -1, -3)
    assert torch.equal(from_uint8(planar, planar=True), tensor)
    assert torch.equal(from_uint8(torch.from_numpy(planar.copy()), planar=True), tensor)
    assert np.array_equal(to_uint8(tensor, planar=True), planar)


def test_no_program_is_started_for_a_photo(
    tmp_path: Path, coffee: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow gives EPS to Ghostscript, whatever its name ends in."""
    import subprocess

    coffee.save(tmp_path / "photo.jpg", "EPS")
    started: list[object] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *given, **named: started.append(given))
    with pytest.raises(UserError, match="not an image that can be read"):
        load_photo(tmp_path / "photo.jpg")
    assert not started
