"""The student: weights from the network, and what optics makes of them; its folder."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from scipy.ndimage import correlate1d
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pocketfocus.data.optics import one_hot
from pocketfocus.models.student import (
    CELL,
    PIXELS,
    PRESETS,
    Bands,
    Encoded,
    RefocusStudent,
    build_student,
    load_student,
    save_student,
    shuffled,
)
from pocketfocus.run.constants import FRAMES, IMAGES
from pocketfocus.run.errors import UserError
from tests.conftest import change_pictures

BANDS = 4
SIZE = (32, 48)
UNKNOWN = torch.zeros(1, FRAMES)


@pytest.fixture(scope="module")
def student() -> RefocusStudent:
    torch.manual_seed(0)
    made = RefocusStudent(**PRESETS["micro"] | {"bands": BANDS, "size": SIZE}).eval()
    change_pictures(made)
    return made


def photos(count: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, *SIZE, generator=generator) * 1.6 - 0.8


def test_the_photos_own_frame_is_the_photo(student: RefocusStudent) -> None:
    photo = photos()
    for position in range(FRAMES):
        made = student.analyse(photo, one_hot(position))
        assert torch.equal(made.stack[position], photo[0])
        assert not made.detail[0, position].any()
        others = [n for n in range(FRAMES) if n != position]
        assert all((made.stack[n] - photo[0]).abs().max() > 0.01 for n in others)
        assert (made.sharp - photo).abs().max() > 0.01


def test_untrained_it_copies() -> None:
    photo = photos()
    made = build_student("micro").analyse(photo, one_hot(3))
    assert torch.equal(made.stack, photo.expand(FRAMES, -1, -1, -1))
    assert torch.equal(made.sharp, photo)
    assert not made.detail.any()


def test_what_it_gives(student: RefocusStudent) -> None:
    height, width = SIZE
    made = student.analyse(photos(2), torch.cat([one_hot(2), UNKNOWN]))
    assert made.stack.shape == (2 * FRAMES, 3, *SIZE)
    assert made.sharp.shape == (2, 3, *SIZE)
    assert made.detail.shape == (2, IMAGES, *SIZE)
    assert made.dioptres.shape == (2, 1, height // CELL, width // CELL)
    assert made.positions.shape == (2, FRAMES)
    torch.testing.assert_close(made.positions.sum(1), torch.ones(2))
    assert made.stack.abs().max() <= 1 and made.sharp.abs().max() <= 1
    assert torch.equal(made.stack, student.stack(photos(2), torch.cat([one_hot(2), UNKNOWN])))


def test_a_position_of_zeros_fixes_no_frame(student: RefocusStudent) -> None:
    photo = photos()
    stack = student.stack(photo, UNKNOWN)
    assert all((frame - photo[0]).abs().max() > 0.01 for frame in stack)


def test_a_batch_is_its_photos_one_by_one(student: RefocusStudent) -> None:
    batch, positions = photos(3), torch.cat([one_hot(0), UNKNOWN, one_hot(8)])
    together = student.analyse(batch, positions)
    alone = [student.analyse(batch[n : n + 1], positions[n : n + 1]) for n in range(3)]
    for whole, *parts in zip(together, *alone, strict=True):
        torch.testing.assert_close(whole, torch.cat(parts))


def test_bands_are_what_a_blur_takes_away_at_every_size() -> None:
    """Against scipy, edges repeated."""
    photo = photos()
    image = photo[0].numpy()
    bands = Bands(BANDS)(photo)
    assert [band.shape[-1] for band in bands] == [48, 24, 12, 6]
    for band in bands:
        soft = image
        for axis in (1, 2):
            soft = correlate1d(soft, [0.25, 0.5, 0.25], axis, mode="nearest")
        np.testing.assert_allclose(band[0], image - soft, atol=1e-6)
        image = image.reshape(3, image.shape[1] // 2, 2, -1, 2).mean((2, 4))


def test_plain_areas_have_no_bands() -> None:
    bands = Bands(BANDS)(torch.full((1, 3, 32, 32), 0.3))
    assert all(band.abs().max() < 1e-6 for band in bands)


def larger(x: Tensor, factor: int) -> Tensor:
    return F.interpolate(x, scale_factor=factor, mode="bilinear")


def test_a_change_is_the_sum_of_weighted_bands_and_pixels(student: RefocusStudent) -> None:
    """Against one sum in float64, image by image: a gain is enlarged to its band where that is
    finer, the band where it is coarser, and what is coarser than the outputs before the rest."""
    generator = torch.Generator().manual_seed(2)
    photo = photos(2).double()
    cells = (SIZE[0] // CELL, SIZE[1] // CELL)
    detail, gains, pixels = (
        torch.randn(2, n, *cells, generator=generator).double()
        for n in (IMAGES, IMAGES * BANDS, IMAGES * PIXELS)
    )
    position = torch.cat([one_hot(4), UNKNOWN]).double()
    doubled = RefocusStudent(**PRESETS["micro"] | {"bands": BANDS}).double()
    found = Encoded(detail, gains, pixels, detail, position)
    change, fine = doubled.compose(photo, found, position)
    bands, outputs = doubled.pyramid(photo), torch.cat([detail, gains], 1)
    pixels = pixels.unflatten(1, (IMAGES, PIXELS))
    for image in range(IMAGES):
        gain = [outputs[:, n * IMAGES + image, None] for n in range(1 + BANDS)]
        coarse = gain[3] * bands[2] + gain[4] * larger(bands[3], 2)
        middle = larger(coarse, 2) + larger(gain[2], 2) * bands[1]
        expected = larger(middle, 2) + larger(gain[1], 4) * bands[0]
        expected = expected + F.pixel_shuffle(pixels[:, image], CELL)
        if image == 4:
            expected[0] = gain[0][0] = 0
        torch.testing.assert_close(change[:, 3 * image : 3 * image + 3], expected)
        torch.testing.assert_close(fine[:, image, None], gain[0])


def test_shuffling_is_pixel_shuffle() -> None:
    x = torch.rand(2, 30 * CELL**2, 5, 7)
    assert torch.equal(shuffled(x), F.pixel_shuffle(x, CELL))


@pytest.mark.parametrize("preset", PRESETS)
def test_sides_are_multiples(preset: str) -> None:
    made = build_student(preset)
    assert all(side % made.multiple == 0 for side in made.photo_size)
    assert made.multiple == 2 ** round(math.log2(made.multiple)) <= 64


def test_all_of_it_learns(student: RefocusStudent) -> None:
    made = student.analyse(photos(), UNKNOWN)
    torch.stack([tensor.square().mean() for tensor in made]).sum().backward()
    unmoved = [n for n, p in student.named_parameters() if p.grad is None or not p.grad.any()]
    told = {n for n in unmoved if n.startswith(("network.entering", "network.leaving"))}
    assert set(unmoved) == told and told  # an unknown position moves none of these
    student.stack(photos(), one_hot(1)).mean().backward()
    moved = [n for n, p in student.named_parameters() if p.grad is not None and p.grad.any()]
    assert told <= set(moved)


def test_no_tensor_has_more_than_five_dimensions(student: RefocusStudent) -> None:
    program = torch.export.export(student, (photos(), one_hot(0)))
    ranks = [
        node.meta["val"].ndim
        for node in program.graph.nodes
        if isinstance(node.meta.get("val"), Tensor)
    ]
    assert ranks and max(ranks) <= 5


@pytest.mark.parametrize(
    ("preset", "size", "most"), [("tiny", (320, 448), 20), ("phone", (640, 896), 80)]
)
def test_a_preset_keeps_its_budget(preset: str, size: tuple[int, int], most: float) -> None:
    made = build_student(preset).to("meta")
    assert made.photo_size == size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        made(torch.empty(1, 3, *size, device="meta"), torch.empty(1, FRAMES, device="meta"))
    assert most / 2 < counter.get_total_flops() / 1e9 <= most


def test_an_unknown_preset_names_the_known() -> None:
    with pytest.raises(UserError, match="tiny, phone"):
        build_student("huge")


def test_levels_and_blocks_that_disagree_are_refused() -> None:
    with pytest.raises(ValueError, match="2 levels need as many numbers in encoder"):
        RefocusStudent(channels=(8, 16), encoder=(1,), decoder=(1,))


def test_saved_and_loaded_it_is_the_same(student: RefocusStudent, tmp_path: Path) -> None:
    save_student(student, tmp_path / "a")
    loaded = load_student(tmp_path / "a")
    assert loaded.photo_size == SIZE
    for name, tensor in student.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.half().float()), name


def test_a_student_with_one_last_layer_is_the_same(student: RefocusStudent, tmp_path: Path) -> None:
    save_student(student, tmp_path, half=False)
    path, names = next(tmp_path.glob("*.safetensors")), ("detail", "gains", "pixels")
    weights = load_file(path)
    for kind in ("weight", "bias"):
        parts = [weights.pop(f"network.{name}.{kind}") for name in names]
        weights[f"network.outputs.{kind}"] = torch.cat(parts)
    save_file(weights, path)
    for name, value in load_student(tmp_path).state_dict().items():
        assert torch.equal(value, student.state_dict()[name]), name


@pytest.fixture
def folder(student: RefocusStudent, tmp_path: Path) -> Path:
    save_student(student, tmp_path / "student")
    return tmp_path / "student"


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as raised:
        load_student(folder)
    line = str(raised.value)
    assert "\n" not in line and str(folder) in line
    return line


def test_a_student_of_the_former_architecture_is_refused(folder: Path) -> None:
    former = {
        "_class_name": "RefocusStudent",
        "channels": [64, 128, 256],
        "blocks": [2, 2, 3],
        "activation": "hardswish",
        "depthwise": True,
        "size": [256, 256],
    }
    (folder / "config.json").write_text(json.dumps(former), encoding="utf-8")
    assert "before 0.4" in refused(folder) and "distil" in refused(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"_class_name": "UNet2D"}', '{"channels": [8]}'])
def test_a_foreign_config_is_refused_in_one_line(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="utf-8")
    refused(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("channels", [8, "16"]), ("channels", []), ("channels", [10**9, 16]), ("channels", None),
        ("encoder", [1]), ("encoder", [-1, 1]), ("encoder", [1.5, 1]), ("decoder", [10**6]),
        ("head", 0), ("head", 2**63), ("head", float("nan")), ("head", True), ("bands", 1),
        ("size", [64, 65]), ("size", [64]), ("size", "64x64"), ("size", [0, 0]),
        ("activation", "x"),
    ],
)  # fmt: skip
def test_sizes_that_no_student_has_are_refused_in_one_line(
    folder: Path, field: str, value: object
) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {field: value}
    path.write_text(json.dumps(config), encoding="utf-8")
    assert "describes no student" in refused(folder)


def test_a_config_nested_without_end_is_refused_in_one_line(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000, encoding="utf-8")
    refused(folder)


@pytest.mark.parametrize("change", ["missing", "foreign", "reshaped", "integers", "NaN", "empty"])
def test_other_weights_are_refused_in_one_line(folder: Path, change: str) -> None:
    path, name = next(folder.glob("*.safetensors")), "network.mix.bias"
    tensors = load_file(path)
    whole = tensors.pop(name)
    tensors |= {
        "missing": {},
        "foreign": {name: whole, "network.mix.other": whole.clone()},
        "reshaped": {name: torch.ones(3)},
        "integers": {name: torch.ones(whole.shape, dtype=torch.int8)},
        "NaN": {name: torch.full(whole.shape, torch.nan)},
        "empty": {name: whole},
    }[change]
    save_file(tensors, path, {"format": "pt"})
    if change == "empty":
        path.write_bytes(b"")
    line = refused(folder)
    assert ("cannot be read" if change == "empty" else "do not fit its config.json") in line
    assert change == "empty" or "network.mix" in line
