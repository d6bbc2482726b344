"""What images cost by tiles: they are the images, and the table adds up."""

from __future__ import annotations

import torch
from torch import Tensor

from pocketfocus.models.render import Analysed, Render, aperture_of, focus_weights
from pocketfocus.models.student import Analysis
from pocketfocus.research.rendering import RUNS, SETTING, Cost, cost_of, image, table

SIZE = (48, 64)
CALLS: list[int] = []


def analyse(photo: Tensor, position: Tensor) -> Analysis:
    """Nine frames ever darker, and gains."""
    CALLS.append(int(position.argmax()))
    stack = torch.cat([photo * (1 - n / 20) for n in range(9)])
    detail = torch.linspace(-0.2, 0.2, 10)[None, :, None, None].expand(1, 10, *SIZE)
    return Analysis(stack, photo, detail, torch.zeros(1, 1, 12, 16), position)


def render(*given: Tensor) -> tuple[Tensor, ...]:
    return (Render()(*given),)


def test_an_image_by_tiles_is_the_image() -> None:
    photo = torch.rand(1, 3, 300, 410) * 1.6 - 0.8
    small = torch.nn.functional.interpolate(photo, SIZE, mode="area")
    analysed = Analysed(small, analyse(small, torch.eye(9)[:1]), SIZE)
    made, spent = image(render, analysed, photo)
    whole = analysed.render(photo, focus_weights(SETTING[0]), aperture_of(SETTING[1]))
    torch.testing.assert_close(made, whole, atol=2e-6, rtol=0)
    assert spent > 0


def test_costs() -> None:
    CALLS.clear()
    found = cost_of((analyse, render), SIZE, 0.1)
    assert CALLS == [4] * RUNS
    assert found.tiles == 4 and 0 < found.calls_ms < found.image_ms
    line = table([Cost(1.0, 20, 30.0, 20.0, 40.0)]).splitlines()[-1]
    assert line == "| 1 MP | 20 | 30.0 | 20.0 | 40.0 | 390.0 |"
