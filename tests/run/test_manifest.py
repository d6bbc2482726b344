"""The manifest: written and read back unchanged; damaged files are named, never used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pocketfocus.run.errors import UserError
from pocketfocus.run.files import sha256
from pocketfocus.run.manifest import (
    Artifact,
    Delegation,
    Manifest,
    Rendering,
    TensorSpec,
    check_artifact,
    load_manifest,
    makes_stacks,
)

PHOTO = TensorSpec("photo", (1, 3, 64, 64), "float32", (-1.0, 1.0))
STACK = TensorSpec("stack", (9, 3, 64, 64), "float32", (-1.0, 1.0))


@pytest.fixture
def written(tmp_path: Path) -> Artifact:
    path = tmp_path / "onnx" / "student-int8.onnx"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    return Artifact(
        name="onnx/student-int8.onnx",
        target="onnx",
        precision="int8",
        sha256=sha256(path),
        bytes=7,
        key="k",
        inputs=(PHOTO,),
        outputs=(STACK,),
        recipe={"weight_bits": 8},
        applied={"operators": {"Conv": 3}},
        delegation=Delegation(1, 9, 10, 0.9, ("aten.clone",)),
    )


def test_round_trip(tmp_path: Path, written: Artifact) -> None:
    manifest = Manifest(
        size=(64, 64),
        artifacts=[written, replace(written, name="onnx/student-int4.onnx")],
        student_sha256="s",
        student_config={"channels": [8]},
        sigma_steps=(700.0, 0.002),
        reference="default",
        calibration={"photos": ["cat"], "positions": [3]},
        tools={"torch": "2"},
        render=Rendering(
            (256, 256),
            (96, 96),
            0,
            {"photo": "a tile"},
            [replace(written, name="onnx/render.onnx")],
        ),
    )
    manifest.save(tmp_path)
    assert load_manifest(tmp_path) == manifest
    assert json.loads((tmp_path / "manifest.json").read_text())["schema_version"] == 2


def test_what_renders_is_a_file_of_the_run(tmp_path: Path, written: Artifact) -> None:
    rendering = Rendering((256, 256), (96, 96), files=[replace(written, name="onnx/render.onnx")])
    manifest = Manifest((64, 64), [written], render=rendering)
    assert [file.name for file in manifest.files] == [written.name, "onnx/render.onnx"]
    assert manifest.hashes["onnx/render.onnx"] == written.sha256
    replace(manifest, render=replace(rendering, tile=(0, 256))).save(tmp_path)
    with pytest.raises(UserError, match=r"render\.tile\.0: Input should be greater than 0"):
        load_manifest(tmp_path)
    elsewhere = replace(rendering, files=[replace(written, name="../render.onnx")])
    replace(manifest, render=elsewhere).save(tmp_path)
    with pytest.raises(UserError, match=r"\.\./render\.onnx"):
        load_manifest(tmp_path)


def test_a_pair_is_known_by_both_of_its_files(tmp_path: Path, written: Artifact) -> None:
    """What rows tell of two files together is true as long as neither has changed."""
    name = f"{written.target}/render-fp32{Path(written.name).suffix}"
    render = replace(written, name=name, precision="fp32")
    (tmp_path / name).write_bytes(b"render")
    render = replace(render, sha256=sha256(tmp_path / name))
    rendering = Rendering((256, 256), (96, 96), files=[render])
    manifest = Manifest((64, 64), [written], render=rendering)
    (pair,) = manifest.pairs
    assert pair.name == f"{written.target}/nine-frames-{written.precision}"
    assert manifest.hashes_in(tmp_path) == manifest.hashes
    assert manifest.hashes[pair.name] == pair.sha256
    other = replace(rendering, files=[replace(render, sha256="0" * 64)])
    assert replace(manifest, render=other).pairs[0].sha256 != pair.sha256
    (tmp_path / name).write_bytes(b"Render")
    assert manifest.hashes_in(tmp_path) == {written.name: written.sha256}
    assert replace(manifest, render=None).pairs == []
    assert [makes_stacks(each) for each in (written.name, name, pair.name)] == [True, False, False]


def test_a_good_file_is_given(tmp_path: Path, written: Artifact) -> None:
    assert check_artifact(tmp_path, written) == tmp_path / written.name


def test_a_changed_file_is_named_with_both_hashes(tmp_path: Path, written: Artifact) -> None:
    (tmp_path / written.name).write_bytes(b"Weights")
    found = sha256(tmp_path / written.name)
    with pytest.raises(UserError, match=f"{found[:12]}.*{written.sha256[:12]}.*export again"):
        check_artifact(tmp_path, written)


def test_a_missing_file_is_named(tmp_path: Path, written: Artifact) -> None:
    with pytest.raises(UserError, match=r"is missing.*export again"):
        check_artifact(tmp_path, replace(written, name="onnx/student-fp32.onnx"))


@pytest.mark.parametrize(
    "text",
    [
        None,
        "{",
        '{"schema_version": 3}',
        '{"schema_version": 2}',
        '{"schema_version": 2, "size": 64, "artifacts": [{"name": "x"}]}',
        '{"schema_version": 2, "size": 64, "artifacts": 3}',
    ],
)
def test_what_is_no_manifest_is_a_user_error(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json"):
        load_manifest(tmp_path)


def test_a_manifest_of_the_first_version_is_refused_with_the_way_out(tmp_path: Path) -> None:
    """Its hashes were hashes of hashes."""
    (tmp_path / "manifest.json").write_text('{"schema_version": 1, "size": [64, 64]}')
    said = r"manifest\.json has schema_version 1, this version reads 2: run export again"
    with pytest.raises(UserError, match=said):
        load_manifest(tmp_path)
