"""References in the Hub's layout, written here: Learn2Refocus beside Stable Video Diffusion."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from safetensors.torch import load_file, save_file

from pocketfocus.distill.reference.presets import SMALLEST, build_reference
from pocketfocus.mobile.folders import Opened, open_component
from pocketfocus.mobile.pipeline import rewritten
from pocketfocus.mobile.unet import mobile_unet
from pocketfocus.models import places
from pocketfocus.models.loading import assemble, load_reference
from pocketfocus.models.places import LEARN2REFOCUS_UNET, find_places
from pocketfocus.models.reference import ReferencePipeline
from pocketfocus.models.sampling import Sampling
from pocketfocus.run.errors import UserError
from pocketfocus.run.metrics import psnr

GATE_DB = 90.0
SHARD = "60KB"
BASE, TUNED = "stable-video-diffusion-img2vid", "learn2refocus"
FULL, SHARDED, HALF, HALF_SHARDED = "full", "sharded", "fp16", "fp16 shards"
WAYS: dict[str, dict[str, str]] = {
    FULL: {},
    SHARDED: {"max_shard_size": SHARD},
    HALF: {"variant": "fp16"},
    HALF_SHARDED: {"variant": "fp16", "max_shard_size": SHARD},
}


def published(seed: int = 0) -> ReferencePipeline:
    """A small model of the published kind: AutoencoderKLTemporalDecoder, absolute latents."""
    torch.manual_seed(seed)
    made = build_reference(replace(SMALLEST, relative_latents=False))
    widths = (32, 32, 32, 32)
    made.vae = AutoencoderKLTemporalDecoder(
        block_out_channels=widths, down_block_types=("DownEncoderBlock2D",) * len(widths)
    )
    for part in (made.vae, made.unet, made.image_encoder):
        part.eval().requires_grad_(False)
    return made


def write(root: Path, way: str, pipeline: ReferencePipeline) -> str:
    """Both repositories as the Hub has them; the base with its own UNet, which is not wanted."""
    base, tuned, options = root / BASE, root / TUNED, WAYS[way]
    half = "variant" in options
    parts = {
        base / "vae": pipeline.vae,
        base / "unet": published(seed=1).unet,
        base / "image_encoder": pipeline.image_encoder,
        tuned / LEARN2REFOCUS_UNET: pipeline.unet,
    }
    for folder, part in parts.items():
        (part.half() if half else part).save_pretrained(folder, **options)
        part.float()
    pipeline.scheduler.save_pretrained(base / "scheduler")
    (base / "model_index.json").write_text('{"_class_name": "StableVideoDiffusionPipeline"}')
    (base / "feature_extractor").mkdir()
    (base / "feature_extractor/preprocessor_config.json").write_text("{}")
    return f"{tuned}+{base}"


def load_mobile(spec: str) -> ReferencePipeline:
    """A reference, rewritten without its own networks."""
    return rewritten(assemble(find_places(spec), open_component))


def photo() -> torch.Tensor:
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module", params=list(WAYS))
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Both folders in one of the ways, as a spec."""
    return write(tmp_path_factory.mktemp("hub"), request.param, published())


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both repositories in full files."""
    root = tmp_path_factory.mktemp("pristine")
    write(root, FULL, published())
    return root


@pytest.fixture
def full(pristine: Path, tmp_path: Path) -> Path:
    """The same, to damage."""
    shutil.copytree(pristine, tmp_path, dirs_exist_ok=True)
    return tmp_path


def spec_of(root: Path) -> str:
    return f"{root / TUNED}+{root / BASE}"


def test_layout_is_the_hubs(written: str) -> None:
    tuned, base = (Path(part) for part in written.split("+"))
    names = {p.name for p in (tuned / "checkpoint-200000/unet").iterdir()}
    assert "config.json" in names and all(
        Path(n).suffix in (".json", ".safetensors") for n in names
    )
    assert sorted(p.name for p in base.iterdir() if p.is_dir()) == [
        "feature_extractor",
        "image_encoder",
        "scheduler",
        "unet",
        "vae",
    ]


def test_both_loaders_read_every_way_of_storing(written: str) -> None:
    theirs, ours = load_reference(written), load_mobile(written)
    how = Sampling(1)
    assert psnr(ours(photo(), 6, how), theirs(photo(), 6, how)) >= GATE_DB
    assert ours.unet.network.conv_in.weight.dtype == torch.float32
    assert ours.name == theirs.name == written


def test_the_fine_tuned_unet_is_taken_not_the_bases(full: Path) -> None:
    expected = published().unet.conv_in.weight
    assert torch.equal(load_mobile(spec_of(full)).unet.network.conv_in.weight, expected)
    assert torch.equal(load_reference(spec_of(full)).unet.conv_in.weight, expected)
    base = load_mobile(str(full / BASE)).unet.network.conv_in.weight
    assert not torch.equal(base, expected)


def test_the_last_checkpoint_is_taken(full: Path) -> None:
    for step in (5, 90000, 300000):
        shutil.copytree(full / TUNED / LEARN2REFOCUS_UNET, full / TUNED / f"checkpoint-{step}/unet")
    assert find_places(spec_of(full)).unet[1] == "checkpoint-300000/unet"
    own = full / TUNED / "checkpoint-5/unet"
    assert find_places(f"{own}+{full / BASE}").unet == (str(own), "")
    assert load_mobile(f"{own}+{full / BASE}").unet.network.conv_in.weight.isfinite().all()


def test_full_weights_stay_on_disk(full: Path) -> None:
    """What no fold changes lies in the file's own mapping."""
    opened = open_component(UNetSpatioTemporalConditionModel, str(full / BASE), "unet")
    assert isinstance(opened, Opened)
    ours = mobile_unet(opened.config, opened.tensors)
    for name in ("conv_in.weight", "conv_out.weight", "down_blocks.0.attentions.0.proj_in.weight"):
        assert ours.get_parameter(name).data_ptr() == opened.tensors[name].data_ptr()


