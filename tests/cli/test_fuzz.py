"""A seeded fuzzer: broken students, manifests, bundles, recipes, rows, photos and paths all end in
exit code 2 and one line that nobody had to foresee one by one.

What a command does once its input is accepted is left out: it says `accepted` in its place.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
import string
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from pocketfocus.benchmarks import compare, golden, report, verify
from pocketfocus.cli import main
from pocketfocus.export import open as opening
from pocketfocus.export import stage
from pocketfocus.export.open import open_model
from pocketfocus.mobile_harness.device import Job, Result
from pocketfocus.mobile_harness.web import server
from pocketfocus.models.reference import ReferencePipeline
from pocketfocus.run.errors import UserError
from pocketfocus.run.manifest import load_manifest
from pocketfocus.run.rows import write_rows
from tests.benchmarks.rows import bench_row, verify_row
from tests.benchmarks.test_compare import make as measured_run
from tests.house.source import none

DEEP = 20_000  # levels: Python's own limit is a thousand
NONSENSE: tuple[Any, ...] = (
    *(None, True, -1, 0, 1.5, 2**63, -(2**63), 10**400, float("nan"), float("inf")),
    *("", "x", "64", "[/bold]", "\x1b[2J", "\u202e", "\ud800", "../../x", "x" * 300, "$\\frac$"),
    *([], {}, [[]], {"": 0}, [None] * 50),
)
ONNX = "onnx/student-fp32.onnx"
CASES = 60  # of each kind


def accept(*_: object, **__: object) -> Any:
    """The input was taken: from here on it is the command's own work."""
    raise UserError("accepted")


class Page:
    """A template that shows nothing."""

    def render(self, **_: object) -> str:
        raise UserError("accepted")


@pytest.fixture(autouse=True)
def nothing_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "student_check", accept)
    monkeypatch.setattr(golden, "execute", accept)
    monkeypatch.setattr(stage, "write_files", accept)
    monkeypatch.setattr(opening, "open_model", accept)
    monkeypatch.setattr(server, "page_files", accept)
    monkeypatch.setattr(report, "page", lambda _: Page())
    for chart in ("sustained_chart", "latency_chart", "size_chart", "grids_chart"):
        monkeypatch.setattr(report, chart, lambda _: b"")


