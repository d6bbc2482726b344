"""Every command of docs/README.md, with a small student in the place of the user's own."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

from pocketfocus.cli.app import main
from pocketfocus.data.scenes import held_out_photos
from pocketfocus.photos.images import encoded
from tests.conftest import one_worker
from tests.house.source import ROOT, product

PAGE = ROOT / "docs/README.md"
PHONES = {"android", "iphone"}


@pytest.fixture(scope="module")
def place(small_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user's: a photo, a student, and room for runs."""
    folder = tmp_path_factory.mktemp("user")
    image = Image.fromarray(held_out_photos()[0])
    (folder / "photo.jpg").write_bytes(encoded(image, "jpeg"))
    shutil.copytree(small_student, folder / "my/student")
    return folder


@pytest.mark.timeout(900)
def test_every_command_runs_in_the_order_of_the_page(
    place: Path,
    built_page: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    shown = [words for words in blocks() if words[:1] == ["pocketfocus"]]
    assert len(shown) > 12
    with one_worker():
        for words in shown:
            if words[1] == "compare":  # two runs are there by then
                shutil.copytree("build/mine", "build/before")
            code = main(words[1:])
            said = capsys.readouterr()
            if PHONES & {*words}:
                assert code == 2, shlex.join(words)
                assert said.err.splitlines()[-1].startswith("pocketfocus: error: ")
            else:
                assert code == 0, f"{shlex.join(words)}: {said.err}"


def blocks() -> list[list[str]]:
    """Command lines of the page's blocks of shell, without comments."""
    text = PAGE.read_text(encoding="utf-8").split("```")
    lines = [line for block in text[1::2] for line in block.splitlines()[1:]]
    return [shlex.split(line, comments=True) for line in lines]


def test_errors_that_are_explained_are_in_the_sources() -> None:
    """Else the page tells of what no command says any more."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    texts = [line.split("`")[1] for line in lines if line.startswith("| `")]
    assert len(texts) >= 6
    sources = " ".join(module.text for module in product())
    joined = sources.replace('"\n', "").replace("  ", "")
    for text in texts:
        if not text.startswith("exit code"):
            assert text in sources or text in joined, text
