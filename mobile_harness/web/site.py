"""The phone's page with a run's files as a static site, which any host of files serves.

Such a host takes no measurements, and most send none of the headers that give a page its threads:
the page's service worker adds them, and `_headers` says them to hosts that read it.
"""

from __future__ import annotations

import json
from pathlib import Path

from pocketfocus.mobile_harness.web.files import load_served, page_files
from pocketfocus.mobile_harness.web.guard import CSP, HEADERS
from pocketfocus.run.files import check_replaceable, copy, write_atomic
from pocketfocus.run.manifest import check_artifact
from pocketfocus.run.paths import below

RUN = "api/run"
CHARSET = '<meta charset="utf-8">'
HEADERS_ALONE = "frame-ancestors"  # a directive that a page cannot give itself


def write_site(folder: Path, out: Path) -> Path:
    """Write a run's site, atomically, and return its page.

    UserError where the run has no ONNX student or the page is not built, and for a folder that
    holds something else.
    """
    served, page = load_served(folder), page_files()
    check_replaceable(out, (RUN,), "--site")
    with write_atomic(out) as scratch:
        for name, path in page.items():
            copy(path, scratch / name)
        for name, artifact in served.artifacts.items():
            copy(check_artifact(folder, artifact), below(scratch / "api/files", name))
        index = page["index.html"].read_text(encoding="utf-8")
        (scratch / "index.html").write_text(guarded(index), encoding="utf-8")
        described = served.describe() | {"measures": False}
        (scratch / RUN).write_text(json.dumps(described), encoding="utf-8")
        headers = "".join(f"  {name}: {value}\n" for name, value in HEADERS.items())
        (scratch / "_headers").write_text(f"/*\n{headers}", encoding="utf-8")
        (scratch / ".nojekyll").touch()  # GitHub Pages else leaves out what begins with _
    return out / "index.html"


def guarded(page: str) -> str:
    """Return the page with the policy that `serve` sends as a header."""
    rules = (rule for rule in CSP.split("; ") if not rule.startswith(HEADERS_ALONE))
    policy = f'<meta http-equiv="Content-Security-Policy" content="{"; ".join(rules)}">'
    return page.replace(CHARSET, f"{CHARSET}\n{policy}", 1)
