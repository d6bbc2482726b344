"""Weight files in the Hub's layout: which are taken, and how they are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pocketfocus.models.checkpoints import Checkpoint, find_weights
from pocketfocus.run.errors import UserError

STEM = "diffusion_pytorch_model"
WHOLE, HALF = f"{STEM}.safetensors", f"{STEM}.fp16.safetensors"
INDEX = f"{STEM}.safetensors.index.json"


def index(folder: Path, name: str, *shards: str) -> None:
    weight_map = {f"w{n}": shard for n, shard in enumerate(shards)}
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).touch()


def test_the_full_file_is_preferred_to_fp16(tmp_path: Path) -> None:
    touch(tmp_path, HALF)
    assert find_weights(tmp_path, STEM).variant == "fp16"
    touch(tmp_path, WHOLE)
    found = find_weights(tmp_path, STEM)
    assert found.variant is None and found.files == (tmp_path / WHOLE,)


@pytest.mark.parametrize("infix", ["", ".fp16", ".bf16"])
def test_shards_are_those_of_the_index(tmp_path: Path, infix: str) -> None:
    names = [f"{STEM}{infix}-0000{n}-of-00002.safetensors" for n in (1, 2)]
    touch(tmp_path, *names, "unrelated.safetensors")
    index(tmp_path, f"{STEM}.safetensors.index{infix}.json", *names, names[0])
    found = find_weights(tmp_path, STEM)
    assert found.files == tuple(tmp_path / name for name in names)
    assert found.variant == (infix[1:] or None)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.safetensors")
    index(tmp_path, INDEX, "a.safetensors", "b.safetensors")
    with pytest.raises(UserError, match=r"1 of the 2 shards .* b\.safetensors: download"):
        find_weights(tmp_path, STEM)


def test_bf16_alone_is_read_and_a_byte_order_mark_is_no_part_of_an_index(tmp_path: Path) -> None:
    weight = torch.randn(3).bfloat16()
    save_file({"w": weight}, tmp_path / f"{STEM}.bf16.safetensors")
    found = find_weights(tmp_path, STEM)
    assert found.variant == "bf16"
    torch.testing.assert_close(Checkpoint(found.files)["w"], weight.float())
    found.files[0].rename(tmp_path / "a.safetensors")
    index(tmp_path, INDEX, "a.safetensors")
    (tmp_path / INDEX).write_bytes(b"\xef\xbb\xbf" + (tmp_path / INDEX).read_bytes())
    assert find_weights(tmp_path, STEM).files == (tmp_path / "a.safetensors",)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"weight_map": 3}'])
def test_a_broken_index_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(UserError, match="no index"):
        find_weights(tmp_path, STEM)


def test_shards_without_their_index_are_not_guessed(tmp_path: Path) -> None:
    touch(tmp_path, f"{STEM}-00001-of-00002.safetensors")
    with pytest.raises(UserError, match=r"index\.json .*: download what is missing"):
        find_weights(tmp_path, STEM)


@pytest.mark.parametrize("name", [f"{STEM}.bin", f"{STEM}.fp16.bin", "unet.ckpt", "model.pth"])
def test_pickles_are_refused(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name, "config.json")
    with pytest.raises(UserError, match="pickled checkpoints are refused"):
        find_weights(tmp_path, STEM)


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no weights"):
        find_weights(tmp_path, STEM)


def test_tensors_are_mapped_and_float32(tmp_path: Path) -> None:
    save_file({"a": torch.arange(6.0).reshape(2, 3)}, tmp_path / "a.safetensors")
    save_file({"b": torch.ones(4, dtype=torch.float16)}, tmp_path / "b.safetensors")
    opened = Checkpoint((tmp_path / "a.safetensors", tmp_path / "b.safetensors"))
    assert sorted(opened) == ["a", "b"] and len(opened) == 2
    assert opened.shape("a") == (2, 3)
    assert torch.equal(opened["a"], torch.arange(6.0).reshape(2, 3))
    assert opened["b"].dtype == torch.float32
    first, again = opened["a"], opened["a"]
    assert first.data_ptr() == again.data_ptr(), "one mapping, no copy"


@pytest.mark.parametrize("content", [b"", b"no safetensors at all", b"\x80\x04pickle"])
def test_a_broken_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match="download it again") as raised:
        Checkpoint((path,))
    assert "\n" not in str(raised.value)
