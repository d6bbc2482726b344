"""The command line: help, exit codes, one line for every error, and nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pocketfocus.cli import arguments, main, quiet
from pocketfocus.cli.app import app, describe
from pocketfocus.run.errors import UserError

Run = Callable[..., tuple[int, str, str]]

COMMANDS = (
    "build",
    "distill",
    "train-reference",
    "export",
    "verify",
    "bench",
    "devices",
    "report",
    "lint",
    "compare",
    "sensitivity",
    "mixed",
    "refocus",
    "evaluate",
    "doctor",
    "serve",
    "publish",
)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Call the command line in this process: (exit code, standard output, standard error)."""

    def call(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        out, err = capfd.readouterr()
        return code, out, err

    return call


def one_line(err: str) -> str:
    """The only line of standard error; it says whose error it is."""
    assert "Traceback" not in err
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("pocketfocus: error: ")
    return lines[0]


# help


def test_every_command_is_there() -> None:
    import typer

    assert tuple(typer.main.get_command(app).commands) == COMMANDS  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(run: Run, command: str) -> None:
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    assert re.search(rf"Example: pocketfocus {command}\b", out)


def test_help_names_every_target_and_precision(run: Run) -> None:
    from pocketfocus.export.targets import TARGETS
    from pocketfocus.quantize.recipes import RECIPES

    shown = re.sub(r"[│\s]+", " ", run("export", "--help")[1])
    assert f"all, or some of {', '.join(sorted(TARGETS))}" in shown
    assert f"all, or some of {', '.join(RECIPES)}" in shown
    assert arguments.names("all", RECIPES, "precision") == tuple(RECIPES)


def test_no_command_shows_all_of_them(run: Run) -> None:
    code, out, _ = run()
    assert code == 0
    assert all(re.search(rf"^│ {command} ", out, re.MULTILINE) for command in COMMANDS)


def test_help_needs_no_heavy_import() -> None:
    code = (
        "import sys, pocketfocus.cli as cli; cli.main(['build', '--help']);"
        "print([m for m in ('torch', 'numpy', 'diffusers', 'PIL') if m in sys.modules])"
    )
    started = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "[]"
    assert time.monotonic() - started < 5, "about 0.2 s on an idle machine"


def test_the_module_is_the_command() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pocketfocus", "--version"], capture_output=True, text=True
    )
    assert result.returncode == 0
    assert re.fullmatch(r"pocketfocus \d+\.\d+\.\d+\n", result.stdout)


# bad input


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("bogus", "No such command 'bogus'"),
        ("build --bogus", "No such option"),
        ("verify", "name the folder of a run, or a golden bundle with --replay"),
        ("build --targets vulkan", "unknown target 'vulkan': choose from executorch, coreml, onnx"),
        ("build --precisions fp8", "unknown precision 'fp8': choose from fp32, fp16, int8, int4"),
        ("export --out OUT --precisions ,", "no precision given"),
        ("export --out OUT --targets onnx,tflite", "unknown target 'tflite'"),
        ("export", "Missing option"),
        ("build --distill-minutes long", "--distill-minutes"),
        ("build --distill-minutes -1", "-1.0 minutes is no duration"),
        ("build --distill-minutes nan", "nan minutes is no duration"),
        ("build --reference nowhere", "no reference at nowhere: name `default`"),
        ("build --reference EMPTY", "it has no unet/config.json"),
        ("build --student EMPTY", "it has no config.json"),
        ("distill --student EMPTY --out OUT", "it has no config.json"),
        ("distill --student EMPTY --from-scratch --out OUT", "leave out --student"),
        ("build --student EMPTY --from-scratch", "--from-scratch begins with no student"),
        ("distill --from-scratch --distill-minutes 0 --out OUT", "0 minutes train nothing"),
        ("build --from-scratch --distill-minutes 0", "0 minutes train nothing from scratch"),
        ("distill --optimizer sgd --out OUT", "unknown optimizer sgd: choose one of adamw, muon"),
        ("build --precisions int7", "mixed, a recipe's .yaml file, or all"),
        ("export --student MISSING --out OUT", "it has no config.json"),
        ("build --photos MISSING", "is not a folder"),
        ("build --photos EMPTY", "holds no photo"),
        ("build --out FILE", "is a file, not a folder"),
        ("distill --out FILE/sub", "Not a directory"),
        ("export --out FILE/sub", "Not a directory"),
        ("verify MISSING", "is no folder of a run: make one"),
        ("verify FILE", "is no folder of a run: name the one that holds it"),
        ("bench MISSING", "is no folder of a run"),
        ("report MISSING", "is no folder of a run"),
        ("verify EMPTY", "manifest.json"),
        ("bench EMPTY", "manifest.json"),
        ("report EMPTY", "manifest.json"),
        ("verify EMPTY --all-photos", "--all-photos changes nothing without --photos: leave it"),
        ("verify EMPTY --locate A --device arm64", "--device changes nothing with --locate"),
        ("verify --replay EMPTY --photos EMPTY", "--photos changes nothing with --replay"),
        ("distill --learn-from reference --stacks EMPTY --out OUT", "--stacks changes nothing by"),
        ("distill --learn-from stacks --photos EMPTY --out OUT", "--photos changes nothing by"),
        ("distill --distill-minutes 0 --qat int8 --out OUT", "--qat changes nothing in 0 minutes"),
        ("verify EMPTY --device toaster", "unknown device 'toaster': choose from host"),
    ],
)
def test_bad_input_is_one_line_and_2(run: Run, tmp_path: Path, line: str, expected: str) -> None:
    (tmp_path / "FILE").write_text("text")
    (tmp_path / "EMPTY").mkdir()
    places = ("FILE", "EMPTY", "MISSING", "OUT")
    words = [
        str(tmp_path / word) if word.split("/")[0] in places else word for word in line.split()
    ]
    if words[0] == "build" and "--out" not in words:
        words += ["--out", str(tmp_path / "OUT")]
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert expected in one_line(err)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["EMPTY", "FILE"], "nothing was written"
    assert not any((tmp_path / "EMPTY").iterdir())


