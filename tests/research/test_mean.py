"""The mean of students, weight by weight."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pocketfocus.models.student import build_student, load_student, save_student
from pocketfocus.research.imagenet import main as read_imagenet
from pocketfocus.research.mean import main, mean
from pocketfocus.run.errors import UserError


def test_the_mean_is_of_every_weight_and_a_student_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    students = [build_student("micro") for _ in range(3)]
    folders = [tmp_path / str(number) for number in range(3)]
    for student, folder in zip(students, folders, strict=True):
        save_student(student, folder, half=False)
    main([str(tmp_path / "mean"), *map(str, folders)])
    made = load_student(tmp_path / "mean").state_dict()
    states = [student.state_dict() for student in students]
    for name, value in made.items():
        expected = sum(state[name] for state in states) / 3
        torch.testing.assert_close(value, expected, atol=1e-3, rtol=1e-3)


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    save_student(build_student("micro"), tmp_path / "first")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    first, out = str(tmp_path / "first"), str(tmp_path / "out")
    for run, words in ((main, [out, first]), (read_imagenet, [first, out])):
        with pytest.raises(SystemExit, match="2"):
            run(words)
    assert (tmp_path / "out" / "thesis.txt").exists()


def test_students_of_other_sizes_have_none() -> None:
    with pytest.raises(UserError, match="no mean"):
        mean([build_student("micro"), build_student("tiny")])
