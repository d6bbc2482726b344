from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from pocketfocus.models.analyser import (
    PIXELS,
    PRESETS,
    Analyser,
    bands_of,
    change_of,
    load_analyser,
    one_hots,
    save_analyser,
    stack_of,
)
from pocketfocus.run.constants import IMAGES
from pocketfocus.run.errors import UserError

MICRO = PRESETS["micro"]
BANDS = MICRO.bands


@pytest.fixture
def photo() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 9, 11, generator=generator) * 1.6 - 0.8
    return F.interpolate(coarse, (32, 48), mode="bicubic").clamp(-1, 1)


@pytest.fixture
def analyser() -> Analyser:
    torch.manual_seed(0)
    made = Analyser(MICRO)
    torch.nn.init.normal_(made.code.weight, std=0.05)
    return made.eval()


def code_of(photo: torch.Tensor) -> torch.Tensor:
    height, width = photo.shape[-2:]
    return torch.zeros(1, IMAGES, 1 + BANDS + PIXELS, height // 4, width // 4)


def test_an_untrained_analyser_repeats_the_photo(photo: torch.Tensor) -> None:
    stack, dioptres = stack_of(Analyser(MICRO), photo, one_hots([3]))
    assert torch.equal(stack, photo[:, None].expand(1, IMAGES, 3, 32, 48))
    assert dioptres.shape == (1, 1, 8, 12)


def test_the_frame_at_the_photos_own_position_is_the_photo(
    analyser: Analyser, photo: torch.Tensor
) -> None:
    for position in (0, 5, 8):
        stack, _ = stack_of(analyser, photo, one_hots([position]))
        same = [n for n in range(IMAGES) if torch.equal(stack[0, n], photo[0])]
        assert same == [position]


def test_a_gain_of_minus_one_takes_a_band_away(photo: torch.Tensor) -> None:
    code = code_of(photo)
    code[:, 4, 1] = -1  # frame 4, finest band
    change, _ = change_of(code.flatten(1, 2), photo, BANDS)
    torch.testing.assert_close(change[0, 4], -bands_of(photo, 1)[0][0])
    others = [n for n in range(IMAGES) if n != 4]
    assert not change[:, others].any()


def test_without_its_bands_a_photo_is_blurred(photo: torch.Tensor) -> None:
    row = torch.tensor([0.25, 0.5, 0.25])
    kernel = (row[:, None] * row).expand(3, 1, 3, 3)
    blurred = F.conv2d(F.pad(photo, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
    torch.testing.assert_close(photo - bands_of(photo, 1)[0], blurred)


def test_pixels_are_added_where_they_belong(photo: torch.Tensor) -> None:
    code = code_of(photo)
    code[0, 2, 1 + BANDS + 16 * 1 + 4 * 3 + 2, 5, 7] = 0.25  # green, row 3 and column 2 of a cell
    change, _ = change_of(code.flatten(1, 2), photo, BANDS)
    assert change[0, 2, 1, 4 * 5 + 3, 4 * 7 + 2] == 0.25
    assert change.count_nonzero() == 1


def test_the_gain_of_finer_detail_is_given_apart(photo: torch.Tensor) -> None:
    code = code_of(photo)
    code[:, 7, 0] = -0.5
    change, detail = change_of(code.flatten(1, 2), photo, BANDS)
    assert not change.any()
    assert (detail[:, 7] == -0.5).all()


def test_saved_and_loaded_it_is_the_same(analyser: Analyser, tmp_path: Path) -> None:
    save_analyser(analyser.half().float(), tmp_path / "a")
    loaded = load_analyser(tmp_path / "a")
    for name, tensor in analyser.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.parametrize("how", ["missing", "foreign", "reshaped"])
def test_weights_that_do_not_fit_are_refused(analyser: Analyser, tmp_path: Path, how: str) -> None:
    save_analyser(analyser, tmp_path / "a")
    path = tmp_path / "a" / "model.safetensors"
    tensors = load_file(path)
    if how == "missing":
        del tensors["mix.bias"]
    elif how == "foreign":
        tensors["mix.scale"] = torch.ones(3)
    else:
        tensors["mix.bias"] = torch.ones(3)
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"mix\.(bias|scale) is .*needed: take both"):
        load_analyser(tmp_path / "a")


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"channels": [64.5]}', '{"activation": "relu"}', '{"channels": [100000000]}'],
)
def test_a_foreign_config_is_refused_in_one_line(
    analyser: Analyser, tmp_path: Path, text: str
) -> None:
    save_analyser(analyser, tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as raised:
        load_analyser(tmp_path / "a")
    assert "\n" not in str(raised.value)


def test_levels_and_blocks_that_disagree_are_refused() -> None:
    with pytest.raises(ValueError, match="encoder"):
        PRESETS["micro"].model_validate({"channels": [8, 16], "encoder": [1], "decoder": [1]})