Damage = Callable[[Path], object]


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = next(folder.glob("*.safetensors"))
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def pickled(folder: Path) -> None:
    path = next(folder.glob("*.safetensors"))
    path.rename(path.with_suffix(".bin"))


def truncated(folder: Path) -> None:
    path = next(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:500])


def narrower(folder: Path) -> None:
    """A config of another width than the weights."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    widths = [64] * len(config["block_out_channels"])
    path.write_text(json.dumps({**config, "block_out_channels": widths}))


DAMAGES: dict[str, tuple[Damage, str]] = {
    "no folder": (shutil.rmtree, "has no "),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json|JSON"),
    "no weights": (lambda f: next(f.glob("*.safetensors")).unlink(), "has no weights.*download"),
    "pickled": (pickled, "pickled checkpoints are refused"),
    "truncated": (truncated, "cannot be read|cannot load"),
    "a weight too few": (lambda f: change(f, lambda t: t.popitem()), "lacks 1 of the weights"),
    "a weight too many": (
        lambda f: change(f, lambda t: t.update(extra=torch.zeros(2))),
        "has 1 weights its config.json does not ask for, such as extra",
    ),
    "another shape": (
        lambda f: change(f, lambda t: t.update({max(t): torch.zeros(3, 5, 7)})),
        "has 1 weights of other shapes than its config.json|expected shape",
    ),
    "another config": (
        narrower,
        "of other shapes than its config.json|expected shape",
    ),
}


@pytest.mark.parametrize("part", ["vae", "unet"])
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("load", [load_mobile, load_reference])
def test_damage_is_one_line_that_says_what_to_do(
    load: Callable[[str], object], damage: str, part: str, full: Path
) -> None:
    act, message = DAMAGES[damage]
    act(full / BASE / "vae" if part == "vae" else full / TUNED / LEARN2REFOCUS_UNET)
    with pytest.raises(UserError, match=message) as raised:
        load(spec_of(full))
    text = str(raised.value)
    assert part in text and "\n" not in text and ": " in text


def test_components_that_do_not_fit_are_refused(full: Path) -> None:
    """A UNet for other latents than the autoencoder's."""
    folder = full / TUNED / LEARN2REFOCUS_UNET
    config = {**published().unet.config, "in_channels": 10, "out_channels": 5}
    other = type(published().unet).from_config(config)
    other.save_pretrained(folder)
    for load in (load_mobile, load_reference):
        with pytest.raises(UserError, match="latent channels"):
            load(spec_of(full))


@pytest.mark.parametrize("load", [load_mobile, load_reference])
@pytest.mark.parametrize("spec", ["learn2refocus", "nobody/nothing"])
def test_without_a_network_the_error_says_so(
    load: Callable[[str], object], spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tests/conftest.py keeps all tests off the network; the names are none that a cache holds."""
    monkeypatch.setattr(places, "BASE", "pocketfocus-tests/absent-base")
    with pytest.raises(UserError, match="check the network and the Hub id, or download") as raised:
        load(spec)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("spec", ["nowhere+{base}", "{base}+nowhere", "+{base}", "{base}+"])
def test_a_place_that_is_not_there_is_named(full: Path, spec: str) -> None:
    with pytest.raises(UserError, match="UNET_DIR"):
        load_mobile(spec.format(base=full / BASE))
