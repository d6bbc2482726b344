"""Stages: run once, skipped when nothing changed, run again when anything did."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pocketfocus.run.errors import UserError
from pocketfocus.run.files import read_json, write_atomic
from pocketfocus.run.stages import RECORD, Stage, run_stages


class Kitchen:
    """Two stages, the second reading what the first wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.flour = folder, "rye"

    def run(self) -> list[str]:
        return run_stages(self.folder, self.stages())

    def stages(self) -> list[Stage]:
        dough, bread = self.folder / "dough", self.folder / "bread"

        def knead() -> None:
            with write_atomic(dough) as scratch:
                scratch.write_text(self.flour)

        def bake() -> None:
            with write_atomic(bread) as scratch:
                scratch.mkdir()
                (scratch / "loaf").write_text("baked " + dough.read_text())

        return [
            Stage("knead", lambda: {"flour": self.flour}, (), ("dough",), knead),
            Stage("bake", lambda: {"dough": dough.read_text()}, (), ("bread", "*.crumb"), bake),
        ]


@pytest.fixture
def kitchen(tmp_path: Path) -> Kitchen:
    return Kitchen(tmp_path)


def test_a_second_run_does_nothing(kitchen: Kitchen) -> None:
    assert kitchen.run() == ["knead", "bake"]
    assert kitchen.run() == []


def test_a_changed_input_runs_its_stage_and_the_ones_that_read_it(kitchen: Kitchen) -> None:
    kitchen.run()
    kitchen.flour = "spelt"
    assert kitchen.run() == ["knead", "bake"]
    assert (kitchen.folder / "bread/loaf").read_text() == "baked spelt"


@pytest.mark.parametrize("damage", ["edited", "missing"])
def test_a_damaged_output_is_reported_and_made_again(
    kitchen: Kitchen, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kitchen.run()
    loaf = kitchen.folder / "bread/loaf"
    if damage == "edited":
        loaf.write_text("stone")
    else:
        shutil.rmtree(loaf.parent)
    assert kitchen.run() == ["bake"]
    assert loaf.read_text() == "baked rye"
    said = capsys.readouterr().err
    assert ("its hash differs" if damage == "edited" else "bread is missing") in said


def test_other_code_or_tools_run_a_stage_again(
    kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch
) -> None:
    kitchen.run()
    monkeypatch.setattr("pocketfocus.run.stages.tools", lambda: {"torch": "0.4.1"})
    assert kitchen.run() == ["knead", "bake"]
    monkeypatch.setattr("pocketfocus.run.stages.source_hash", lambda *folders: "new")
    assert kitchen.run() == ["knead", "bake"]


def test_an_interrupted_stage_is_not_taken_for_done(
    kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch
) -> None:
    kitchen.run()
    kitchen.flour = "spelt"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            kitchen.run()
    assert (kitchen.folder / "dough").read_text() == "rye", "the old file is whole"
    assert sorted(p.name for p in kitchen.folder.iterdir()) == ["bread", "dough", RECORD]
    assert kitchen.run() == ["knead", "bake"]


def test_a_stage_that_could_not_do_all_is_tried_again(tmp_path: Path) -> None:
    undone, done = ["loaf.pte: died of SIGKILL"], list[str]()

    def bake() -> list[str]:
        (tmp_path / "bread").write_text("half")
        return undone

    stages = [
        Stage("bake", dict, (), ("bread",), bake),
        Stage("serve", dict, (), (), lambda: done.append("served")),
    ]
    for _ in range(2):
        with pytest.raises(UserError, match=r"^bake is not finished: loaf\.pte: died .* again$"):
            run_stages(tmp_path, stages)
    assert done == ["served"], "what comes after is done, once"
    undone.clear()
    assert run_stages(tmp_path, stages) == ["bake"]
    assert run_stages(tmp_path, stages) == []


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_stage_that_does_not_write_is_an_error(tmp_path: Path) -> None:
    lazy = Stage("rest", dict, (), ("nothing",), lambda: None)
    with pytest.raises(UserError, match="rest ended without writing nothing"):
        run_stages(tmp_path, [lazy])


def test_the_record_can_be_read(kitchen: Kitchen) -> None:
    kitchen.run()
    record = read_json(kitchen.folder / RECORD)
    assert set(record["stages"]) == {"knead", "bake"}
    assert set(record["stages"]["knead"]) == {"key", "outputs", "seconds"}


def test_a_broken_record_is_an_error_with_a_way_out(kitchen: Kitchen) -> None:
    (kitchen.folder / RECORD).write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="delete it"):
        kitchen.run()
