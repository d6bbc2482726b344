"""The mean of students that were trained side by side, weight by weight (arXiv 2203.05482).

    python -m pocketfocus.research.mean build/student FIRST SECOND

All have to begin with the same student, or their mean is none. So the shipped student came about.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from pocketfocus.models.student import (
    STUDENT_FILES,
    RefocusStudent,
    load_student,
    save_student,
)
from pocketfocus.run.errors import UserError, reported
from pocketfocus.run.files import check_replaceable


def mean(students: Sequence[RefocusStudent]) -> RefocusStudent:
    """The mean of students, of which the first is changed; UserError where their sizes differ."""
    first, *others = students
    for other in others:
        if other.config != first.config:
            raise UserError(
                f"students of other sizes have no mean ({other.config} beside {first.config}): "
                "name some that began with the same"
            )
    states = [student.state_dict() for student in students]
    first.load_state_dict({n: torch.stack([s[n] for s in states]).mean(0) for n in states[0]})
    return first


@reported("mean")
def main(arguments: Sequence[str] | None = None) -> None:
    """Write the mean of student folders."""
    parser = argparse.ArgumentParser(
        prog="python -m pocketfocus.research.mean", description=__doc__.splitlines()[0]
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    parser.add_argument("students", type=Path, nargs="+", metavar="STUDENT", help="their folders")
    options = parser.parse_args(arguments)
    check_replaceable(options.out, STUDENT_FILES, "OUT", STUDENT_FILES)
    save_student(mean([load_student(folder) for folder in options.students]), options.out)
    print(options.out)


if __name__ == "__main__":
    main()
