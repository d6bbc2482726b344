// The Refocus tab: photo, focal position, nine frames, and the picture that is touched.
import { find, progress, show, trouble, why } from "./dom";
import { Engine } from "./engine";
import { drawFrame, fitted, guess, toTensor } from "./photo";
import { Choice, distance, FRAMES, Run } from "./protocol";
import { chosen } from "./settings";

const MS_PER_FRAME = 90, MS_AT_MOST = 420;
const HOLD_MS = 350, STILL_PX = 8, TAP_MS = 600;

const STEPS = ["start", "ask", "work", "result"] as const;
const TITLES = ["Refocus a photo", "Where is it sharp?", "Refocusing", "Tap to refocus"];
const still = matchMedia("(prefers-reduced-motion: reduce)");

export function refocusTab(run: Run): void {
  const [height, width] = run.size;
  const view = find("view"), ring = find("ring"), hold = find("hold");
  const slider = find<HTMLInputElement>("focus"), at = find<HTMLInputElement>("at");
  const frames = Array.from({ length: FRAMES }, () => layer("frame"));
  const original = layer("original");
  view.style.aspectRatio = `${width} / ${height}`;
  let photo: Blob | undefined, input = 0, best: Uint8Array | undefined;
  let shown = 0, racking = 0;
  let engine: Engine | undefined, opened = "";

  function layer(kind: string): HTMLCanvasElement {
    const canvas = document.createElement("canvas");
    canvas.width = width; canvas.height = height;
    canvas.className = kind;
    canvas.setAttribute("aria-hidden", "true");
    view.insertBefore(canvas, ring);
    return canvas;
  }

  function go(step: (typeof STEPS)[number]): void {
    for (const name of STEPS) show(name, name === step);
    find("title").textContent = TITLES[STEPS.indexOf(step)];
  }

  async function take(event: Event): Promise<void> {
    const picker = event.target as HTMLInputElement, file = picker.files?.[0];
    picker.value = "";
    if (!file) return;
    trouble("");
    try {
      const cut = await fitted(file, height, width);
      const preview = find<HTMLCanvasElement>("preview");
      preview.width = width; preview.height = height;
      preview.getContext("2d", { willReadFrequently: true })!.drawImage(cut, 0, 0);
    } catch {
      trouble(`${file.name} is no picture that this browser reads: pick a JPEG or PNG`);
      return;
    }
    photo = file;
    find("guessed").textContent = "";
    sayAt();
    go("ask");
    at.focus({ preventScroll: true });
  }

  function sayAt(): void {
    const words = `${at.value} · ${distance(Number(at.value))}`;
    find("at-words").textContent = words;
    at.setAttribute("aria-valuetext", words);
  }

  async function ready(choice: Choice): Promise<Engine> {
    const key = JSON.stringify([choice.file.sha256, choice.backend, choice.threads]);
    if (engine && opened === key) return engine;
    engine?.close();
    engine = new Engine();
    opened = "";
    await engine.open(choice, (done, total, what) => {
      find("doing").textContent = total ? `${what}, ${(total / 2 ** 20).toFixed(1)} MiB` : what;
      progress(find<HTMLProgressElement>("bar"), done, total);
    });
    opened = key;
    return engine;
  }

  async function compute(): Promise<void> {
    trouble("");
    const choice = chosen(run);
    input = Number(at.value);
    go("work");
    find("doing").textContent = "Starting";
    progress(find<HTMLProgressElement>("bar"), 0, 0);
    try {
      const able = await ready(choice);
      find("doing").textContent = "Computing nine frames";
      progress(find<HTMLProgressElement>("bar"), 0, 0);
      const preview = find<HTMLCanvasElement>("preview");
      const { stack, ms } = await able.call(toTensor(preview), input, run.size);
      frames.forEach((canvas, i) => drawFrame(canvas, stack, i));
      original.getContext("2d")!.drawImage(preview, 0, 0);
      best = (await able.focus(stack, run.size)).best;
      find("took").textContent =
        `${choice.file.precision}, ${choice.backend}, ${choice.threads} thread${choice.threads > 1 ? "s" : ""}: ${ms.toFixed(0)} ms`;
    } catch (error) {
      engine?.close();
      engine = undefined;
      go("ask");
      trouble(`It did not work: ${why(error)}. Try another file or runtime below.`);
      return;
    }
    go("result");
    draw(input);
    rack(input);
    slider.focus({ preventScroll: true });
  }

  // Frames lie on each other, near below far: the nearer one of two is opaque, the next fades in.
  function draw(position: number): void {
    shown = position;
    const below = Math.floor(position);
    frames.forEach((frame, i) => {
      frame.style.opacity = i === below ? "1" : i === below + 1 ? String(position - below) : "0";
    });
    view.dataset.frame = String(Math.round(position));
  }

  function say(position: number): void {
    const words = `${position} · ${distance(position)}${position === input ? " · as taken" : ""}`;
    slider.value = String(position);
    find("where").textContent = words;
    slider.setAttribute("aria-valuetext", words);
  }

  function rack(target: number): void {
    cancelAnimationFrame(racking);
    say(target);
    const from = shown, began = performance.now();
    const lasts = still.matches ? 0 : Math.min(MS_AT_MOST, MS_PER_FRAME * Math.abs(target - from));
    const step = (now: number) => {
      const part = lasts > 0 ? Math.min(1, Math.max(0, now - began) / lasts) : 1;
      draw(part === 1 ? target : from + (target - from) * (part * part * (3 - 2 * part)));
      if (part < 1) racking = requestAnimationFrame(step);
    };
    step(began);
  }

  function showOriginal(on: boolean): void {
    hold.setAttribute("aria-pressed", String(on));
    view.classList.toggle("original", on);
    find("badge").textContent = on ? "Original photo" : "";
  }

  function tapped(event: PointerEvent): void {
    const area = view.getBoundingClientRect();
    const x = (event.clientX - area.left) / area.width, y = (event.clientY - area.top) / area.height;
    ring.style.left = `${100 * x}%`;
    ring.style.top = `${100 * y}%`;
    ring.classList.remove("seen");
    void ring.offsetWidth;  // so that the animation starts anew
    ring.classList.add("seen");
    const column = Math.min(width - 1, Math.max(0, Math.floor(x * width)));
    const row = Math.min(height - 1, Math.max(0, Math.floor(y * height)));
    if (best) rack(best[row * width + column]);
  }

  // One finger: still and short is a tap, still and long shows the original, across racks.
  let finger: { x: number; y: number; at: number; from: number; timer: number; kind: "tap" | "hold" | "drag" } | undefined;
  view.addEventListener("pointerdown", (event) => {
    if (!event.isPrimary || event.button !== 0) return;
    view.setPointerCapture(event.pointerId);
    const timer = window.setTimeout(() => {
      if (finger?.kind === "tap") { finger.kind = "hold"; showOriginal(true); }
    }, HOLD_MS);
    finger = { x: event.clientX, y: event.clientY, at: event.timeStamp, from: shown, timer, kind: "tap" };
  });
  view.addEventListener("pointermove", (event) => {
    if (!finger || finger.kind === "hold") return;
    const across = event.clientX - finger.x;
    if (finger.kind === "tap" && Math.hypot(across, event.clientY - finger.y) < STILL_PX) return;
    finger.kind = "drag";
    clearTimeout(finger.timer);
    cancelAnimationFrame(racking);
    const position = finger.from + (FRAMES - 1) * across / view.clientWidth;
    draw(Math.min(FRAMES - 1, Math.max(0, position)));
    say(Math.round(shown));
  });
  view.addEventListener("pointerup", (event) => {
    if (finger?.kind === "tap" && event.timeStamp - finger.at < TAP_MS) tapped(event);
  });
  for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
    view.addEventListener(end, () => {
      if (!finger) return;
      clearTimeout(finger.timer);
      if (finger.kind === "hold") showOriginal(false);
      if (finger.kind === "drag") rack(Math.round(shown));
      finger = undefined;
    });
  }
  view.addEventListener("contextmenu", (event) => event.preventDefault());

  hold.addEventListener("pointerdown", (event) => { hold.setPointerCapture(event.pointerId); showOriginal(true); });
  for (const end of ["pointerup", "pointercancel", "lostpointercapture", "blur"]) {
    hold.addEventListener(end, () => showOriginal(false));
  }
  const holds = (event: KeyboardEvent) => event.key === " " || event.key === "Enter";
  hold.addEventListener("keydown", (event) => { if (holds(event)) { event.preventDefault(); showOriginal(true); } });
  hold.addEventListener("keyup", (event) => { if (holds(event)) showOriginal(false); });
  hold.addEventListener("contextmenu", (event) => event.preventDefault());

  find("save").addEventListener("click", () => {
    const position = Number(slider.value);
    frames[position].toBlob((blob) => {
      if (!blob) return;
      const link = document.createElement("a");
      link.href = URL.createObjectURL(blob);
      link.download = `refocused-${position}.png`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    }, "image/png");
  });
  find("guess").addEventListener("click", async () => {
    if (!photo) return;
    const { position, why: reason } = await guess(photo);
    at.value = String(position);
    sayAt();
    find("guessed").textContent = `${distance(position)}: ${reason}.`;
  });
  for (const id of ["take", "pick"]) find(id).addEventListener("change", take);
  for (const id of ["back", "again"]) {
    find(id).addEventListener("click", () => { trouble(""); go("start"); find("pick").focus({ preventScroll: true }); });
  }
  at.addEventListener("input", sayAt);
  find("go").addEventListener("click", compute);
  slider.addEventListener("input", () => rack(Number(slider.value)));
  sayAt();
}
