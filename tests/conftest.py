"""What all tests share: no network, one thread, a browser, and files of a student so small that
they are exported in seconds, each once a session."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from torch import nn

    from pocketfocus.export.stage import Export
    from pocketfocus.models.student import RefocusStudent
    from pocketfocus.run.manifest import Artifact

os.environ["TORCH_COMPILE_DISABLE"] = "1"  # it would take longer than any training here
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that needs the network is a mistake: let it fail
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what ends with `&`
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # as nohup does
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

gc.set_threshold(50_000, 20, 20)  # what torch and the toolchains import is walked less often

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
ONE_WORKER, SIZED = "shared", "sized"  # groups of tests
SIZES = ((48, 80), (80, 48))  # of photos, beside those that the small student is for
WITH_PRIOR: dict[str, Any] = {  # a small student with a prior of depth, which the smallest lacks
    "channels": (8, 8, 16),
    "encoder": (1, 1, 1),
    "decoder": (1, 1),
    "head": 16,
    "bands": 3,
    "prior": 8,
    "size": (64, 96),
}
# Modules that take more than about two seconds of a processor, and functions of others: they import
# toolchains, export, train, load references or start processes. `make check` leaves them out.
SLOW = {
    "benchmarks/test_baselines.py",
    "benchmarks/test_canary.py",
    "benchmarks/test_compare.py",
    "benchmarks/test_evaluate.py",
    "benchmarks/test_golden.py",
    "benchmarks/test_golden_sizes.py",
    "benchmarks/test_inception.py",
    "benchmarks/test_lint.py",
    "benchmarks/test_perceptual.py",
    "benchmarks/test_publish.py",
    "benchmarks/test_truth.py",
    "benchmarks/test_verify.py",
    "cli/test_distill.py",
    "cli/test_fuzz.py",
    "cli/test_killed.py",
    "cli/test_photos.py",
    "cli/test_references.py",
    "cli/test_streams.py",
    "data/test_photo_scenes.py",
    "data/test_scenes.py",
    "distill/reference/test_denoiser.py",
    "distill/reference/test_finetune.py",
    "distill/reference/test_phases.py",
    "distill/reference/test_published.py",
    "distill/student/test_consistency.py",
    "distill/student/test_detail.py",
    "distill/train/test_loop.py",
    "export/coreai/test_files.py",
    "export/coreml/mil/test_operators.py",
    "export/coreml/mil/test_program.py",
    "export/coreml/test_write.py",
    "export/test_open.py",
    "export/test_render.py",
    "export/test_sizes.py",
    "export/test_stage.py",
    "mobile/test_export.py",
    "mobile/test_folders.py",
    "mobile/test_pipeline.py",
    "mobile/test_savings.py",
    "mobile/test_unet.py",
    "models/test_published.py",
    "models/test_reference.py",
    "photos/test_firstlook.py",
    "photos/test_gallery.py",
    "photos/test_many_photos.py",
    "quantize/test_mixed.py",
    "research/test_card.py",
    "research/test_real_stacks.py",
    "run/test_killed.py",
    "student/test_stage.py",
    "student/test_teacher_stacks.py",
    "test_build.py",
    "cli/test_start_page.py",
    "test_a_large_photo_takes_little_more_memory_than_its_decoding",
    "test_full.py",
    "test_host.py",
    "test_processes.py",
    "test_runtimes.py",
    "toolchains/test_executorch.py",
    "toolchains/test_grids.py",
    "web/test_app_example.py",
    "web/test_patience.py",
    "test_12_megapixels_take_less_than_900_mb",
    "test_a_package_is_the_same_bytes_whatever_was_built_before",
    "test_an_interrupted_evaluation_goes_on",
    "test_consistency_makes_a_reference_that_draws_in_few_steps",
    "test_ctrl_c_is_one_line_and_leaves_only_whole_files",
    "test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit",
    "test_learning_through_the_rounding_recovers_what_it_costs",
    "test_many_scenes_are_rendered_by_several_processes_alike",
    "test_nine_frames_are_in_memory_one_at_a_time",
    "test_no_tensor_has_more_than_five_dimensions",
    "test_processes_that_render_end_with_the_one_that_started_them",
    "test_real_onnx_files_on_the_host",
    "test_scenes_beside_a_folder_are_rendered_by_several_processes_too",
    "test_the_int8_graph_is_the_student",
    "test_the_largest_size_that_export_allows_is_measured_and_judged",
    "test_the_pixels_of_a_large_photo_are_unpacked_without_copies",
    "test_the_references_stacks_or_true_ones_alone",
    "test_toolchains_are_imported_without_noise",
    "test_trains_on_a_folder_and_rendered_scenes",
    "test_trains_what_is_asked_for_and_is_read_back",
    "test_what_is_taken_is_written_and_runs",
    "test_what_needs_no_reference_imports_none",
    "test_what_would_eat_memory_is_refused",
}

Exported = Callable[[Sequence[str]], Path]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Modules that are slow as a whole are not even imported where slow tests are left out."""
    left_out = "not slow" in (config.option.markexpr or "")
    return (left_out and is_slow(collection_path, "")) or None


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in its own
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what needs exported files or a browser and what is slow, which `make check` leaves out;
    and what one worker of pytest-xdist runs: the tests of a module, for its fixtures' sake, unless
    they are marked otherwise; those of all modules that share exported files, or build in the
    checkout and read what was built."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        for name in ("exported", "browser"):
            if name in fixtures:
                item.add_marker(name)
        if is_slow(item.path, getattr(item, "originalname", item.name)):
            item.add_marker("slow")
        shares = {"exported", "built_page", "wheel"} & fixtures
        group = ONE_WORKER if shares else item.path.relative_to(ROOT).as_posix()
        group = SIZED if "sized" in fixtures else group
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(group))
    if items and hasattr(items[0].config, "workerinput"):
        items.sort(key=place_among(items))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are cores where slow tests run: a tenth of their time they wait for
    browsers and for processes that they started."""
    from pocketfocus.run.processes import cores

    return cores() + (not config.option.markexpr)


def place_among(items: Sequence[pytest.Item]) -> Callable[[pytest.Item], int]:
    """Where a test goes: workers take groups in this order, so that no long one is the last."""

    def group(item: pytest.Item) -> str:
        mark = item.get_closest_marker("xdist_group")
        return str(mark.args[0]) if mark else ""

    long = {group(item) for item in items if item.get_closest_marker("slow")}
    return lambda item: (group(item) != ONE_WORKER) + (group(item) not in {*long, ONE_WORKER})


def is_slow(path: Path, function: str) -> bool:
    """Whether `SLOW` has a test, by its module or its own name."""
    return function in SLOW or any(path.match(name) for name in SLOW)


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the checkout."""
    return ROOT


