"""The routes of `pocketfocus serve`, over one run.

`/` and the built page's files; `/api/run`; `/api/files/NAME`; `/api/golden`; and
`POST /api/measurements`, then `POST /api/measurements/ID/outputs`.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from pocketfocus.mobile_harness.web.files import Served, plain_file
from pocketfocus.mobile_harness.web.guard import new_token, refusal
from pocketfocus.mobile_harness.web.measurement import Judge, Measurement
from pocketfocus.mobile_harness.web.patience import body_of
from pocketfocus.run.errors import UserError
from pocketfocus.run.manifest import check_artifact
from pocketfocus.run.results import BenchRow, VerifyRow

JSON_BYTES = 2 * 2**20  # 50,000 times at most
UPLOADS = 8  # at once
JUDGING = 4  # at once, so that files find a thread
MOST_RESULTS = 200  # of one session of `serve`: a page that measures without end fills no disk
WAITING = 64  # measurements whose outputs have not come yet
MEDIA = {".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm"}

T = TypeVar("T")
MakeJudge = Callable[[Served], Judge]


class Api:
    """The routes.

    Args:
        served: the run.
        page: the built page's files.
        make_judge: makes what judges measurements, when the first one comes: it takes seconds.
        judged: is given both rows of a file, of bench.json and verify.json, when they are kept.
    """

    def __init__(
        self,
        served: Served,
        page: Mapping[str, Path],
        make_judge: MakeJudge,
        judged: Callable[[BenchRow, VerifyRow], None] = lambda bench, verify: None,
    ) -> None:
        self.served = served
        self.page = page
        self.judged = judged
        self.waiting: OrderedDict[str, tuple[Measurement, BenchRow]] = OrderedDict()
        self.kept: set[tuple[str, str]] = set()  # files and devices that measured them
        self.uploads = asyncio.Semaphore(UPLOADS)  # stacks are megabytes each
        self.judging = asyncio.Semaphore(JUDGING)
        self._make_judge = make_judge
        self._judge: Judge | None = None
        self._making = threading.Lock()

    def routes(self) -> list[Route]:
        """Return all routes; any other path is 404."""
        return [
            Route("/api/run", self.run),
            Route("/api/files/{name:path}", self.file),
            Route("/api/golden", self.golden),
            Route("/api/measurements", self.measurement, methods=["POST"]),
            Route("/api/measurements/{key}/outputs", self.outputs, methods=["POST"]),
            Route("/{name:path}", self.asset),
        ]

    async def asset(self, request: Request) -> Response:
        """Give a file of the built page."""
        path = self.page.get(request.path_params["name"] or "index.html")
        if path is None or not path.is_file():
            return refusal(404, "no such file")
        return FileResponse(path, media_type=MEDIA.get(path.suffix))

    async def run(self, request: Request) -> Response:
        """Tell what the run holds."""
        return JSONResponse(self.served.describe())

    async def file(self, request: Request) -> Response:
        """Give an ONNX file that the manifest lists, as long as it is the one that was written."""
        name = request.path_params["name"]
        artifact = self.served.artifacts.get(name)
        path = plain_file(self.served.folder, name)
        if artifact is None or path is None:
            return refusal(404, "the manifest lists no such file")
        try:
            await run_in_threadpool(check_artifact, self.served.folder, artifact)
        except UserError:
            return refusal(409, f"{name} has changed since it was written: run export again")
        return FileResponse(path, media_type="application/octet-stream")

    async def golden(self, request: Request) -> Response:
        """Give the golden photo, raw float32; headers say its positions, and how often to repeat
        the call."""
        raw = await self.judged_by(lambda judge: judge.photo())
        judge = self.judge()
        positions = ",".join(map(str, judge.positions))
        headers = {"X-Positions": positions, "X-Repeat": str(judge.repeat)}
        return Response(raw, media_type="application/octet-stream", headers=headers)

    async def measurement(self, request: Request) -> Response:
        """Take times, answer with the row and where the outputs go."""
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            return refusal(415, "a measurement is application/json")
        body = await body_of(request, JSON_BYTES)
        if body is None:
            return refusal(413, f"a measurement has at most {JSON_BYTES} bytes")
        try:
            measured = Measurement.model_validate_json(body)
        except ValidationError as error:
            first = error.errors()[0]
            status = 400 if first["type"] == "json_invalid" else 422
            where = ".".join(map(str, first["loc"]))
            return refusal(status, f"{where or 'body'}: {first['msg']}")
        place = measured.artifact, measured.device
        if place not in self.kept and len(self.kept) >= MOST_RESULTS:
            return refusal(429, f"{MOST_RESULTS} results were taken: start `serve` again for more")
        row = await self.judged_by(lambda judge: judge.take(measured))
        self.kept.add(place)
        key = new_token()
        self.waiting[key] = measured.model_copy(update={"times_ms": [], "sustained": None}), row
        while len(self.waiting) > WAITING:
            self.waiting.popitem(last=False)
        return JSONResponse({"id": key, "row": row.as_json()}, 201)

    async def outputs(self, request: Request) -> Response:
        """Take the golden outputs of a measurement, answer with the verdict."""
        key = request.path_params["key"]
        if key not in self.waiting:
            return refusal(404, "no such measurement waits for outputs")
        if request.headers.get("content-type") != "application/octet-stream":
            return refusal(415, "outputs are application/octet-stream")
        size = len(self.judge().positions) * self.served.stack_bytes
        async with self.uploads:
            body = await body_of(request, size)
            if body is None:
                return refusal(413, f"outputs have {size} bytes")
            if len(body) != size:
                return refusal(422, f"outputs have {size} bytes, {len(body)} came")
            found = self.waiting.pop(key, None)
            if found is None:
                return refusal(404, "no such measurement waits for outputs")
            measured, times = found
            row = await self.judged_by(lambda judge: judge.judge(measured, body))
        self.judged(times, row)
        return JSONResponse({"row": row.as_json()}, 201)

    async def judged_by(self, what: Callable[[Judge], T]) -> T:
        """Return what the judge says, in a thread; its UserError is an answer, see `make_app`."""
        async with self.judging:
            return await run_in_threadpool(lambda: what(self.judge()))

    def judge(self) -> Judge:
        """Return what judges; it is made once."""
        with self._making:
            if self._judge is None:
                self._judge = self._make_judge(self.served)
            return self._judge