@pytest.mark.parametrize("text", ["-1", "9", "4.5", "x", "", "1e0", "∞"])
def test_a_position_is_a_whole_number_from_0_to_8(text: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"position '{text}' is outside 0..8")):
        arguments.position(text)


def test_positions_are_the_nine_of_the_optics() -> None:
    from pocketfocus.run.constants import FRAMES

    assert [arguments.position(str(p)) for p in range(FRAMES)] == list(range(FRAMES))
    assert arguments.positions("8, 0,4,4") == (0, 4, 8)


@pytest.mark.parametrize(("text", "size"), [("896x640", (640, 896)), ("256", (256, 256))])
def test_a_size_has_one_form_everywhere(text: str, size: tuple[int, int]) -> None:
    assert arguments.size(text) == size


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *((text, "no size") for text in ("64x", "x64", "", "-64", "1x2x3", "big")),
        ("63x64", "too small"),
    ],
)
def test_what_is_no_size_says_what_to_write(text: str, said: str) -> None:
    with pytest.raises(UserError, match=rf"--size {re.escape(text)} is {said}: \w+"):
        arguments.size(text, 64)


def test_verify_takes_some_of_many_photos_and_says_so(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same in `build`."""
    from pocketfocus.benchmarks import verify
    from pocketfocus.cli import build

    taken: list[list[str]] = []

    def stop(_: Path, __: object, how: verify.Verification) -> None:
        taken.append([path.name for path in how.photos or ()])
        raise UserError("enough")

    monkeypatch.setattr(verify, "verify_run", stop)
    (tmp_path / "photos").mkdir()
    paths = [tmp_path / "photos" / f"{number:02}.png" for number in range(22)]
    for path in paths:
        Image.new("RGB", (16, 16)).save(path)
    asked = ("verify", tmp_path, "--photos", tmp_path / "photos")
    assert "8 of 22 photos, evenly spread" in run(*asked)[2]
    run(*asked, "--all-photos")
    settings = build.Settings(tmp_path, "default", None, paths, 0.0, False, (), (), 0)
    with pytest.raises(UserError, match="enough"):
        build._verify(settings)
    some = [f"{number:02}.png" for number in range(0, 22, 3)]
    assert taken == [some, [path.name for path in paths], some]


# the environment


def test_a_read_only_folder_is_one_line(run: Run, tmp_path: Path) -> None:
    """Root may write anywhere but in a file system that refuses, such as /proc."""
    locked = Path("/proc/self") if os.getuid() == 0 else tmp_path / "locked"
    if os.getuid() != 0:
        locked.mkdir(mode=0o555)
    code, _, err = run("distill", "--out", locked / "run")
    assert code == 2
    assert f"cannot write {locked / 'run'}" in one_line(err)


def test_a_full_disk_is_one_line_and_leaves_no_half_written_file(
    run: Run, tmp_path: Path, small_student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    words = ("--student", small_student, "--distill-minutes", 0, "--out", tmp_path / "run")
    code, _, err = run("distill", *words)
    assert code == 2
    assert "No space left on device; free some space" in one_line(err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        *("verify RUN", "bench RUN", "report RUN", "sensitivity RUN", "publish RUN"),
        "mixed RUN --min-db 30 --recipe RUN/a.yaml",
        *("verify RUN --golden RUN/bundle", "publish RUN --site RUN/site"),
        *("export --out RUN", "distill --out RUN", "build --out RUN", "train-reference --out RUN"),
        *("evaluate copy --out RUN/a.json", "refocus PHOTO --out RUN/a"),
        *("refocus PHOTO --focus 1 --out RUN/a.jpg", "compare RUN RUN --page RUN/a.html"),
    ],
)
def test_where_nothing_can_be_written_no_work_is_begun(
    words: str, run: Run, small_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each tries first; whatever it would do then has no time."""
    shutil.copytree(small_student, tmp_path / "run" / "student")
    Image.new("RGB", (32, 32)).save(tmp_path / "photo.png")

    def read_only(**_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    places = words.replace("RUN", f"{tmp_path}/run").replace("PHOTO", f"{tmp_path}/photo.png")
    code, _, err = run(*places.split())
    assert code == 2
    assert re.search(r"cannot write .*/run.*Read-only file system", one_line(err))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_system_errors_outside_our_own_writing_name_the_way_out(number: int) -> None:
    line = describe(OSError(number, os.strerror(number), "big.bin"))
    assert line.startswith("cannot write big.bin: ")
    assert line.endswith("choose another folder")
    assert ("free some space" in line) == (number != errno.EROFS)


def test_unforeseen_errors_are_one_line_and_a_traceback_only_with_debug(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Path) -> Path:
        raise KeyError("first line\nsecond line" + 100_000 * " word")

    monkeypatch.setattr(arguments, "run_folder", broken)
    code, _, err = run("verify", tmp_path)
    assert code == 2
    assert "add --debug to see where" in one_line(err)
    assert len(err) < 600
    for words in (("--debug", "verify", tmp_path), ("verify", tmp_path, "--debug")):
        code, _, err = run(*words)
        assert code == 2
        assert "Traceback (most recent call last)" in err
        assert err.splitlines()[-1].startswith("pocketfocus: error: ")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ModuleNotFoundError("No module named 'torchao'", name="torchao")
    assert describe(error) == (
        "the package torchao is not installed: run `make setup` or pip install it"
    )


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "kill"]
)
def test_ctrl_c_is_one_line_and_leaves_only_whole_files(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    out = tmp_path / "reference"
    command = [sys.executable, "-m", "pocketfocus", "train-reference", "--minutes", "60"]
    command += ["--scenes", "8", "--size", "128", "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while not (out / "autoencoder/train.jsonl").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    assert "pocketfocus: error: interrupted" in err.splitlines()[-1]
    assert not [p for p in out.rglob("*") if p.name.startswith(".")], "no scratch is left"
    for path in out.rglob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))


