from dataclasses import replace
from pathlib import Path

import pytest

from pocketfocus.distill.student import plan
from pocketfocus.distill.student.options import REFERENCE, Distillation
from pocketfocus.models.places import Places
from pocketfocus.run.errors import UserError


def test_references_that_differ_on_the_hub_alone_have_keys_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One base's teacher stacks once served the other."""
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}", encoding="utf-8")
    options = Distillation(learn_from=REFERENCE)
    keys = []
    for base in ("owner/svd", "owner/svd-xt"):
        places = Places(base, (str(tmp_path), "unet"), "tuned")
        monkeypatch.setattr(plan, "find_places", lambda _, found=places: found)
        keys.append(plan.make_plan(replace(options, reference=f"{tmp_path}+{base}")).key)
    assert keys[0] != keys[1]


@pytest.mark.parametrize("method", ["consistency", "prior"])
def test_rounding_is_refused_where_nothing_learns_through_it(method: str) -> None:
    """`prior` once took `--qat` and did without."""
    with pytest.raises(UserError, match=f"{method} trains no student that --qat could round"):
        plan.make_plan(Distillation(method=method, qat="int8"))
