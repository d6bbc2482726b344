"""The learning curve: points from an evaluation, and a line through them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketfocus.benchmarks.evaluation import Means
from pocketfocus.research.learning_curve import main
from pocketfocus.run.rows import write_rows


def means(model: str, gain: float | None) -> Means:
    return Means(
        model=model,
        stacks="real",
        mean_psnr_db=30.0,
        mean_ssim=0.9,
        mean_psnr_db_off_diagonal=30.0,
        mean_ssim_off_diagonal=0.9,
        psnr_db_by_distance={},
        scenes=9,
        gain_db=gain,
        gain_error_db=0.1,
    )


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    """Half a dB for every factor of ten."""
    gains = {"copy": None, "a": 1.0, "b": 1.5, "c": 2.0, "odd": 2.6}
    path = tmp_path / "evaluate.json"
    write_rows(path, [means(model, gain) for model, gain in gains.items()])
    return path


def test_the_line_goes_through_points_on_a_line_and_says_what_ten_times_as_much_brings(
    evaluation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(evaluation), str(tmp_path / "curve.png"), "1000=c", "10=a", "100=b"])
    printed = capsys.readouterr().out
    assert "| 10000 | – | +2.50 |" in printed
    assert "+0.50 ± 0.00 dB a factor of ten" in printed
    assert printed.index("| 10 |") < printed.index("| 100 |") < printed.index("| 1000 |")
    with Image.open(tmp_path / "curve.png", formats=("PNG",)) as picture:
        red, _, blue = np.moveaxis(np.asarray(picture.convert("RGB"), np.int64), -1, 0)
    assert (blue > 2 * red).any()  # points, beside the grey line


def test_a_point_beside_the_line_gives_it_an_error(
    evaluation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(evaluation), str(tmp_path / "curve.png"), "10=a", "100=b", "1000=odd"])
    assert "+0.80 ± 0.17 dB a factor of ten" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (["ten=a", "100=b", "1000=c"], "write MEGAPIXELS=MODEL"),
        (["0=a", "100=b", "1000=c"], "write MEGAPIXELS=MODEL"),
        (["10=d", "100=b", "1000=c"], "has no gain of d, but of copy, a, b, c, odd"),
        (["10=copy", "100=b", "1000=c"], "has no gain of copy"),
        (["10=a", "10=b", "1000=c"], "a line needs 3 different amounts"),
    ],
)
def test_what_does_not_fit_is_one_line(
    seen: list[str], said: str, evaluation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(evaluation), str(tmp_path / "curve.png"), *seen])
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert said in printed.out + printed.err
    assert not (tmp_path / "curve.png").exists()
