"""Every documented way to name a reference, through every command that takes one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from pocketfocus.cli import build, main
from pocketfocus.distill.reference import finetune, training
from pocketfocus.distill.student import stage
from pocketfocus.models import loading
from pocketfocus.models.model import Model, refocus
from pocketfocus.models.places import BASE, LEARN2REFOCUS, find_places
from pocketfocus.photos import gallery, refocusing
from pocketfocus.photos.images import Pixels, prepare
from pocketfocus.photos.refocusing import Refocused
from pocketfocus.run.files import sha256

FORMS = {
    "the shipped one": "default",
    "a folder": "WHOLE",
    "a folder with checkpoints": "CHECKPOINTS",
    "a tuned UNet and its base": "TUNED+WHOLE",
    "a UNet's own folder and its base": "TUNED/checkpoint-200000/unet+WHOLE",
    "the published one": "learn2refocus",
    "the published one's Hub id": LEARN2REFOCUS,
    "a Hub id": "owner/model",
    "two Hub ids": "owner/tuned+owner/model",
    "a Hub id and a folder": "owner/tuned+WHOLE",
}
Load = Callable[[Any, str, str], Any]


@pytest.fixture(scope="module")
def folders(small_reference: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A reference in the diffusers layout, a UNet that was tuned from it, and both in one."""
    root = tmp_path_factory.mktemp("references")
    unet = small_reference / "unet"
    shutil.copytree(unet, root / "TUNED/checkpoint-200000/unet")
    shutil.copytree(small_reference, root / "CHECKPOINTS", ignore=lambda *_: ["unet"])
    shutil.copytree(unet, root / "CHECKPOINTS/checkpoint-20/unet")
    return {name: root / name for name in ("TUNED", "CHECKPOINTS")} | {"WHOLE": small_reference}


@pytest.fixture(params=list(FORMS))
def spec(
    request: pytest.FixtureRequest, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> str:
    """A name; what it says to be on the Hub is taken from the folders."""
    hub = {"owner/model": "WHOLE", BASE: "WHOLE", "owner/tuned": "CHECKPOINTS"}
    hub[LEARN2REFOCUS] = "TUNED"
    places = {name: str(folders[folder]) for name, folder in hub.items()}
    load, class_of = loading.load_component, loading._autoencoder_class

    def component(cls: Any, root: str, subfolder: str) -> Any:
        if root == "owner/tuned":
            assert subfolder == "unet"
            subfolder = "checkpoint-20/unet"
        return load(cls, places.get(root, root), subfolder)

    monkeypatch.setattr(loading, "load_component", component)
    monkeypatch.setattr(loading, "_autoencoder_class", lambda r: class_of(str(places.get(r, r))))
    named = FORMS[request.param]
    for name, folder in folders.items():
        named = named.replace(name, str(folder))
    return named


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The references that commands have loaded; what they do with them is left out."""
    names: list[str] = []

    def load(name: str) -> Any:
        names.append(name)
        return loading.load_reference(name)

    def run_stages(out: Path, stages: Any) -> None:
        assert [stage.inputs() for stage in stages if stage.name in ("distill",)]
        (out / "verify.json").write_text('{"schema_version": 1, "rows": []}')

    monkeypatch.setattr(stage, "distill_run", lambda out, options, **_: load(options.reference))
    monkeypatch.setattr(training, "run_training", lambda asked, _: load(asked.init or "default"))
    monkeypatch.setattr(build, "run_stages", run_stages)
    monkeypatch.setattr(
        "pocketfocus.cli.build.stages",
        lambda settings, stages=build.stages: (load(settings.reference), stages(settings))[1],
    )
    return names


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    (tmp_path / "stacks" / "desk").mkdir(parents=True)
    for position in range(9):
        Image.fromarray(pixels).save(tmp_path / "stacks" / "desk" / f"{position}.png")
    return tmp_path / "stacks" / "desk" / "4.png"


def test_every_command_takes_it(
    spec: str, loaded: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`build` and `train-reference` once refused what `distill` and the loader took."""
    for line in (
        ["distill", "--reference", spec],
        ["train-reference", "--init", spec],
        ["build", "--reference", spec],
    ):
        out = tmp_path / line[0]
        out.mkdir()
        assert main([*line, "--out", str(out)]) == 0, capsys.readouterr().err
        assert loaded.pop() == spec


def test_it_refocuses_and_is_evaluated(
    spec: str,
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made: list[Tensor] = []

    def small(model: Model, pixels: Pixels, position: int, **_: bool) -> Refocused:
        photo = prepare(Image.fromarray(pixels), (64, 64))
        made.append(refocus(model, photo, position))
        return refocusing.Enlarged(made[-1], (64, 64))

    monkeypatch.setattr(refocusing, "refocused", small)
    monkeypatch.setattr(gallery, "save_refocus", lambda *_: [tmp_path])
    model, out = f"reference:{spec}@1/1/0", str(tmp_path / "out")
    asked = ["evaluate", model, "--stacks", str(picture.parent.parent), "--positions", "4"]
    assert main(asked) == 0, capsys.readouterr().err
    asked = ["refocus", str(picture), "--position", "4", "--model", model, "--out", out]
    assert main(asked) == 0, capsys.readouterr().err
    assert [stack.shape for stack in made] == [(9, 3, 64, 64)]


def test_fine_tuning_starts_from_it(spec: str) -> None:
    assert finetune.load_start(spec).name in (spec, "learn2refocus")


@pytest.mark.parametrize("command", ["build", "distill", "train-reference", "bench"])
@pytest.mark.parametrize("spec", ["nowhere", "EMPTY", "~/model", "nowhere+WHOLE", "WHOLE+nowhere"])
def test_what_names_none_is_refused_alike(
    command: str,
    spec: str,
    folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "EMPTY").mkdir()
    spec = spec.replace("EMPTY", str(tmp_path / "EMPTY")).replace("WHOLE", str(folders["WHOLE"]))
    option = "--init" if command == "train-reference" else "--reference"
    where = [str(tmp_path)] if command == "bench" else ["--out", str(tmp_path / "out")]
    assert main([command, option, spec, *where]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no reference" in line and ": name " in line


def test_the_key_of_a_reference_is_what_is_in_all_its_folders(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Wherever they lie, and whatever they are called; on the Hub it is the name."""
    whole, tuned = str(folders["WHOLE"]), str(folders["TUNED"])
    copied = shutil.copytree(whole, tmp_path / "copied")
    assert find_places(whole).key == find_places(str(copied)).key == sha256(copied)
    both = find_places(f"{tuned}+{copied}").key
    assert both == f"{sha256(Path(tuned))}+{sha256(copied)}"
    (copied / "unet" / "config.json").write_text("{}")
    assert find_places(whole).key != find_places(str(copied)).key
    assert find_places(f"{tuned}+{copied}").key != both
    assert find_places("owner/model").key == "owner/model"
    assert find_places("learn2refocus").key == find_places(LEARN2REFOCUS).key
