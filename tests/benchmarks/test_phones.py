"""The verdicts: limits decide, and nothing is claimed where a figure is missing."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlparse

import pytest

from pocketfocus.benchmarks.phones import (
    MIB,
    Phone,
    fits,
    kinds,
    markdown_table,
    phones,
    verdict,
)
from pocketfocus.run.results import BenchRow
from tests.benchmarks.rows import bench_row

SOURCES = ("available", "https://example.org", "press", "https://example.org")
IPHONE = Phone("an iPhone", "A0", 4000, 2000, 2400, *SOURCES)
ANDROID = Phone("an Android phone", "T0", 8000, None, None, *SOURCES)


@pytest.mark.parametrize(
    ("phone", "file_mib", "peak", "expected"),
    [
        (IPHONE, 3, 300.0, "fits"),
        (IPHONE, 3, 1400.0, "fits"),
        (IPHONE, 3, 1401.0, "tight"),
        (IPHONE, 3, 2000.0, "tight"),
        (IPHONE, 3, 2000.1, "will be killed"),
        (IPHONE, 3, None, "not known"),
        (IPHONE, 2001, None, "will be killed"),
        (ANDROID, 3, 7999.0, "not known"),
        (ANDROID, 3, 8001.0, "will be killed"),
    ],
)
def test_a_verdict_follows_the_limit(
    phone: Phone, file_mib: int, peak: float | None, expected: str
) -> None:
    assert verdict(phone, file_mib * MIB, peak) == expected


def test_every_phone_of_the_table_has_a_source_and_limits_below_its_memory() -> None:
    table = phones()
    assert len({phone.name for phone in table}) == len(table) > 3
    for phone in table:
        assert urlparse(phone.source).scheme == urlparse(phone.ram_source).scheme == "https"
        assert {phone.kind, phone.ram_kind} <= kinds().keys()
        if phone.limit_mib:
            assert phone.kind in ("kill message", "available", "author"), "a limit, not a brochure"
        assert (phone.limit_mib or 0) <= (phone.entitled_mib or phone.ram_mib) <= phone.ram_mib


def test_the_documents_show_the_table(root: Path) -> None:
    text = (root / "docs/phones.md").read_text(encoding="utf-8")
    assert markdown_table() in text
    for kind, meaning in kinds().items():
        assert f"*{kind}*: {meaning}" in " ".join(text.split())


def test_the_largest_measured_peak_of_a_file_decides() -> None:
    def row(device: str, peak: float | None, target: str = "executorch") -> BenchRow:
        return bench_row(target=target, bytes=MIB, device=device, peak_rss_mib=peak)

    (found,) = fits([row("host", None), row("phone", 5000.0), row("mac", 9.0)])
    assert (found.device, found.peak_mib) == ("phone", 5000.0)
    assert found.verdicts["iPhone 15 Pro"] == "will be killed"
    assert fits([row("host", 5.0, "pytorch")]) == []
