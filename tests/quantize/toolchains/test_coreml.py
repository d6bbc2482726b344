"""The graph that Core ML gets at 8 bits, executed here by PyTorch, for Core ML cannot be."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import nn

from pocketfocus.data.optics import one_hot
from pocketfocus.data.scenes import held_out_photos
from pocketfocus.models.student import load_student
from pocketfocus.quantize.calibration import calibration, fitted
from pocketfocus.quantize.recipes import RECIPES, Scheme
from pocketfocus.quantize.toolchains.coreml import choices, choose, programs
from pocketfocus.run.metrics import psnr


def test_the_int8_graph_is_the_student(small_student: Path) -> None:
    student = load_student(small_student)
    chosen = choices(RECIPES["int8"], student)
    schemes = {name: choice.scheme for name, choice in chosen.items()}
    (quantized,) = programs(student, schemes, [list(calibration((64, 64)))], 0)
    names = {str(node.target) for node in quantized.graph.nodes}
    assert any("quantize_per_tensor" in name for name in names)
    assert any("dequantize_per_channel" in name for name in names)
    with torch.no_grad():
        for photo in held_out_photos():
            inputs = fitted(Image.fromarray(photo), (64, 64)), one_hot(6)
            found, truth = quantized.module()(*inputs)[0], student.stack(*inputs)
            assert RECIPES["int8"].min_psnr_db <= psnr(found, truth) < 80
            assert psnr(found.flip(0), truth) < psnr(found, truth)


def test_outputs_that_are_no_whole_groups_stay_float16() -> None:
    found = choose(Scheme(4, "palette", 8), nn.Conv2d(64, 27, 3), ios=18)
    assert (found.scheme, found.why) == (Scheme(16), "27 outputs are no whole groups of 8")
