"""Fine-tuning from folders in the exact layouts of the published models, at a small size."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from safetensors.torch import load_file

from pocketfocus.distill.reference import denoiser
from pocketfocus.distill.reference.finetune import choose_trained, fine_tune, load_start
from pocketfocus.distill.reference.phases import Phase
from pocketfocus.distill.train.crops import Crops
from pocketfocus.distill.train.schedule import Schedule
from pocketfocus.models import places as published
from pocketfocus.models.loading import load_reference
from pocketfocus.models.reference import ReferencePipeline
from pocketfocus.models.sampling import Sampling
from pocketfocus.run.errors import UserError
from tests.published import save_svd


def phase(steps: int = 2, size: int = 64) -> Phase:
    schedule = Schedule(steps=steps, learning_rate=1e-2, warmup_steps=1, log_every=1)
    return Phase(schedule, (Crops(1.0, 1, size),))


@pytest.fixture(autouse=True)
def one_step_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoiser, "PICTURE_STEPS", 1)


@pytest.fixture(scope="module")
def stacks() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 9, 3, 64, 64), np.uint8)


@pytest.fixture(scope="module")
def svd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("svd")
    save_svd(folder)
    return folder


@pytest.fixture(scope="module")
def svd_fp16(svd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Only the fp16 variant, as a download with `variant="fp16"` leaves it."""
    folder = tmp_path_factory.mktemp("fp16") / "svd"
    shutil.copytree(svd, folder)
    for path in folder.rglob("*.safetensors"):
        if ".fp16." not in path.name:
            path.unlink()
    return folder


