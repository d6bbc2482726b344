"""Every documented way to name a reference, through every command that takes one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from pocketfocus.benchmarks import verify
from pocketfocus.cli import build, main
from pocketfocus.distill.reference import finetune, training
from pocketfocus.distill.student import stage
from pocketfocus.export import stage as export
from pocketfocus.mobile import folders as mobile_folders
from pocketfocus.models import loading
from pocketfocus.models.loading import load_reference
from pocketfocus.models.model import Model, refocus
from pocketfocus.models.places import (
    BASE,
    COMPONENTS,
    DEFAULT_WEIGHTS,
    LEARN2REFOCUS,
    LEARN2REFOCUS_UNET,
    find_places,
)
from pocketfocus.models.reference import ReferencePipeline
from pocketfocus.photos import gallery, refocusing
from pocketfocus.photos.images import Pixels, prepare
from pocketfocus.photos.refocusing import Refocused
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import sha256
from pocketfocus.run.manifest import Manifest
from tests.published import VIDEO_FRAMES, save_svd, save_tuned

FORMS = {
    "the shipped one": "default",
    "a folder": "WHOLE",
    "its fp16 files": "WHOLE:fp16",
    "a folder with checkpoints": "CHECKPOINTS",
    "a tuned UNet and its base": "TUNED+VIDEO",
    "the fp16 files of its base": "TUNED+VIDEO:fp16",
    "a UNet's own folder and its base": "TUNED/checkpoint-200000/unet+VIDEO",
    "the published one": "learn2refocus",
    "the published one as its authors load it": "learn2refocus:fp16",
    "the published one's Hub id": LEARN2REFOCUS,
    "a Hub id": "owner/model",
    "two Hub ids": "owner/tuned+owner/model",
    "a Hub id and a tag": "owner/model#v1.0",
    "a Hub id and a folder": "owner/tuned+WHOLE",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """In the published layouts: a video model, a UNet that was tuned from it, both in one, and a
    reference whose config tells of nine frames."""
    root = tmp_path_factory.mktemp("references")
    save_svd(root / "WHOLE")
    save_svd(root / "VIDEO", VIDEO_FRAMES)
    save_tuned(root / "TUNED")
    without = shutil.ignore_patterns("unet")
    shutil.copytree(root / "VIDEO", root / "CHECKPOINTS", ignore=without)
    unet = root / "TUNED" / LEARN2REFOCUS_UNET
    shutil.copytree(unet, root / "CHECKPOINTS/checkpoint-20/unet")
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(params=list(FORMS))
def spec(
    request: pytest.FixtureRequest, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> str:
    """A name; what it says to be on the Hub is taken from the folders."""
    hub = {
        "owner/model": "WHOLE",
        "owner/model#v1.0": "WHOLE",
        BASE: "VIDEO",
        "owner/tuned": "CHECKPOINTS",
    }
    hub[LEARN2REFOCUS] = "TUNED"
    places = {name: str(folders[folder]) for name, folder in hub.items()}
    load, class_of = loading.load_component, loading._autoencoder_class

    def component(cls: Any, root: str, subfolder: str, preferred: str | None = None) -> Any:
        if root == "owner/tuned":
            assert subfolder == "unet"
            subfolder = "checkpoint-20/unet"
        return load(cls, places.get(root, root), subfolder, preferred)

    for module in (loading, mobile_folders, finetune):
        monkeypatch.setattr(module, "load_component", component)
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
        Manifest(size=(64, 64), artifacts=[]).save(out)

    def begin(asked: Any, _: Path) -> None:
        names.append(finetune.load_start(asked.init).name)

    def write(run: Any) -> None:
        names.append(run.source.manifest.reference)

    monkeypatch.setattr(stage, "distill_run", lambda out, options, **_: load(options.reference))
    monkeypatch.setattr(training, "run_training", begin)
    monkeypatch.setattr(export, "write_files", write)
    monkeypatch.setattr(verify, "verify_run", lambda *_: [])
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
        ["export", "--full", "--targets", "coreml", "--reference", spec],
    ):
        out = tmp_path / line[0]
        out.mkdir()
        assert main([*line, "--out", str(out)]) == 0, capsys.readouterr().err
        assert loaded.pop() in (spec, spec.replace(LEARN2REFOCUS, "learn2refocus"))


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


@pytest.mark.parametrize(
    "line",
    [
        ["distill", "--reference", "VIDEO", "--out", "OUT"],
        ["build", "--reference", "VIDEO", "--out", "OUT"],
        ["export", "--full", "--targets", "coreml", "--reference", "VIDEO", "--out", "OUT"],
        ["evaluate", "reference:VIDEO", "--stacks", "STACKS"],
        ["refocus", "STACKS/desk/4.png", "--model", "reference:VIDEO", "--out", "OUT"],
    ],
    ids=lambda line: line[0],
)
def test_a_video_model_is_no_reference(
    line: list[str],
    folders: dict[str, Path],
    loaded: list[str],
    picture: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its frames are moments, whatever loads; `train-reference --init` alone starts from it."""
    (tmp_path / "out").mkdir()
    stacks, video = picture.parent.parent, folders["VIDEO"]
    places = {"VIDEO": video, "OUT": tmp_path / "out", "STACKS": stacks}
    for name, path in places.items():
        line = [part.replace(name, str(path)) for part in line]
    assert main(line) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"a focal stack has 9 frames, {video} makes 14" in said
    start = finetune.load_start(str(video))
    assert start.unet.config.num_frames == 14


