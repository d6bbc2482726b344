"""One file in a process of its own: `python -m pocketfocus.export.full.worker JOB.json`.

So a file's peak memory is its own, and all of it is free again when the next one begins. Writes the
file, `check` (one input and what PyTorch makes of it in fp32) and `result`, named in the job.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pocketfocus.export.quiet import quiet
from pocketfocus.run.errors import UserError


def main(path: Path) -> None:
    """Do the job; a mistake of the user's becomes `mistake` in the result."""
    job = json.loads(path.read_text(encoding="utf-8"))
    try:
        with quiet():  # the imports too
            from pocketfocus.export.full.writing import work

            result = work(job)
    except UserError as error:
        result = {"mistake": str(error)}
    Path(job["result"]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