@pytest.fixture
def hub(svd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders in place of the two Hub repositories: Learn2Refocus publishes a UNet only."""
    refocus = tmp_path / "learn2refocus"
    unet = UNetSpatioTemporalConditionModel.from_pretrained(svd, subfolder="unet")
    with torch.no_grad():
        unet.conv_out.bias.fill_(0.5)
    unet.save_pretrained(refocus / "checkpoint-200000" / "unet")
    monkeypatch.setattr(published, "BASE", str(svd))
    monkeypatch.setattr(published, "LEARN2REFOCUS", str(refocus))
    return refocus


def unet_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("train", ["temporal", "all"])
def test_trains_what_is_asked_for_and_is_read_back(
    svd: Path, stacks: np.ndarray, tmp_path: Path, train: str
) -> None:
    start = load_start(str(svd))
    before = {name: p.half() for name, p in start.unet.state_dict().items()}
    made = fine_tune(start, stacks, tmp_path, phase(), train)
    assert not made.relative, "absolute latents, the published formulation"
    after = unet_weights(tmp_path)
    assert after.keys() == before.keys()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    temporal = {name for name in after if "temporal_transformer_block" in name}
    learnt = {name for name in temporal if ".ff" in name and "weight" in name}
    assert learnt <= changed  # over one token, queries and keys of cross-attention do not matter
    assert (changed <= temporal) == (train == "temporal")
    loaded = load_reference(str(tmp_path))
    assert loaded(torch.zeros(1, 3, 64, 64), 4, Sampling(1)).shape == (9, 3, 64, 64)
    for name, tensor in loaded.unet.state_dict().items():
        assert torch.equal(tensor, made.unet.state_dict()[name])
    for part in ("vae", "image_encoder"):
        kept, now = (getattr(p, part).state_dict() for p in (load_start(str(svd)), loaded))
        assert all(torch.equal(kept[name].half(), now[name].half()) for name in kept), "frozen"
    diffusers_own = UNetSpatioTemporalConditionModel.from_pretrained(tmp_path, subfolder="unet")
    assert isinstance(diffusers_own, UNetSpatioTemporalConditionModel)


def test_gradients_are_checkpointed_and_only_trained_weights_kept(
    svd_fp16: Path, stacks: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the fp16 variant alone; the trained weights are fp32 while they train."""
    start, calls = load_start(str(svd_fp16)), 0
    original = torch.utils.checkpoint.checkpoint

    def counted(*arguments: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        return original(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", counted)
    fine_tune(start, stacks, tmp_path, phase())
    assert calls > 0
    kept = load_file(tmp_path / "finetune" / "checkpoint.safetensors")
    weights = {n: t for n, t in kept.items() if n.startswith("model.")}
    assert all("temporal_transformer_block" in n for n in weights)
    assert {t.dtype for t in weights.values()} == {torch.float32}


def test_svd_and_learn2refocus_are_found(hub: Path, svd: Path) -> None:
    refocus, base = load_start("learn2refocus"), load_start("svd")
    assert refocus.unet.conv_out.bias.min() == 0.5 and base.unet.conv_out.bias.max() < 0.5
    assert torch.equal(refocus.vae.encoder.conv_in.weight, base.vae.encoder.conv_in.weight)


def test_it_goes_on_and_refuses_another_start(
    svd: Path, hub: Path, stacks: np.ndarray, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for steps in (1, 3):
        fine_tune(load_start(str(svd)), stacks, out, phase(steps))
    rows = (out / "finetune" / "train.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3]
    with pytest.raises(UserError, match=r"train was temporal, is all"):
        fine_tune(load_start(str(svd)), stacks, out, phase(), "all")
    with pytest.raises(UserError, match=r"pixels was 2x9x3x64x64 .*, is 2x9x3x64x64"):
        fine_tune(load_start(str(svd)), 255 - stacks, out, phase())


def test_what_was_encoded_of_other_stacks_or_by_another_autoencoder_is_not_taken(
    svd: Path, stacks: np.ndarray, tmp_path: Path
) -> None:
    pipeline, path = load_start(str(svd)), tmp_path / "latents.npy"
    encode = denoiser.encode_stack

    def encoded(of: np.ndarray, content: str = "") -> np.ndarray:
        return np.array(denoiser.encoded_once(path, pipeline, of, encode, content))

    first, again, others = encoded(stacks), encoded(stacks), encoded(255 - stacks)
    assert np.array_equal(first, again) and not np.allclose(first, others, atol=1e-2)
    many = np.repeat(stacks, 20, axis=0)
    changed = many.copy()
    changed[1] = 255 - changed[1]  # none of those that are hashed
    assert denoiser.fingerprint(many) == denoiser.fingerprint(changed)
    before, after = encoded(many, "before")[:3], encoded(changed, "after")[:3]
    assert [np.array_equal(*pair) for pair in zip(before, after, strict=True)] == [
        True,
        False,
        True,
    ]
    with torch.no_grad():
        pipeline.vae.encoder.conv_in.weight.mul_(2)
    assert not np.allclose(first, encoded(stacks), atol=1e-2)
    assert len(list(tmp_path.iterdir())) == 1, "others are deleted"


def test_an_interrupted_encoding_goes_on(
    svd: Path, stacks: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, path = load_start(str(svd)), tmp_path / "latents.npy"
    monkeypatch.setattr(denoiser, "SAVED_STACKS", 2)
    many, seen = np.concatenate([stacks, 255 - stacks, stacks // 2]), 0

    def encode(pipeline: ReferencePipeline, stack: np.ndarray) -> np.ndarray:
        nonlocal seen
        seen += 1
        if seen == 5:
            raise KeyboardInterrupt
        return denoiser.encode_stack(pipeline, stack)

    with pytest.raises(KeyboardInterrupt):
        denoiser.encoded_once(path, pipeline, many, encode)
    made = denoiser.encoded_once(path, pipeline, many, encode)
    assert seen == 5 + len(many) - 2
    whole = [denoiser.encode_stack(pipeline, stack) for stack in many]
    assert np.array_equal(made, np.stack(whole)) and len(list(tmp_path.iterdir())) == 1


def test_bad_requests_are_one_line(svd: Path, stacks: np.ndarray, tmp_path: Path) -> None:
    start, out = load_start(str(svd)), tmp_path / "out"
    with pytest.raises(UserError, match="multiples of 64"):
        fine_tune(start, stacks, out, phase(size=72))
    with pytest.raises(UserError, match="64x64 pixels, crops need 128"):
        fine_tune(start, stacks, out, phase(size=128))
    with pytest.raises(UserError, match="choose from temporal, all"):
        fine_tune(start, stacks, out, phase(), "spatial")
    for name, _ in list(start.unet.named_children()):
        setattr(start.unet, name, None)
    with pytest.raises(UserError, match="no temporal_transformer_block"):
        choose_trained(start.unet, "temporal")
    assert not out.exists()


def no_weights(folder: Path) -> None:
    for path in (folder / "vae").glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))


def no_unet(folder: Path) -> None:
    shutil.rmtree(folder / "unet")


def another_vae(folder: Path) -> None:
    config = folder / "vae" / "config.json"
    config.write_text(config.read_text().replace('"latent_channels": 4', '"latent_channels": 8'))


@pytest.mark.parametrize("damage", [no_weights, no_unet, another_vae])
def test_a_wrong_folder_is_one_line(
    svd: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "svd"
    shutil.copytree(svd, folder)
    damage(folder)
    with pytest.raises(UserError) as caught:
        load_start(str(folder))
    assert "\n" not in str(caught.value) and (
        "vae" in str(caught.value) or "unet" in str(caught.value)
    )