@pytest.mark.parametrize(
    ("options", "size"), [([], (576, 832)), (["--max-side", "256"], (192, 256))]
)
def test_a_reference_of_full_size_works_at_the_authors_size(
    options: list[str],
    size: tuple[int, int],
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the whole photo, not of one that was made smaller for nine frames."""
    seen: list[tuple[int, ...]] = []

    def call(self: ReferencePipeline, photo: Tensor, *_: Any) -> Tensor:
        seen.append(tuple(photo.shape[-2:]))
        return photo.expand(9, -1, -1, -1)

    monkeypatch.setattr(ReferencePipeline, "__call__", call)
    monkeypatch.setattr(gallery, "save_refocus", lambda *_: [tmp_path])
    Image.new("RGB", (4032, 3024), "grey").save(tmp_path / "photo.png", compress_level=1)
    words = ["refocus", str(tmp_path / "photo.png"), "--position", "4", "--out", str(tmp_path)]
    for name in (str(folders["WHOLE"]), "default"):
        assert main([*words, "--model", f"reference:{name}", *options]) == 0
    assert seen == [size, (192, 256)]


COMMIT = "0123456789" * 4
OFFLINE = """
from pocketfocus.models.loading import load_reference
from pocketfocus.run.errors import UserError
for name in ("learn2refocus", "learn2refocus:fp16", "learn2refocus#v1"):
    made = load_reference(name)
    print(made.name, made.vae.dtype, float(made.vae.encoder.conv_in.weight.flatten()[0]))
try:
    load_reference("learn2refocus#v2")
except UserError as error:
    print("no v2:", str(error).partition(" (")[0])
"""


def test_a_cache_that_holds_only_the_autoencoders_fp16_files(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """As the authors' script leaves it; without a network, only what is there can be loaded."""
    for hub_id, folder in ((BASE, "VIDEO"), (LEARN2REFOCUS, "TUNED")):
        home = tmp_path / "hub" / f"models--{hub_id.replace('/', '--')}"
        shutil.copytree(folders[folder], home / "snapshots" / COMMIT)
        (home / "refs").mkdir()
        for ref in ("main", "v1"):
            (home / "refs" / ref).write_text(COMMIT)
    (base,) = tmp_path.glob("hub/models--*video*/snapshots/*")
    (base / "vae/diffusion_pytorch_model.safetensors").unlink()
    stored = load_file(base / "vae/diffusion_pytorch_model.fp16.safetensors")
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-c", OFFLINE]
    run = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    first = float(stored["encoder.conv_in.weight"].flatten()[0])
    names = ("learn2refocus", "learn2refocus:fp16", "learn2refocus#v1")
    wanted = [f"{name} torch.float32 {first}" for name in names]
    wanted.append(f"no v2: cannot load {LEARN2REFOCUS_UNET} of {LEARN2REFOCUS}#v2")
    assert run.stdout.splitlines() == wanted, run.stderr


def test_fp16_files_are_taken_where_they_are_preferred(folders: dict[str, Path]) -> None:
    """Of autoencoder and UNet; of the image encoder the authors take the full ones."""
    full, half = (load_reference(f"{folders['WHOLE']}{end}") for end in ("", ":fp16"))
    for part in ("vae", "unet", "image_encoder"):
        weights = [dict(getattr(made, part).named_parameters()) for made in (full, half)]
        rounded = all(torch.equal(weights[1][n], p.half().float()) for n, p in weights[0].items())
        same = all(torch.equal(weights[1][n], p) for n, p in weights[0].items())
        assert (rounded, same) == ((False, True) if part == "image_encoder" else (True, False))


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


def test_the_key_of_a_reference_is_what_is_loaded_of_all_its_folders(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Wherever they lie, and whatever they are called; on the Hub it is the name."""
    whole, tuned = str(folders["WHOLE"]), str(folders["TUNED"])
    copied = shutil.copytree(whole, tmp_path / "copied")
    key = find_places(whole).key
    assert find_places(str(copied)).key == key
    both = find_places(f"{tuned}+{copied}").key
    assert both.startswith(f"{sha256(Path(tuned))}+")
    for scratch in ("stacks/stacks.npy", "denoiser/checkpoint.safetensors", "README.md"):
        (copied / scratch).parent.mkdir(exist_ok=True)
        (copied / scratch).write_text("of its training")
    assert find_places(str(copied)).key == key
    loaded = [p for p in copied.rglob("*.*") if p.parent.name in ("unet", *COMPONENTS)]
    assert len(loaded) > 6
    for path in (*loaded, copied / "sampling.json"):
        before = path.read_bytes() if path.exists() else None
        path.write_bytes(b"{}")
        assert find_places(str(copied)).key != key, path
        used_by_both = path.parent.name in COMPONENTS
        assert (find_places(f"{tuned}+{copied}").key != both) is used_by_both, path
        path.unlink() if before is None else path.write_bytes(before)
    assert find_places("owner/model").key == "owner/model"
    assert find_places("learn2refocus").key == find_places(LEARN2REFOCUS).key
    assert find_places("owner/model#v1").key == "owner/model#v1"


def test_the_shipped_reference_is_known_by_all_its_files() -> None:
    """Which are what is loaded, and its record."""
    assert find_places("default").key == sha256(DEFAULT_WEIGHTS)


@pytest.mark.parametrize("spec", ["owner/model#", "owner/model#../x", "owner/model#a b", "a#b/c"])
def test_what_is_no_revision_is_refused(spec: str) -> None:
    with pytest.raises(UserError, match="no reference at"):
        find_places(spec)


def test_the_size_of_a_reference_is_that_of_its_weights(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """And not of what its training has left beside them."""
    copied = shutil.copytree(folders["WHOLE"], tmp_path / "copied")
    before = {path.relative_to(copied) for path in find_places(str(copied)).weights}
    assert {path.parts[0] for path in before} == {"unet", "vae", "image_encoder"}
    (copied / "denoiser").mkdir()
    (copied / "denoiser" / "checkpoint.safetensors").write_bytes(b"training")
    assert {path.relative_to(copied) for path in find_places(str(copied)).weights} == before