def paths_in(content: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in what JSON holds."""
    yield at
    if isinstance(content, dict | list):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in items:
            yield from paths_in(value, (*at, key))


def spoilt(content: Any, rng: random.Random) -> Any:
    """A copy in which one place holds nonsense, is missing, or stands twice."""
    content = copy.deepcopy(content)
    places = [place for place in paths_in(content) if place]
    *way, last = rng.choice(places)
    parent = content
    for step in way:
        parent = parent[step]
    how = rng.random()
    if how < 0.7:
        parent[last] = copy.deepcopy(rng.choice(NONSENSE))
    elif how < 0.85:
        del parent[last]
    elif isinstance(parent, dict):
        parent["unknown"] = parent[last]
    else:
        parent.append(parent[last])
    return content


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut off, or left out."""
    how = rng.random()
    if how < 0.3:
        return data[: rng.randrange(len(data))]
    flipped = bytearray(data)
    for _ in range(rng.choice((1, 4, 40))):
        flipped[rng.randrange(len(data) if how < 0.6 else min(len(data), 64))] ^= rng.randrange(256)
    return bytes(flipped)


def spoil_json(path: Path, rng: random.Random) -> None:
    """Wrong in its types and values, or as text."""
    text = path.read_text()
    how = rng.random()
    if how < 0.8:
        path.write_text(json.dumps(spoilt(json.loads(text), rng)))
    elif how < 0.85:
        path.write_text('{"schema_version": 1, "rows": ' + "[" * DEEP)
    else:
        path.write_bytes(damaged(text.encode(), rng))


Check = Callable[..., bool]


@pytest.fixture
def check(capfd: pytest.CaptureFixture[str]) -> Iterator[Check]:
    """check(words): whether the input was taken; whatever came of it, it was one line."""
    wrong = []

    def call(*words: object) -> bool:
        code = main([str(word) for word in words])
        err = capfd.readouterr().err
        last = (err.splitlines() or [""])[-1]
        one = last.startswith("pocketfocus: error: ") and last.isprintable()
        if code != 2 or not one or "Traceback" in err or "not foreseen" in err:
            wrong.append((words, code, err))
        return last.endswith("accepted")

    yield call
    none(f"{code} {words}: {err[-400:]}" for words, code, err in wrong)


@pytest.fixture
def run(small_student: Path, tmp_path: Path, make_run: Callable[..., None]) -> Path:
    """A run with all files that `report` reads."""
    folder = tmp_path / "run"
    make_run(folder, small_student, [ONNX])
    hashes = load_manifest(folder).hashes
    about = {"artifact": ONNX, "precision": "fp32", "sha256": hashes[ONNX]}
    write_rows(folder / "verify.json", [verify_row(**about)])
    write_rows(folder / "bench.json", [bench_row(**about, p50_ms=3.0, runs=5, bytes=100)])
    (folder / "distill.json").write_text('{"schema_version": 1, "reference": "default"}')
    frames = np.zeros((9, 16, 16, 3), np.uint8)
    np.savez(folder / "stacks.npz", photo=frames[0], student=frames)
    return folder


def test_manifests_and_rows(run: Path, check: Check, tmp_path: Path) -> None:
    rng, taken = random.Random(1), 0
    assert check("report", run) and check("verify", run)
    files = ("manifest.json", "verify.json", "bench.json", "distill.json")
    for number in range(4 * CASES):
        case = tmp_path / "case"
        shutil.copytree(run, case)
        spoil_json(case / files[number % 4], rng)
        taken += check(("verify", "serve", "report")[number // 4 % 3], case)
        shutil.rmtree(case)
    assert taken < 2.5 * CASES


def test_evaluations_and_samples(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, taken = random.Random(8), 0
    monkeypatch.setattr(compare, "compare", accept)
    run, other = measured_run(tmp_path / "a"), measured_run(tmp_path / "b")
    assert check("compare", run, other)
    files = ("evaluate.json", "evaluate.samples.json", "bench.samples.json")
    for number in range(CASES):
        path = run / files[number % 3]
        whole = path.read_bytes()
        spoil_json(path, rng)
        taken += check("compare", run, other)
        path.write_bytes(whole)
    assert taken < CASES / 2


def test_kept_stacks(run: Path, check: Check) -> None:
    rng, whole = random.Random(2), (run / "stacks.npz").read_bytes()
    for _ in range(CASES // 2):
        (run / "stacks.npz").write_bytes(damaged(whole, rng))
        check("report", run)


def test_students(small_student: Path, check: Check, tmp_path: Path) -> None:
    rng, taken = random.Random(3), 0
    for number in range(CASES):
        case = tmp_path / f"student{number}"
        shutil.copytree(small_student, case)
        (weights,) = case.glob("*.safetensors")
        if number % 3:
            spoil_json(case / "config.json", rng)
        else:
            weights.write_bytes(damaged(weights.read_bytes(), rng))
        words = ("--student", case, "--targets", "onnx", "--sizes", "own", "--out", tmp_path / "o")
        taken += check("export", *words, "--precisions", "fp32")
        shutil.rmtree(case)
    assert taken < CASES / 3


def test_references(
    small_reference: Path, check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, taken = random.Random(9), 0
    monkeypatch.setattr(opening, "open_model", open_model)
    monkeypatch.setattr(ReferencePipeline, "sample", accept)
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    case = tmp_path / "reference"
    words = ("--model", f"reference:{case}", "--position", "4", "--out", tmp_path / "o")
    parts = ("image_encoder/config.json", "vae/config.json", "unet/config.json")
    for number in range(CASES // 2):
        shutil.copytree(small_reference, case, dirs_exist_ok=True)
        spoil_json(case / parts[number % 3], rng)
        taken += check("refocus", tmp_path / "photo.png", *words)
    assert taken < CASES / 3


def test_recipes(check: Check, small_student: Path, tmp_path: Path) -> None:
    rng, taken = random.Random(4), 0
    rules = [{"layers": "*", "bits": 8, "granularity": "channel", "activations": "static"}]
    recipe = {"name": "mine", "about": "a", "min_psnr_db": 30, "rules": rules}
    path = tmp_path / "mine.yaml"
    words = ("--student", small_student, "--targets", "onnx", "--sizes", "own", "--out", tmp_path)
    for number in range(CASES):
        try:
            path.write_text(yaml.safe_dump(spoilt(recipe, rng)))
        except UnicodeEncodeError:
            continue
        if number % 4 == 0:
            path.write_bytes(damaged(path.read_bytes(), rng))
        taken += check("export", *words, "--precisions", path)
    assert taken < CASES / 2


def test_golden_bundles(run: Path, check: Check, tmp_path: Path) -> None:
    rng, taken = random.Random(5), 0
    bundle = tmp_path / "bundle"
    # Written as where no device executes the file.
    golden.write_golden(run, bundle, [Nowhere()])
    texts = {path: path.read_bytes() for path in (bundle / "golden.json", bundle / "student.f16")}
    for number in range(CASES):
        if number % 4:
            spoil_json(bundle / "golden.json", rng)
        else:
            (bundle / "student.f16").write_bytes(damaged(texts[bundle / "student.f16"], rng))
        taken += check("verify", "--replay", bundle)
        for path, content in texts.items():
            path.write_bytes(content)
    assert taken < CASES / 3


class Nowhere:
    """A device that executes nothing."""

    name = "nowhere"

    def describe(self) -> dict[str, str]:
        return {}

    def why_not(self, target: str) -> str:
        return "nothing is executed here"

    def run(self, job: Job) -> Result:
        raise NotImplementedError


def test_photos(check: Check, tmp_path: Path) -> None:
    rng = random.Random(6)
    pixels = np.random.default_rng(6).integers(0, 255, (48, 64, 3), np.uint8)
    files = {}
    for kind in ("JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP", "AVIF", "HEIF", "JPEG2000", "PPM"):
        file = BytesIO()
        Image.fromarray(pixels).save(file, kind)
        files[kind] = file.getvalue()
    photo = tmp_path / "photo"
    for data in [b"", b"%!PS-Adobe-3.0 EPSF-3.0", *files.values()]:
        photo.write_bytes(data)
        assert check("refocus", photo, "--out", tmp_path / "o") == (data in files.values())
    for _ in range(CASES // 5):
        for data in files.values():
            photo.write_bytes(damaged(data, rng))
            check("refocus", photo, "--out", tmp_path / "o")


def test_paths(check: Check, run: Path, tmp_path: Path) -> None:
    rng = random.Random(7)
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    names = [
        "x" * 300,
        "x/" * 3000,
        "[/bold]",
        "[red]x[/]",
        "a\x1b[2Jb",
        "\u202ex",
        "\udcff",
        "~",
        "",
    ]
    names += ["file/below", "loop", "loop/below", "\n", "-", "photo.jpg\\"]
    names += ["".join(rng.choices(string.printable[:95], k=20)) for _ in range(10)]
    for name in names:
        path = f"{tmp_path}/{name}" if name else ""
        for words in (
            ("report", path), ("verify", path), ("verify", "--replay", path), ("bench", path),
            ("serve", path), ("refocus", path, "--out", tmp_path / "o"), ("compare", path, run),
            ("export", "--student", path, "--out", tmp_path / "o"),
            ("verify", run, "--photos", path),
            ("export", "--precisions", f"{path}.yaml", "--out", tmp_path / "o"),
            ("distill", "--stacks", path, "--out", tmp_path / "o"),
            ("distill", "--reference", path, "--out", tmp_path / "o"),
            ("evaluate", path),
        ):  # fmt: skip
            check(*words)
