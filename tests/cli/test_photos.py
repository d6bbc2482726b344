"""`refocus` and `evaluate` as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.ExifTags import IFD, Base

from pocketfocus.benchmarks.samples import read_scenes
from pocketfocus.cli import main
from pocketfocus.data.scenes import render_scene
from pocketfocus.photos.gallery import FILES
from pocketfocus.run.files import read_json
from tests.breathing import write_breathing


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A small photo, wider than high."""
    path = tmp_path / "photo.jpg"
    pixels = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_refocus_writes_everything_and_says_what_to_open(
    photo: Path,
    small_student: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    out = Path("12:30")  # no protocol of ffmpeg's
    words = ["--position", "4", "--model", str(small_student), "--out", str(out)]
    for _ in ("a new folder", "one of its own"):
        assert main(["refocus", str(photo), *words]) == 0
        assert str(out / "index.html") in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == set(FILES)
    expected = {f"frame_{i}.png" for i in range(9)}
    expected |= {"stack.gif", "stack.mp4", "all_in_focus.png", "focus_map.png", "index.html"}
    assert set(FILES) == expected


BAD = ("MISSING", "TEXT", "TRUNCATED", "POINT")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("PHOTO --position -1", "position '-1'"),
        ("PHOTO --position 9", "position '9'"),
        ("PHOTO --position 4.5", "position '4.5'"),
        ("PHOTO --position x", "position 'x'"),
        ("PHOTO --focus 8.5", "focus 8.5 is outside 0..8"),
        ("PHOTO --focus nan", "focus nan is outside 0..8"),
        ("PHOTO --focus near", "Invalid value for '--focus'"),
        ("PHOTO --aperture -0.1", "aperture -0.1 is outside 0..2"),
        ("PHOTO --focus 3 --aperture 3", "aperture 3 is outside 0..2"),
        ("PHOTO --focus 3 --focus-at 5,5", "give one of them"),
        ("PHOTO --focus-at 90,10", "--focus-at 90,10 is outside the photo of 90x60 pixels"),
        ("PHOTO --focus-at 0.4,-0.1", "is outside the photo"),
        ("PHOTO --focus-at 1.5,0.5", "is neither in pixels nor in fractions"),
        ("PHOTO --focus-at 0.5,1", "is neither in pixels nor in fractions"),
        ("PHOTO --focus-at 0.4", "is no point"),
        ("PHOTO --focus-at nan,0.5", "is outside the photo"),
        ("PHOTO --focus 3 --max-side 8", "--max-side"),
        ("TRUNCATED --focus 3", "damaged or cut short"),
        ("PHOTO --focus 3 --model MISSING.pte", "does not exist"),
        ("MISSING --position 4", "does not exist"),
        ("TEXT --position 4", "is not an image"),
        ("TRUNCATED --position 4", "damaged or cut short"),
        ("POINT --position 4", "1x1 pixels"),
        ("PHOTO --position 4 --model MISSING", "no model at"),
        ("PHOTO --position 4 --model EMPTY", "no config.json"),
        ("PHOTO --position 4 --model MISSING.pte", "does not exist"),
        ("PHOTO --position 4 --model reference:nowhere", "no reference at nowhere"),
    ],
)
def test_refocus_refuses_in_one_line(
    photo: Path, tmp_path: Path, words: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = photo.read_bytes()
    (tmp_path / "TEXT").write_text("no picture")
    (tmp_path / "TRUNCATED").write_bytes(content[: len(content) // 2])
    Image.new("RGB", (1, 1)).save(tmp_path / "POINT", "PNG")
    (tmp_path / "EMPTY").mkdir()
    places = {"PHOTO": photo, **{n: tmp_path / n for n in (*BAD, "EMPTY", "MISSING.pte")}}
    line = [str(places.get(word, word)) for word in words.split()]
    assert main(["refocus", *line, "--out", str(tmp_path / "OUT")]) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1, err
    assert err[0].startswith("pocketfocus: error: ")
    assert expected in err[0]
    assert not (tmp_path / "OUT").exists()


@pytest.mark.parametrize(
    ("words", "out", "expected"),
    [
        ("--focus 3", "made.gif", "no suffix of a picture that is written"),
        ("--focus 3", "photo.jpg", "is the photo itself"),
        ("--focus 3", "photo.jpg/made.png", "Not a directory"),
        ("--focus 3", "a" * 252 + ".jpg", "File name too long; choose a shorter name"),
        ("--focus 3", "a" * 256, "File name too long; choose a shorter name"),
        ("", "a" * 256, "File name too long; choose a shorter name"),
        ("", "made.jpg", "is one picture: say which with --focus"),
        ("", "made.gif", "is one file: name a folder, for nine frames"),
        ("", "made.HEIC", "is one file: name a folder, for nine frames"),
        ("", "photo.jpg", "is a file, not a folder"),
    ],
)
def test_refocus_refuses_where_it_cannot_write(
    words: str,
    out: str,
    expected: str,
    photo: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = photo.read_bytes()
    assert main(["refocus", str(photo), *words.split(), "--out", str(photo.parent / out)]) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1, err
    assert expected in err[0]
    assert photo.read_bytes() == before
    assert list(photo.parent.iterdir()) == [photo]


@pytest.mark.parametrize("name", FILES)
def test_nine_frames_do_not_replace_their_photo(
    name: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of whatever kind: the content of a file decides that it is a photo."""
    out = tmp_path / "out"
    out.mkdir()
    kept = photo.rename(out / name)
    before = kept.read_bytes()
    words = ["--model", str(tmp_path / "none"), "--out", str(out / ".." / "out")]
    assert main(["refocus", str(kept), *words]) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1, err
    for part in (str(kept), f"is {name} in {out / '..' / 'out'}", "name another folder with --out"):
        assert part in err[0]
    assert list(out.iterdir()) == [kept]
    assert kept.read_bytes() == before


@pytest.mark.parametrize("name", [*FILES, "all of them"])
def test_nine_frames_do_not_replace_what_is_not_theirs(
    name: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for each in FILES if name == "all of them" else [name]:
        (out / each).write_text("their own")
    assert main(["refocus", str(photo), "--out", str(out)]) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1, err
    assert "of another origin, which nine frames would replace: name another folder" in err[0]
    assert {path.read_text() for path in out.iterdir()} == {"their own"}


def test_a_photo_that_is_a_link_to_the_picture_stays(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    kept = photo.rename(out / "photo-refocused.jpg")
    photo.symlink_to(kept)
    before = kept.read_bytes()
    assert main(["refocus", str(photo), "--focus", "3", "--out", str(out)]) == 2
    assert "is the photo itself" in capsys.readouterr().err
    assert kept.read_bytes() == before


def test_folders_of_others_below_the_results_stay(
    photo: Path, tmp_path: Path, small_student: Path
) -> None:
    """A refocusing looks for leftovers where it writes, and for none of others' anywhere."""
    own = ".out.pocketfocus-abcdefgh.part"
    kept = [tmp_path / ".film.mkv.abcdefgh.part", tmp_path / "below" / own]
    for each in (*kept, tmp_path / own):
        each.mkdir(parents=True)
    words = ["--focus", "3", "--position", "4", "--model", str(small_student)]
    assert main(["refocus", str(photo), *words, "--out", str(tmp_path)]) == 0
    assert all(each.is_dir() for each in kept)
    assert not (tmp_path / own).exists()


@pytest.mark.parametrize(
    ("words", "out", "written", "size"),
    [
        ("--focus 3.5", "made.png", "made.png", (90, 60)),
        ("--focus-at 45,30 --position 2", "made.tif", "made.tif", (90, 60)),
        ("--focus-at 0.5,0.5 --aperture 2", "made.jpg", "made.jpg", (90, 60)),
        ("--aperture 0 --max-side 45", "folder", "folder/photo-refocused.jpg", (45, 30)),
    ],
)
def test_refocus_writes_one_picture(
    words: str,
    out: str,
    written: str,
    size: tuple[int, int],
    photo: Path,
    small_student: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = ["--model", str(small_student), "--out", str(photo.parent / out)]
    assert main(["refocus", str(photo), *words.split(), *place]) == 0
    said = capsys.readouterr()
    path = photo.parent / written
    assert said.out.strip() == str(path)
    assert ("by its picture" in said.err) == ("--position" not in words)
    with Image.open(path) as image:
        assert image.size == size
        comment = image.getexif().get_ifd(IFD.Exif)[Base.UserComment]
        fields = json.loads(comment.removeprefix(b"ASCII\0\0\0"))
    assert fields["model"] == "student0"
    assert 0 <= fields["focus"] <= 8
    if "--focus 3.5" in words:
        assert (fields["focus"], fields["aperture"]) == (3.5, 1.0)
    if "--position 2" in words:
        assert fields["position"] == 2
    if "--aperture 0" in words:
        assert (fields["focus"], fields["aperture"]) == (fields["position"], 0.0)


@pytest.fixture
def stacks(tmp_path: Path) -> Path:
    """A folder with two scenes of nine 64-pixel images."""
    folder = tmp_path / "stacks"
    generator = np.random.default_rng(1)
    for scene in ("a", "b"):
        (folder / scene).mkdir(parents=True)
        for index in range(9):
            pixels = generator.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / scene / f"{index}.png")
    return folder


def test_evaluate_scores_a_folder_beside_the_baselines(
    stacks: Path, small_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.json"
    words = ["--stacks", str(stacks), "--inputs", "8,0", "--scenes", "1", "--out", str(out)]
    assert main(["evaluate", str(small_student), *words]) == 0
    rows = read_json(out)["rows"]
    cells = [row for row in rows if "input_position" in row]
    assert {row["input_position"] for row in cells} == {0, 8}
    assert len(cells) == 3 * 2 * 9
    means = {row["model"]: row["scenes"] for row in rows if "mean_psnr_db" in row}
    assert means == {str(small_student): 1, "copy": 1, "blur": 1}
    assert "copy" in capsys.readouterr().out
    left = sorted(path.name for path in tmp_path.glob("scores*"))
    assert left == ["scores.json", "scores.samples.json"]
    assert list(read_scenes(out)) == [str(small_student), "copy", "blur"]


def test_evaluate_takes_baselines_by_name_and_inputs_in_turn(
    stacks: Path, small_student: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scores.json"
    words = ["--stacks", str(stacks), "--inputs-per-scene", "2", "--out", str(out)]
    assert main(["evaluate", str(small_student), "copy", "blur", *words]) == 0
    rows = read_json(out)["rows"]
    means = [row["model"] for row in rows if "mean_psnr_db" in row]
    assert means == [str(small_student), "copy", "blur"]


def test_evaluate_registers_frames_that_move(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Copying a photo is nearer to frames that lie where it does; unasked, their motion is said."""
    still = render_scene(3, (144, 192))
    step = torch.tensor([0.0, 0.0, 0.006, 0.0, 0.0, 0.006, -0.004])
    write_breathing(tmp_path / "stacks" / "mug", still, step)
    found = []
    for more in ([], ["--register"]):
        out = tmp_path / f"scores{len(more)}.json"
        words = ["--stacks", str(tmp_path / "stacks"), "--positions", "0,8", "--out", str(out)]
        assert main(["evaluate", "copy", *words, *more]) == 0
        notes = [line for line in capsys.readouterr().err.splitlines() if "move against" in line]
        assert len(notes) == 1 - len(more)
        (row,) = (r for r in read_json(out)["rows"] if r["model"] == "copy" and "scenes" in r)
        found.append(row)
    assert [row["stacks"] for row in found] == ["stacks", "stacks, registered"]
    as_they_lie, registered = (row["mean_psnr_db_off_diagonal"] for row in found)
    assert registered > as_they_lie + 0.5


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--stacks nowhere", "no focal stacks at nowhere"),
        ("--inputs 0,9", "position '9'"),
        ("--inputs ,", "no input position"),
        ("--scenes 0", "--scenes"),
        ("--out .", "is a folder, not a file"),
        ("--register", "synthetic is rendered, and its frames do not move: leave --register out"),
        ("--metric-weights nowhere", "nowhere has neither vgg16-397923af.safetensors"),
    ],
)
def test_evaluate_refuses_in_one_line(
    small_student: Path, words: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(small_student), *words.split()]) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1
    assert expected in err[0]


def test_a_folder_of_a_rendered_sources_name_is_not_that_source(
    small_student: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`synthetic` is rendered whatever lies here; the folder is ./synthetic."""
    (tmp_path / "synthetic").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", str(small_student), "--register"]) == 2
    assert "synthetic is rendered" in capsys.readouterr().err
    assert main(["evaluate", str(small_student), "--stacks", "./synthetic", "--register"]) == 2
    assert "holds no usable focal stack" in capsys.readouterr().err
