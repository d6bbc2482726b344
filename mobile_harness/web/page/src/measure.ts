// The Measure tab: every figure as it was clocked; percentiles and verdicts are the host's.
import { find, progress, show, trouble, why } from "./dom";
import { Engine } from "./engine";
import { examine, memoryMib, Phone } from "./phone";
import { Choice, FRAMES, Run, sha256 } from "./protocol";
import { chosen } from "./settings";

declare const RUNTIME_VERSION: string;

const WARMUP = 3, MOST_CALLS = 50_000;

interface Row { [name: string]: string | number | null | { [name: string]: number | null } }

export function measureTab(run: Run): void {
  let engine: Engine | undefined, stop = new AbortController();
  let about: Phone | undefined;
  const name = find<HTMLInputElement>("phone");
  void examine().then((phone) => { about = phone; name.value ||= phone.name; });

  function say(words: string, done = 0, total = 0): void {
    find("measuring").textContent = words;
    progress(find<HTMLProgressElement>("measured"), done, total);
  }

  async function start(choices: Choice[]): Promise<void> {
    trouble("");
    if (!name.value.trim()) { trouble("Give this phone a name first, so that its rows can be told from others."); name.focus(); return; }
    stop = new AbortController();
    const { signal } = stop;
    running(true);
    const awake = await (navigator as { wakeLock?: { request(kind: string): Promise<{ release(): Promise<void> }> } })
      .wakeLock?.request("screen").catch(() => undefined);
    try {
      for (const choice of choices) await one(choice, signal);
      say("Done: the rows are in the run's bench.json and verify.json.");
    } catch (error) {
      say(signal.aborted ? "Stopped." : "");
      if (!signal.aborted) trouble(`It did not work: ${why(error)}.`);
    } finally {
      engine?.close();
      engine = undefined;
      running(false);
      await awake?.release().catch(() => undefined);
    }
  }

  function running(on: boolean): void {
    show("measured", on);
    show("stop", on);
    for (const id of ["begin", "all"]) show(id, !on);
  }

  // An engine and a request that are under way end with the signal; before others it is looked at.
  async function one(choice: Choice, signal: AbortSignal): Promise<void> {
    const label = choice.file.name;
    signal.throwIfAborted();
    say(`${label}: golden inputs`);
    const { photo, positions, repeat } = await golden(run, signal);
    signal.throwIfAborted();
    const middle = positions[1 % positions.length];
    engine = new Engine();
    const used = engine;
    const { loadMs, threads } = await used.open(choice, (done, total, what) => say(`${label}: ${what.toLowerCase()}`, done, total));
    const call = async () => (await used.call(photo, middle, run.size)).ms;

    say(`${label}: first call`);
    const first = await call();
    for (let i = 0; i < WARMUP; i++) await call();
    const runs = Math.min(1000, Math.max(1, Math.round(Number(find<HTMLInputElement>("runs").value)) || 1));
    const times: number[] = [];
    while (times.length < runs) {
      times.push(await call());
      say(`${label}: ${times.length} of ${runs} calls`, times.length, runs);
    }
    const sustained = await sustain(label, call);
    say(`${label}: asking the browser for its memory, up to 25 s`);
    const memory = await Promise.race([memoryMib(), aborted(signal)]);
    say(`${label}: golden outputs`);
    const stacks: Float32Array[] = [];
    let heap = 0;
    for (const position of positions) {
      const { stack, heapBytes } = await used.call(photo, position, run.size);
      stacks.push(stack);
      heap = heapBytes;
    }
    const results: { [hash: string]: number } = {};
    let finite = true, most = heap;
    for (let n = 0; n < repeat; n++) {
      say(`${label}: ${n} of ${repeat} further calls`, n, repeat);
      const { stack, heapBytes } = await used.call(photo, middle, run.size);
      const hash = await sha256(stack as Float32Array<ArrayBuffer>);
      results[hash] = (results[hash] ?? 0) + 1;
      finite &&= stack.every(Number.isFinite);
      most = heapBytes;
    }
    used.close();
    signal.throwIfAborted();

    say(`${label}: sending`);
    const round = (ms: number) => Math.round(100 * ms) / 100;
    const phone = { ...(about ?? (await examine())), name: name.value.trim() };
    const sent = await post(signal, "api/measurements", "application/json", JSON.stringify({
      artifact: label, sha256: choice.file.sha256, backend: choice.backend, threads,
      runtime: `onnxruntime-web ${RUNTIME_VERSION}`, phone,
      load_ms: round(loadMs), first_ms: round(first), times_ms: times.map(round),
      sustained: sustained && { seconds: sustained.seconds, times_ms: sustained.times.map(round) },
      heap_mib: heap ? Math.round(10 * heap / 2 ** 20) / 10 : null,
      memory_mib: memory && Math.round(10 * memory) / 10,
      repeated: repeat ? { results, finite, grown_mib: heap ? (most - heap) / 2 ** 20 : null } : null,
    }));
    const judged = await post(signal, `api/measurements/${sent.id}/outputs`, "application/octet-stream", new Blob(stacks as BlobPart[]));
    card(sent.row, judged.row);
  }

  async function sustain(label: string, call: () => Promise<number>) {
    const seconds = Number(find<HTMLSelectElement>("sustain").value);
    if (!seconds) return null;
    const times: number[] = [], began = performance.now();
    for (let gone = 0; gone < seconds && times.length < MOST_CALLS; gone = (performance.now() - began) / 1000) {
      times.push(await call());
      say(`${label}: ${Math.floor(gone)} of ${seconds} s without a pause, ${times[times.length - 1].toFixed(0)} ms`, gone, seconds);
    }
    return { seconds, times };
  }

  find("begin").addEventListener("click", () => start([chosen(run)]));
  find("all").addEventListener("click", () => start(run.files.map((file) => ({ ...chosen(run), file }))));
  find("stop").addEventListener("click", () => { stop.abort(); engine?.close(); });
}

