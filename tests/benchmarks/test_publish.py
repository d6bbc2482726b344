"""A run as a folder for the Hub: what the card says, what is refused, and how it gets there."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pocketfocus.benchmarks.checks import save_stacks
from pocketfocus.benchmarks.golden import replay
from pocketfocus.benchmarks.model_card import Publication, check_licence
from pocketfocus.benchmarks.publish import prove, publish
from pocketfocus.benchmarks.verify import verify_run
from pocketfocus.cli import main
from pocketfocus.mobile_harness.devices import get_device
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import read_json, sha256
from pocketfocus.run.manifest import Artifact, load_manifest
from pocketfocus.run.results import BenchRow, VerifyRow
from pocketfocus.run.rows import write_rows
from tests.benchmarks.hub_server import Hub, listening
from tests.benchmarks.rows import bench_row, verify_row
from tests.benchmarks.test_golden import PACKAGE, PTE, Runs

TOKEN = "hf_thisIsTheSecretOfTheTest"


def measured(artifact: str, status: str = "measured") -> BenchRow:
    names = ("load_ms", "first_ms", "p50_ms", "p90_ms", "p99_ms", "peak_rss_mib")
    figures = dict.fromkeys(names, 10.0 if status == "measured" else None)
    about = {
        "artifact": artifact,
        "target": artifact.split("/")[0],
        "status": status,
        **of(artifact),
    }
    return bench_row(**about, **figures, model="board", chip="x1", threads=2, runs=5, bytes=1)


def of(artifact: str) -> dict[str, str]:
    """The hash of a placeholder of `make_run`."""
    return {"sha256": hashlib.sha256(artifact.encode() * 100).hexdigest()}


def gate(artifact: str, status: str = "pass", why: str = "") -> VerifyRow:
    target = artifact.split("/")[0]
    return verify_row(artifact=artifact, target=target, status=status, why=why, **of(artifact))


@pytest.fixture
def run(small_student: Path, tmp_path: Path, make_run: Callable[..., None]) -> Path:
    """A proven run of two files, one of which no device here can time."""
    folder = tmp_path / "secret-place" / "run"
    make_run(folder, small_student, [PTE, PACKAGE])
    write_rows(folder / "verify.json", [gate(PTE), gate(PACKAGE)])
    write_rows(folder / "bench.json", [measured(PTE), measured(PACKAGE, "not-run")])
    frames = np.full((9, 64, 64, 3), 100, np.uint8)
    save_stacks(folder / "stacks.npz", {"photo": frames[4], "student": frames, PTE: frames})
    return folder


def made(run: Path, small_student: Path, off: float = 0.0, unproven: bool = False) -> Path:
    about = Publication("A run", "apache-2.0")
    measured_run, doubts = prove(run, unproven)
    out = run.parent / "out"
    device = Runs(small_student, off)
    return publish(measured_run, out, replace(about, doubts=doubts), [device])


def test_the_folder_is_a_golden_bundle_with_a_card(run: Path, small_student: Path) -> None:
    out = made(run, small_student)
    card = (out / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["license"] == "apache-2.0"
    assert header["library_name"] == "pocketfocus"
    assert header["tags"] == ["refocusing", "on-device", "executorch", "coreml"]
    for artifact in load_manifest(run).artifacts:
        assert artifact.sha256 in card
        if artifact.sha256:
            assert sha256(out / artifact.name) == artifact.sha256
    assert f"| `{PTE}` | 0.00 | 10.0 |" in card
    assert "host, board, x1 (2 threads)" in card
    assert "Quality against true focal stacks was not measured" in card
    assert "Not proven" not in card
    for picture in re.findall(r"\]\((pictures/[^)]+)\)", card):
        assert (out / picture).stat().st_size > 500
    rows = replay(out, [Runs(small_student)])
    assert {row.status for row in rows} == {"pass", "not-run"}
    assert sha256(out / "student") == sha256(run / "student")


def test_no_path_of_this_machine_is_published(run: Path, small_student: Path) -> None:
    rows = [gate(PTE), gate(PACKAGE, "pass", f"see {run}/{PACKAGE}")]
    write_rows(run / "verify.json", rows)
    manifest = load_manifest(run)
    replace(manifest, reference=f"{run}/reference").save(run)
    for name in ("verify.json", "bench.json"):
        (run / name).touch()
    out = made(run, small_student)
    for path in out.rglob("*"):
        if path.is_file():
            assert b"secret-place" not in path.read_bytes(), path
    assert "| reference | reference |" in (out / "README.md").read_text(encoding="utf-8")


# what is not proven


def spoil_file(run: Path) -> None:
    (run / PTE).write_bytes(b"other")


def spoil_student(run: Path) -> None:
    (run / "student" / "config.json").write_text("{}")


def fail_gate(run: Path) -> None:
    write_rows(run / "verify.json", [gate(PTE, "fail", "30.0 dB, 40 dB are needed"), gate(PACKAGE)])


def verify_in_part(run: Path) -> None:
    part = gate(PTE, "pass", "of a photo, at positions 4 only")
    write_rows(run / "verify.json", [part, gate(PACKAGE)])


def verify_in_a_browser(run: Path) -> None:
    here = gate(PTE, "pass", "at positions 4 only")
    there = gate(PTE, "pass", "at positions 0, 4, 8 only").model_copy(update={"device": "A, B"})
    write_rows(run / "verify.json", [here, there, gate(PACKAGE)])


def die(run: Path) -> None:
    died = gate(PTE, "error", "its process died").model_copy(update={"gate": "photos of 64x64"})
    write_rows(run / "verify.json", [gate(PTE), died, gate(PACKAGE)])


def execute_nowhere(run: Path) -> None:
    write_rows(run / "verify.json", [gate(PTE), gate(PACKAGE, "not-run", "needs macOS")])


def forget(name: str) -> Callable[[Path], None]:
    return lambda run: (run / name).unlink()


def measure_others(run: Path) -> None:
    write_rows(run / "bench.json", [measured(PACKAGE)])


def crash(run: Path) -> None:
    write_rows(run / "bench.json", [measured(PTE, "failed"), measured(PACKAGE)])


def verify_row_of(file: Artifact) -> VerifyRow:
    return gate(file.name).model_copy(update={"sha256": file.sha256})


def export_again(run: Path) -> None:
    (run / PTE).write_bytes(b"other")
    manifest = load_manifest(run)
    files = [replace(a, sha256=sha256(run / a.name)) for a in manifest.artifacts]
    replace(manifest, artifacts=files).save(run)
    write_rows(run / "verify.json", [verify_row_of(a) for a in files])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_file, f"{PTE} is not the file that the manifest lists"),
        (spoil_student, "student is not the one that the files were made of"),
        (fail_gate, f"{PTE} failed its gate"),
        (execute_nowhere, f"{PACKAGE} was executed on no device"),
        (forget("verify.json"), "no parity gate was run"),
        (forget("bench.json"), "no latency was measured"),
        (measure_others, f"{PTE} was not measured"),
        (crash, f"{PTE} was not measured"),
        (verify_in_part, f"{PTE} was verified at positions 4 alone"),
        (verify_in_a_browser, f"{PTE} was verified at positions 0, 4, 8 alone"),
        (die, f"{PTE} could not be judged"),
        (export_again, "no latency was measured"),
    ],
)
def test_what_is_not_proven_is_refused_or_said(
    run: Path, small_student: Path, spoil: Callable[[Path], None], said: str
) -> None:
    spoil(run)
    with pytest.raises(UserError, match=f"is not proven: .*{re.escape(said)}.*--unproven"):
        prove(run, False)
    out = made(run, small_student, unproven=True)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "**Not proven.**" in card
    assert said in card


def test_a_file_that_fails_now_is_refused_though_its_rows_pass(
    run: Path, small_student: Path
) -> None:
    with pytest.raises(UserError, match="misses its own gate"):
        made(run, small_student, off=0.1)
    assert not (run.parent / "out").exists()


def test_without_a_bundle_the_card_says_why(run: Path, small_student: Path) -> None:
    fail_gate(run)
    out = made(run, small_student, off=0.1, unproven=True)
    assert not (out / "golden.json").exists()
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "There is no golden bundle: executorch/student-int8.pte misses its own gate" in card
    assert (out / PTE).read_bytes() == (run / PTE).read_bytes()


def test_a_file_that_is_gone_is_never_published(run: Path) -> None:
    (run / PTE).unlink()
    with pytest.raises(UserError, match=r"int8\.pte is missing"):
        prove(run, True)


# the command


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--licence", "My Own"), "is no identifier of the Hub's"),
        (("--private",), "--private is of --to"),
        (("--to", "name"), "write OWNER/NAME"),
        (("--to", "a/b/c"), "no repository of the Hub"),
        (("--to", "owner/name"), "HF_HUB_OFFLINE keeps this process off the Hub"),
        (("--out", "RUN"), "holds the run itself"),
        (("--out", "RUN/.."), "holds the run itself"),
    ],
)
def test_bad_input_is_one_line(
    run: Path, words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(run.rglob("*"))
    assert main(["publish", str(run), *(w.replace("RUN", str(run)) for w in words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize("beside", ["notes.txt", "README.md", "manifest.json"])
def test_another_folder_is_not_replaced(run: Path, small_student: Path, beside: str) -> None:
    (run.parent / "out").mkdir()
    for name in ("thesis.txt", beside):
        (run.parent / "out" / name).write_text("years of work")
    with pytest.raises(UserError, match="holds something else"):
        made(run, small_student)
    assert (run.parent / "out" / "thesis.txt").exists()


@pytest.mark.parametrize("beside", ["LICENSE", ".git/HEAD"])
def test_what_lies_beside_an_earlier_one_is_not_lost(
    run: Path, small_student: Path, beside: str
) -> None:
    path = made(run, small_student) / beside
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    with pytest.raises(UserError, match="was not written by what is to replace"):
        made(run, small_student)
    assert path.read_text() == "mine"


def test_an_earlier_one_is_replaced(run: Path, small_student: Path) -> None:
    made(run, small_student)
    write_rows(run / "bench.json", [measured(PTE), measured(PACKAGE)])
    assert (made(run, small_student) / "README.md").exists()


def test_licences_are_the_hubs() -> None:
    check_licence("apache-2.0")
    check_licence(None)
    with pytest.raises(UserError, match="no identifier"):
        check_licence("My own")


# the Hub


@pytest.fixture(scope="module")
def proven(exported: Any) -> Path:
    """A run of one real file, executed here."""
    folder: Path = exported(["onnx/student-int8.onnx"])
    verify_run(folder, get_device("host"))
    own = load_manifest(folder).hashes["onnx/student-int8.onnx"]
    row = measured("onnx/student-int8.onnx").model_copy(update={"sha256": own})
    write_rows(folder / "bench.json", [row])
    return folder


def published(run: Path, hub: Hub, *words: str) -> subprocess.CompletedProcess[str]:
    """The command in a process that sees the Hub there."""
    home = run.parent / "hf-home"
    own = {
        "HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home), "HF_HUB_VERBOSITY": "debug",
    }  # fmt: skip
    command = [sys.executable, "-m", "pocketfocus", "publish", str(run), *words]
    return subprocess.run(
        command, env={**os.environ, **own}, capture_output=True, text=True, timeout=240, check=False
    )


def without_token(run: Path, done: subprocess.CompletedProcess[str]) -> None:
    """Neither what was said nor any file that was written holds the token."""
    assert TOKEN not in done.stdout + done.stderr
    for path in run.parent.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path


def test_every_file_reaches_the_hub_in_one_commit(proven: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(proven, run)  # in the order of modification times
    for name in ("verify.json", "bench.json"):
        (run / name).touch()
    with listening(Hub(TOKEN)) as hub:
        done = published(run, hub, "--to", "owner/name", "--private", "--licence", "mit")
        assert done.returncode == 0, done.stderr
        assert f"uploaded: {hub.url}/owner/name" in done.stdout
    folder = run / "published"
    local = {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }
    assert hub.files == local
    assert hub.large, "some file is large enough"
    assert len(hub.commits) == 1
    assert hub.repositories["owner/name"]["visibility"] == "private"
    without_token(run, done)


def test_a_refusal_is_one_line_without_the_token(proven: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(proven, run)
    for name in ("verify.json", "bench.json"):
        (run / name).touch()
    with listening(Hub(TOKEN, refuses=True)) as hub:
        done = published(run, hub, "--to", "owner/name", "--debug")
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("pocketfocus: error: owner/name was not uploaded")
    assert "the token [token] may not write" in last
    without_token(run, done)
    assert read_json(run / "published" / "verify.json")["rows"]