def chromium_path() -> str:
    """Where Chromium is; skips the test where it is not."""
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        pytest.skip("no Chromium found: apt-get install chromium")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium; skipped without one. Not for longer than a module: as long as it runs,
    nothing else can use asyncio."""
    path = chromium_path()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def built_page(root: Path) -> Path:
    """The page's folder after `make web`; skipped without Node.js."""
    if shutil.which("npm") is None:
        pytest.skip("no npm found: apt-get install nodejs npm")
    made = subprocess.run(
        ["make", "web"], cwd=root, capture_output=True, text=True, timeout=900, check=False
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return root / "mobile_harness/web/page/dist"


@pytest.fixture(scope="session")
def small_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random student for 64-pixel photos, `micro` with whole groups of weights."""
    import torch

    from pocketfocus.models.student import PRESETS, RefocusStudent, save_student

    torch.manual_seed(0)
    student = RefocusStudent(**PRESETS["micro"] | {"channels": (16, 32), "head": 32})
    stir(student)
    folder = tmp_path_factory.mktemp("student")
    save_student(student, folder, half=False)
    return folder


@pytest.fixture(scope="session")
def small_reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained reference of the smallest size, in the diffusers layout."""
    import torch

    from pocketfocus.distill.reference.phases import save_reference
    from pocketfocus.distill.reference.presets import SMALLEST, build_reference

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("reference")
    save_reference(build_reference(SMALLEST), folder, {})
    return folder


def change_pictures(student: RefocusStudent) -> None:
    """Random weights in the layers that say what changes, which training starts at zero."""
    from torch import nn

    for layer in (student.network.detail, student.network.gains, student.network.pixels):
        nn.init.normal_(layer.weight, std=0.05)


def stir(student: nn.Module) -> None:
    """Frames and positions that differ clearly: nothing stays zero as training starts it, and what
    reads the position is strong. Few pixels are clamped, and 4 bits keep their gate."""
    from torch import nn

    from pocketfocus.run.constants import FRAMES

    for parameter in student.parameters():
        if parameter.ndim > 1 and parameter.shape[1] == FRAMES:
            nn.init.normal_(parameter, std=0.5)
        elif not parameter.any():
            nn.init.normal_(parameter, std=0.03 if parameter.ndim > 1 else 0.1)


@contextmanager
def one_worker() -> Iterator[None]:
    """Lets all jobs of the host, and files of a reference as they are written, share a process, one
    after another: what each would import takes longer than what it does."""
    from pocketfocus.benchmarks import verify
    from pocketfocus.export import isolated
    from pocketfocus.mobile_harness import host
    from pocketfocus.run.processes import Worker

    with Worker() as worker, pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "run_work", worker.run)
        patch.setattr(isolated, "run_work", worker.run)
        patch.setattr(host, "Worker", lambda: nullcontext(worker))
        patch.setattr(verify, "cores", lambda: 1)
        yield