# quiet


def test_only_known_noise_is_silenced() -> None:
    import logging

    def record(name: str, message: str) -> logging.LogRecord:
        return logging.LogRecord(name, logging.WARNING, "", 0, message, (), None)

    assert not quiet.is_news(record("torchao", "Failed to load /x/_C_mxfp8.abi3.so: no"))
    assert quiet.is_news(record("torchao", "the group size does not divide the channels"))
    assert quiet.is_news(record("mine", "Failed to load /x/_C_mxfp8.abi3.so: no"))


def test_toolchains_are_imported_without_noise() -> None:
    code = (
        "from pocketfocus.cli.quiet import hush; hush();"
        "import torchao.quantization.pt2e.quantize_pt2e, coremltools, onnxruntime;"
        "from diffusers import UNetSpatioTemporalConditionModel;"
        "from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("words", "file"),
    [
        ("bench", "bench.json"),
        ("verify", "verify.json"),
        ("verify --repeat 2", "repeat.json"),
        ("build --out", "bench.json"),
        ("build --out", "verify.json"),
        ("serve", "verify.json"),
    ],
)
def test_broken_results_are_noticed_before_anything_is_measured(
    words: str, file: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pocketfocus.benchmarks import latency, verify
    from pocketfocus.cli import build
    from pocketfocus.mobile_harness.web import server

    measured: list[object] = []
    for module, name in (
        *((latency, "bench_run"), (verify, "verify_run")),
        *((build, "run_stages"), (server, "serve")),
    ):
        monkeypatch.setattr(module, name, lambda *given: measured.append(given))
    (tmp_path / file).write_text('{"schema_version": 1, "rows": [{}]}')
    code, _, err = run(*words.split(), tmp_path)
    assert code == 2 and f"{file}, row 1" in err.splitlines()[-1]
    assert not measured
