"""What a browser sends of the files that it measured, and who judges it."""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from pocketfocus.run.results import BenchRow, VerifyRow
from pocketfocus.run.text import printable

MAX_CALLS = 50_000

Text = Annotated[
    str,
    StringConstraints(
        strip_whitespace=True, min_length=1, max_length=80, pattern=r"^[^\x00-\x1f\x7f]*$"
    ),
    AfterValidator(printable),
]
"""What people name their phones; nothing in it turns the lines of a report around."""
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Mebibytes = Annotated[float, Field(gt=0, le=1 << 20, allow_inf_nan=False)]
Milliseconds = Annotated[float, Field(ge=0, le=3_600_000, allow_inf_nan=False)]


class Checked(BaseModel):
    """Nothing unknown, nothing converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Phone(Checked):
    """What the browser tells of where it runs; `memory_gib` is rounded and capped by browsers."""

    name: Text
    os: Text
    browser: Text
    chip: Text | None = None
    cores: Annotated[int, Field(ge=1, le=1024)] | None = None
    memory_gib: Annotated[float, Field(gt=0, le=4096)] | None = None


class Sustained(Checked):
    """Calls without a pause for `seconds`, in order."""

    seconds: Annotated[float, Field(gt=0, le=3600)]
    times_ms: Annotated[list[Milliseconds], Field(min_length=1, max_length=MAX_CALLS)]


class Repeated(Checked):
    """Further calls, all with the same inputs.

    `results` says how often each stack came, by its SHA-256; `grown_mib` by how much the runtime's
    heap grew meanwhile, where it is known.
    """

    results: Annotated[
        dict[Sha256, Annotated[int, Field(ge=1, le=MAX_CALLS)]],
        Field(min_length=1, max_length=MAX_CALLS),
    ]
    finite: bool
    grown_mib: Annotated[float, Field(ge=0, le=1 << 20, allow_inf_nan=False)] | None


class Measurement(Checked):
    """One file measured in one browser: the body of a POST.

    `heap_mib` is the peak of the runtime's WebAssembly heap, `memory_mib` the whole page's as the
    browser tells it.
    """

    artifact: Annotated[str, StringConstraints(max_length=200)]
    sha256: Sha256
    backend: Literal["wasm", "webgpu"]
    threads: Annotated[int, Field(ge=1, le=256)]
    runtime: Text
    phone: Phone
    load_ms: Milliseconds
    first_ms: Milliseconds
    times_ms: Annotated[list[Milliseconds], Field(min_length=1, max_length=MAX_CALLS)]
    sustained: Sustained | None = None
    heap_mib: Mebibytes | None = None
    memory_mib: Mebibytes | None = None
    repeated: Repeated | None = None

    @property
    def device(self) -> str:
        """Return the `device` of its rows: whose it is, and what ran the file there."""
        return f"{self.phone.name}, {self.phone.browser} ({self.backend})"


class Judge(Protocol):
    """Makes rows of what browsers send; safe to call from threads.

    `photo` is the golden photo [1,3,H,W], raw little-endian float32, and `positions` are the focal
    positions at which a browser calls a file with it, and `repeat` how often it does so again at
    the middle one. `take` keeps a measurement as a row of bench.json, `judge` its golden outputs
    (raw float32, a stack a position) as one of verify.json; both raise UserError for another file
    than the one that was served.
    """

    positions: tuple[int, ...]
    repeat: int

    def photo(self) -> bytes: ...

    def take(self, measured: Measurement) -> BenchRow: ...

    def judge(self, measured: Measurement, outputs: bytes) -> VerifyRow: ...