function aborted(signal: AbortSignal): Promise<never> {
  return new Promise((_, stop) => signal.addEventListener("abort", () => stop(signal.reason)));
}

async function golden(run: Run, signal: AbortSignal): Promise<{ photo: Float32Array; positions: number[]; repeat: number }> {
  const response = await fetch("api/golden", { signal });
  if (!response.ok) throw new Error(`the host gives no golden inputs (${response.status})`);
  const photo = new Float32Array(await response.arrayBuffer());
  const positions = (response.headers.get("X-Positions") ?? "").split(",").map(Number);
  if (photo.length !== 3 * run.size[0] * run.size[1] || positions.some((p) => !(p >= 0 && p < FRAMES))) {
    throw new Error("the golden inputs do not fit the file");
  }
  return { photo, positions, repeat: Number(response.headers.get("X-Repeat") ?? 0) };
}

async function post(signal: AbortSignal, path: string, type: string, body: string | Blob): Promise<{ id: string; row: Row }> {
  let response: Response;
  try {
    response = await fetch(path, { method: "POST", headers: { "Content-Type": type }, body, signal });
  } catch { throw new Error("the host cannot be reached, so nothing was kept"); }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error ?? `the host refused (${response.status})`);
  return answer;
}

function card(bench: Row, verify: Row): void {
  const box = document.createElement("div");
  box.className = "row";
  const heading = document.createElement("h2");
  heading.textContent = `${bench.artifact}, ${bench.device}`;
  const list = document.createElement("dl");
  const line = (term: string, words: string, kind = "") => {
    const dt = document.createElement("dt"), dd = document.createElement("dd");
    dt.textContent = term;
    dd.textContent = words;
    dd.className = kind;
    list.append(dt, dd);
  };
  const figure = (value: Row[string], unit: string) => (typeof value === "number" ? `${value.toFixed(1)} ${unit}` : "not told");
  for (const [term, key] of [["load", "load_ms"], ["first call", "first_ms"], ["p50", "p50_ms"], ["p90", "p90_ms"], ["p99", "p99_ms"]]) {
    line(term, figure(bench[key], "ms"));
  }
  line("calls", String(bench.runs));
  line("threads", String(bench.threads));
  line("peak of the runtime's heap", figure(bench.heap_mib, "MiB"));
  line("whole page, by the browser", figure(bench.browser_memory_mib, "MiB"));
  const sustained = bench.sustained as { [name: string]: number } | null;
  if (sustained) {
    line(`${sustained.seconds} s without a pause`,
      `${sustained.first_p50_ms.toFixed(1)} → ${sustained.last_p50_ms.toFixed(1)} ms (×${(sustained.slower ?? 1).toFixed(2)})`);
  }
  line("parity", `${figure(verify.psnr_db, "dB")}, ${verify.threshold_db} needed: ${verify.status}`, String(verify.status));
  if (verify.why) line("", String(verify.why));
  box.append(heading, list);
  find("results").prepend(box);
}
