"""The network that renders, as a file of every target: it is the module, and its inputs are as the
manifest says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pocketfocus.export.phases import Phases
from pocketfocus.export.render import GIVEN, render_network, rendering
from pocketfocus.export.stage import path_of
from pocketfocus.export.targets import TARGETS, Runner, Target, Written, get_target, left_out
from pocketfocus.mobile_harness.coreai import interpreter
from pocketfocus.mobile_harness.mil import program_opener
from pocketfocus.models.render import (
    FIXED,
    PART,
    TILE,
    Analysed,
    Feeds,
    Render,
    aperture_of,
    focus_weights,
    padded,
    tiles_along,
)
from pocketfocus.models.student import Analysis
from pocketfocus.quantize.recipes import get_recipe
from pocketfocus.run.constants import FRAMES, IMAGES
from pocketfocus.run.metrics import psnr

FULL, SMALL = (700, 1000), (192, 256)
WRITTEN = [t for t in TARGETS if t not in left_out()]


@dataclass(frozen=True)
class File:
    """A file that was written, and what came of that."""

    target: Target
    path: Path
    written: Written

    def open(self) -> Runner:
        """By the target's own runtime, or by what checks its files here."""
        if self.target.cannot_run() is None:
            return self.target.open(self.path, 1)
        if self.target.name == "coreml":
            return program_opener()(str(self.path), 1)
        return interpreter()(str(self.path), 1)


@pytest.fixture(scope="module", params=WRITTEN)
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> File:
    target = get_target(request.param)
    path = tmp_path_factory.mktemp("render") / f"render{target.suffix}"
    phases = Phases(path.name, target.phases, lambda line: None)
    return File(
        target, path, target.write(render_network(), get_recipe(target.plain), path, phases)
    )


def rand(*shape: int, seed: int, low: float = -1.0, high: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(*shape, generator=generator)


@pytest.fixture(scope="module")
def analysed() -> Analysed:
    images, detail = rand(IMAGES, 3, *SMALL, seed=1), rand(1, IMAGES, *SMALL, seed=2, low=-0.3)
    nothing = torch.zeros(1, 1, 1, 1)
    analysis = Analysis(images[:FRAMES], images[FRAMES:], detail, nothing, nothing)
    return Analysed(rand(1, 3, *SMALL, seed=3), analysis, SMALL)


def feeds_of(analysed: Analysed, tile: tuple[int, int], focus: float, aperture: float) -> Feeds:
    spans = tiles_along(FULL[0], SMALL[0])[tile[0]], tiles_along(FULL[1], SMALL[1])[tile[1]]
    rows, columns = spans
    part = rand(1, 3, *FULL, seed=4)[..., rows.start : rows.stop, columns.start : columns.stop]
    weights = focus_weights(focus), aperture_of(aperture)
    return padded(analysed.feeds(part, *weights, spans, FULL))


@pytest.mark.timeout(300)
def test_a_file_of_every_target_is_the_module(file: File, analysed: Analysed) -> None:
    run, least = file.open(), get_recipe(file.target.plain).min_psnr_db
    for given in [((0, 0), 3.0, 1.0), ((1, 2), 6.4, 1.7), ((-1, -1), 0.0, 0.0)]:
        feeds = feeds_of(analysed, *given)
        (made,) = run(*feeds)
        assert made.shape == feeds.photo.shape
        assert psnr(made, Render()(*feeds)) >= least
        assert psnr(made, Render()(*feeds_of(analysed, given[0], 8.0, 2.0))) < least / 2


def test_a_file_takes_what_the_network_states(file: File) -> None:
    network = render_network()
    assert tuple(file.target.input_shapes(file.path)) == FIXED
    assert tuple(spec.shape for spec in network.inputs) == FIXED
    assert [spec.name for spec in network.inputs] == [*Feeds._fields] == [*GIVEN]
    assert file.target.read(file.path, network) == {}
    assert not [each for each in file.target.lint(file.path) if each.severity != "note"]


def test_xnnpack_takes_all_of_it_in_one_call(file: File) -> None:
    found = file.written.delegation
    if file.target.name != "executorch":
        assert found is None
        return
    assert found is not None
    assert (found.calls, found.share, found.not_delegated) == (1, 1.0, ())


def along(full: int, small: int, start: int, end: int) -> tuple[int, int, np.ndarray]:
    """Low, high and the weights of a side, by the words of the manifest."""
    low = max(0, int(np.floor((start + 0.5) * small / full - 0.5)))
    high = min(small, int(np.floor((end - 0.5) * small / full - 0.5)) + 2)
    weights = np.zeros((TILE, PART))
    for n in range(end - start):
        centre = np.clip((start + n + 0.5) * small / full - 0.5, 0, small - 1)
        for m in range(high - low):
            weights[n, m] = max(0, 1 - abs(centre - low - m))
    return low, high, weights


def test_the_words_of_the_manifest_are_enough_to_make_the_inputs(analysed: Analysed) -> None:
    """Without the code here: sides cut into tiles, parts and weights by its formulas alone."""
    said = rendering()
    assert (said.tile, said.part, said.overlap) == ((TILE, TILE), (PART, PART), 0)
    assert f"min({TILE}, {PART - 2} * H // h)" in said.given["photo"]
    sides = []
    for full, small in zip(FULL, SMALL, strict=True):
        step = min(TILE, (PART - 2) * full // small)
        start = step * (full // step)
        sides.append((start, *along(full, small, start, full)))
    (_, top, bottom, rows), (_, left, right, columns) = sides
    made = feeds_of(analysed, (-1, -1), 4.5, 1.0)
    torch.testing.assert_close(made.rows[0].double(), torch.from_numpy(rows))
    torch.testing.assert_close(made.columns[0].double(), torch.from_numpy(columns.T))
    images = torch.cat([analysed.analysis.stack, analysed.analysis.sharp])
    for found, whole in [
        (made.small, analysed.small),
        (made.images, images),
        (made.detail, analysed.analysis.detail),
    ]:
        part = whole[..., top:bottom, left:right]
        assert torch.equal(found[..., : bottom - top, : right - left], part)
        assert found.count_nonzero() == part.count_nonzero()


def test_the_docs_say_the_same_of_inputs(root: Path) -> None:
    text = (root / "docs/phones.md").read_text(encoding="utf-8")
    for spec in render_network().inputs:
        low, high = (f"{value:g}" for value in spec.range)
        assert f"| `{spec.name}` | {list(spec.shape)} | [{low}, {high}] |" in text
    (image,) = render_network().outputs
    assert f"`{image.name}` {list(image.shape)} in [-1, 1]" in text
    for name in WRITTEN:
        target = get_target(name)
        assert path_of(target, target.plain, "render") in text
