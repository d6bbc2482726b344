"""Writers killed before each of their renames and deletions: what they wrote is old or new."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pocketfocus.run.errors import UserError
from pocketfocus.run.files import write_atomic, write_set
from pocketfocus.run.scratch import sweep, temporary_folder

FOLDER, SET, OTHER = "folder", "set", "other's"
WRITER = """
import os, shutil, signal, sys
from pathlib import Path
from pocketfocus.run import files, scratch, swap

how, place, last, exchanges = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
calls = 0

def counted(call):
    def killed(*words, **options):
        global calls
        calls += 1
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*words, **options)
    return killed

os.rename, os.replace = counted(os.rename), counted(os.replace)
shutil.rmtree = counted(shutil.rmtree)
exchange = counted(swap.exchange) if exchanges == "exchanges" else lambda one, other: False
swap.exchange = scratch.exchange = exchange
if how == "folder":
    with files.write_atomic(place) as made:
        made.mkdir()
        (made / "a").write_text("new")
        (made / "c").write_text("new")
else:
    with files.write_set(place) as made:
        for name in "abc":
            (made / name).write_text("new")
        (made / "part").mkdir()
        (made / "part" / "d").write_text("new")
"""
OLD = {"a": "old", "b": "old", "part/d": "old"}
NEW = {FOLDER: {"a": "new", "c": "new"}, SET: dict.fromkeys(("a", "b", "c", "part/d"), "new")}


def content(folder: Path) -> dict[str, str]:
    """What is in a folder, without scratch folders."""
    found = ((p.relative_to(folder).as_posix(), p) for p in folder.rglob("*") if p.is_file())
    return {name: path.read_text() for name, path in found if ".part/" not in name}


def fill(place: Path, other: bool) -> dict[str, str]:
    lies = {**OLD, "mine.txt": "mine"} if other else OLD
    for name, text in lies.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    return lies


@pytest.mark.parametrize(
    ("how", "exchanges", "other", "at_once"),
    [
        (FOLDER, "exchanges", False, True),
        (FOLDER, "moves", False, False),
        (SET, "exchanges", False, True),
        (SET, "exchanges", True, False),
        (SET, "moves", False, False),
    ],
)
def test_killed_before_each_rename(
    how: str, exchanges: str, other: bool, at_once: bool, tmp_path: Path
) -> None:
    outcomes, last = set(), 0
    while True:
        last += 1
        place = tmp_path / str(last) / "out"
        old = fill(place, other)
        new = {**NEW[how], "mine.txt": "mine"} if other else NEW[how]
        words = [sys.executable, "-c", WRITER, how, str(place), str(last), exchanges]
        ended = subprocess.run(words, check=False)
        assert ended.returncode in (0, -signal.SIGKILL)
        if at_once:
            assert content(place) in (old, new), f"before rename {last}"
        for folder in (place.parent, place):
            sweep(folder)
        assert content(place) in (old, new), f"swept after rename {last}"
        assert not list(place.parent.rglob("*.part")), "nothing of its own stays"
        outcomes.add(content(place) == new)
        if ended.returncode == 0:
            break
    assert last > 1 and outcomes == ({True} if other else {True, False})


def test_a_set_is_made_in_a_new_folder_and_goes_where_it_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyError), write_set(tmp_path / "out") as made:
        (made / "a").write_text("new")
        raise KeyError
    assert not list(tmp_path.iterdir())
    with write_set(tmp_path / "out") as made:
        (made / "a").write_text("new")
    assert content(tmp_path) == {"out/a": "new"}


def test_a_shell_in_the_folder_stays_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "out", other=False)
    monkeypatch.chdir(tmp_path / "out")
    with write_set(Path()) as made:
        for name in ("a", "b"):
            (made / name).write_text("new")
    assert [*Path().iterdir()] and Path("a").read_text() == "new"


HOLDER = """
import sys
from pathlib import Path
from pocketfocus.run.files import write_atomic
from pocketfocus.run.scratch import temporary_folder

with write_atomic(Path(sys.argv[1])) as path, temporary_folder("work") as folder:
    path.write_text("half")
    print("there", flush=True)
    sys.stdin.read()
"""


def test_leftovers_of_the_killed_are_swept_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = (".config", ".mine.abcdefgh", "pocketfocus-pictures", ".photos.part")
    for name in (*others, ".film.mkv.abcdefgh.part", ".film.mkv-download.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    kept = sorted(tmp_path.rglob("*"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    words = [sys.executable, "-c", HOLDER, str(tmp_path / "out.json")]
    holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout and holder.stdout.readline() == b"there\n"
        held = sorted(tmp_path.rglob("*"))
        sweep(tmp_path)
        assert sorted(tmp_path.rglob("*")) == held != kept, "its maker lives"
    finally:
        holder.kill()
        holder.communicate()
    assert sorted(tmp_path.rglob("*")) == held
    sweep(tmp_path)
    assert sorted(tmp_path.rglob("*")) == kept


def test_names_as_long_as_the_system_takes(tmp_path: Path) -> None:
    for name in ("a" * 255, "海" * 85, "a" + "海" * 84):
        with write_atomic(tmp_path / name) as path:
            path.write_text("made")
        assert (tmp_path / name).read_text() == "made"
    too_long = tmp_path / ("a" * 256)
    with pytest.raises(UserError, match="choose a shorter name"), write_atomic(too_long) as path:
        path.write_text("made")


def test_a_temporary_folder_goes_in_the_end() -> None:
    with temporary_folder("work") as folder:
        (folder / "file").touch()
    assert not folder.exists()