@pytest.fixture(scope="module")
def one_process() -> Iterator[None]:
    """The tests of a module share `one_worker`."""
    with one_worker():
        yield


def export_here(student: Path, request: Export) -> None:
    """Write files in this process, where tests need the imports anyway."""
    from pocketfocus.export import stage

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "cores", lambda: 1)
        stage.export_run(student, request, log=lambda line: None)


@pytest.fixture(scope="session")
def exported(small_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """exported(names): a run with these files of the small student, such as
    "onnx/student-fp32.onnx"; it is a copy, which the caller may change."""
    from pocketfocus.export.stage import Export
    from pocketfocus.run.manifest import load_manifest, renders

    whole = tmp_path_factory.mktemp("exported")

    def make(names: Sequence[str]) -> Path:
        for target, files in groupby(names, lambda name: name.partition("/")[0]):
            precisions = [Path(name).stem.partition("-")[2] for name in files if not renders(name)]
            export_here(small_student, Export(whole, [target], precisions))
        manifest, out = load_manifest(whole), tmp_path_factory.mktemp("run")
        for name in ("student", *names):
            path, copied = whole / name, out / name
            copied.parent.mkdir(exist_ok=True)
            shutil.copytree(path, copied) if path.is_dir() else shutil.copy2(path, copied)
        artifacts = [artifact for artifact in manifest.artifacts if artifact.name in names]
        assert manifest.render is not None
        rendering = [artifact for artifact in manifest.render.files if artifact.name in names]
        render = replace(manifest.render, files=rendering)
        replace(manifest, artifacts=artifacts, render=render).save(out)
        return out

    return make


@pytest.fixture(scope="session")
def sized(small_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an int8 file of three targets for photos of three sizes, its own and `SIZES`;
    tests must not change it."""
    from pocketfocus.export.stage import Export

    out = tmp_path_factory.mktemp("sized")
    request = Export(out, ["executorch", "coreml", "onnx"], ["int8"], sizes=SIZES)
    export_here(small_student, request)
    return out


@pytest.fixture(scope="session")
def run_dir(exported: Exported) -> Path:
    """A run with every precision of every target whose extra is here; tests must not change it."""
    from pocketfocus.export.stage import path_of
    from pocketfocus.export.targets import TARGETS, get_target, left_out
    from pocketfocus.quantize.recipes import RECIPES

    targets = [get_target(name) for name in TARGETS if name not in left_out()]
    files = [
        (*(path_of(target, recipe) for recipe in RECIPES), path_of(target, target.plain, "render"))
        for target in targets
    ]
    return exported(list(chain(*files)))


@pytest.fixture(scope="session")
def make_run() -> Callable[..., None]:
    """make_run(folder, student, names), names as "onnx/student-fp32.onnx": a run folder without
    exporting anything, placeholders for files and an honest manifest."""
    return _make_run


def _make_run(folder: Path, student: Path, names: Sequence[str]) -> None:
    from pocketfocus.run.files import sha256
    from pocketfocus.run.manifest import Manifest, Rendering, renders

    shutil.copytree(student, folder / "student")
    for name in names:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            path.write_bytes(name.encode() * 100)
    files = [_artifact(name, folder / name) for name in names]
    rendering = [file for file in files if renders(file.name)]
    Manifest(
        (64, 64),
        artifacts=[file for file in files if file not in rendering],
        student_sha256=sha256(folder / "student"),
        render=Rendering((256, 256), (96, 96), files=rendering),
    ).save(folder)


def _artifact(name: str, path: Path) -> Artifact:
    from pocketfocus.run.files import sha256, size_bytes
    from pocketfocus.run.manifest import Artifact

    return Artifact(
        name=name,
        target=name.partition("/")[0],
        precision=Path(name).stem.partition("-")[2],
        sha256=sha256(path),
        bytes=size_bytes(path),
    )
