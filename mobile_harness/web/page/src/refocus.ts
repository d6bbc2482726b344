// The Refocus tab: a photo, its analysis, and the picture at any focus and aperture.
import { find, progress, show, trouble, why } from "./dom";
import { Engine } from "./engine";
import { fitted } from "./fit";
import { glPainter } from "./gl";
import { Painter } from "./paint";
import { averaged, decoded, NoPicture, noted, shownSize, sizeOf } from "./photo";
import { plainPainter } from "./plain";
import { Choice, distance, Fit, Reply, Run, Size } from "./protocol";
import { chosen } from "./settings";
import { View } from "./view";

const STEPS = ["start", "work", "result"] as const;
const TITLES = ["Refocus a photo", "Analysing", "Tap to refocus"];

const MOST_CONTEXTS = 4;  // a phone that takes back so many of WebGL's would take the next

interface Photo { file: File; own: Size; shown: Size; noted?: { position: number; words: string }; small: Float32Array; fit: Fit; by: Choice }
type Known = Extract<Reply, { kind: "analysed" }> & { choice: Choice };

const times = ([height, width]: Size) => `${width} × ${height}`;

export function refocusTab(run: Run): void {
  const hold = find("hold"), slider = find<HTMLInputElement>("focus"), at = find<HTMLInputElement>("at");
  const opening = find<HTMLInputElement>("aperture");
  let painter: Painter | undefined, photo: Photo | undefined, known: Known | undefined;
  let taken = 0, contexts = 0;
  let engine: Engine | undefined, opened = "";
  const view = new View((focus, zoomed) => {
    const words = `${focus.toFixed(1)} · ${distance(focus)}${focus === taken ? " · as taken" : ""}`;
    slider.value = String(focus);
    find("where").textContent = words;
    slider.setAttribute("aria-valuetext", words);
    find("zoom").setAttribute("aria-pressed", String(zoomed));
    find("how").textContent = zoomed
      ? "Pixel by pixel. Drag to look around, hold for the original, tap twice to leave."
      : "Tap where it should be sharp. Drag to rack, hold for the original, tap twice for its pixels.";
  }, restore);

  function go(step: (typeof STEPS)[number]): void {
    for (const name of STEPS) show(name, name === step);
    find("title").textContent = TITLES[STEPS.indexOf(step)];
  }

  function say(words: string, done = 0, total = 0): void {
    find("doing").textContent = words;
    progress(find<HTMLProgressElement>("bar"), done, total);
  }

  async function ready(choice: Choice): Promise<Engine> {
    const key = JSON.stringify([choice.file.sha256, choice.backend, choice.threads]);
    if (engine && !engine.over && opened === key) return engine;
    engine?.close();
    engine = new Engine();
    opened = "";
    await engine.open(choice, (done, total, what) =>
      say(total ? `${what}, ${(total / 2 ** 20).toFixed(1)} MiB` : what, done, total));
    opened = key;
    return engine;
  }

  // Decode a photo at the size that is shown, and hand it to what draws it.
  async function read(file: File, choice: Choice): Promise<Photo> {
    if (!painter || painter.lost) painter = (contexts++ < MOST_CONTEXTS && glPainter()) || plainPainter();
    const own = await sizeOf(file), shown = shownSize(own, painter.mostSide);
    const bitmap = await decoded(file, own, shown);
    const fit = fitted(shown, choice.file.sizes, run.size, run.multiple);
    const small = await averaged(bitmap, fit.size);
    painter.load(bitmap);
    view.open(painter, shown);
    return { file, own, shown, noted: await noted(file), small, fit, by: choice };
  }

  async function take(event: Event): Promise<void> {
    const picker = event.target as HTMLInputElement, file = picker.files?.[0];
    picker.value = "";
    if (!file) return;
    trouble("");
    go("work");
    say("Reading the photo");
    contexts = 0;
    try {
      photo = await read(file, chosen(run));
    } catch (error) {
      go("start");
      trouble(error instanceof NoPicture
        ? `${file.name} is no picture that this browser reads: pick a JPEG or PNG`
        : `${file.name} was not read: ${why(error)}. Close other pages and try again, or pick another photo or a smaller one.`);
      return;
    }
    await analyse(photo.noted?.position ?? null);
  }

  async function analyse(position: number | null): Promise<void> {
    const choice = chosen(run);
    trouble("");
    go("work");
    say("Starting");
    try {
      if (painter!.lost || choice.file.name !== photo!.by.file.name) photo = await read(photo!.file, choice);
      const able = await ready(choice);
      const found = await able.analyse(photo!.small, photo!.fit, position, (done, total, what) => say(what, done, total));
      known = { ...found, choice };
      taken = found.position;
      at.value = String(taken);
      sayAt();
      result();
      view.start(found.focus, found.analysis.size, { focus: taken, aperture: Number(opening.value) });
    } catch (error) {
      engine?.close();
      engine = undefined;
      go("start");
      trouble(`It did not work: ${why(error)}. Try another file or runtime below.`);
    }
  }

  // The phone takes a painter's memory back as it likes, above all from a page in the background.
  async function restore(): Promise<void> {
    const { file, by } = photo!;
    go("work");
    say("Drawing the photo again");
    try {
      photo = await read(file, by);
      result();
    } catch (error) {
      go("start");
      trouble(`${file.name} was not read again: ${why(error)}. Pick it once more.`);
    }
  }

  function result(): void {
    painter!.know(known!.analysis);
    describe(known!);
    go("result");
    slider.focus({ preventScroll: true });
  }

  function describe({ choice, sure, ms }: Known): void {
    const { own, shown, fit, noted: note } = photo!;
    const by = sure !== null ? `by the picture, ${Math.round(100 * sure)} % sure within one step`
      : note?.position === taken ? note.words : "as you said";
    find("taken-words").textContent = `Taken sharp at ${distance(taken)}: ${by}`;
    const less = own[0] === shown[0] && own[1] === shown[1] ? "" : ` The photo has ${times(own)}; this phone shows and saves less.`;
    find("took").textContent = `${times(shown)} pixels, analysed at ${times(fit.size)} in ${ms.toFixed(0)} ms `
      + `(${choice.file.precision}, ${choice.backend}, ${choice.threads} thread${choice.threads > 1 ? "s" : ""}), `
      + `drawn by ${painter!.kind}.${less}`;
  }

  function sayAt(): void {
    const words = `${at.value} · ${distance(Number(at.value))}`;
    find("at-words").textContent = words;
    at.setAttribute("aria-valuetext", words);
  }

  function sayAperture(): void {
    const value = Number(opening.value);
    const words = value === 0 ? "sharp everywhere" : value === 1 ? "as the phone's" : `× ${value.toFixed(2)}`;
    find("opened").textContent = words;
    opening.setAttribute("aria-valuetext", words);
  }

  function compare(on: boolean): void {
    hold.setAttribute("aria-pressed", String(on));
    view.compare(on);
  }

  async function save(): Promise<void> {
    trouble("");
    try {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(await view.save());
      link.download = `refocused-${Number(slider.value).toFixed(1)}.jpg`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    } catch (error) { trouble(`It was not saved: ${why(error)}.`); }
  }

  hold.addEventListener("pointerdown", (event) => { hold.setPointerCapture(event.pointerId); compare(true); });
  for (const end of ["pointerup", "pointercancel", "lostpointercapture", "blur"]) hold.addEventListener(end, () => compare(false));
  const holds = (event: KeyboardEvent) => event.key === " " || event.key === "Enter";
  hold.addEventListener("keydown", (event) => { if (holds(event)) { event.preventDefault(); compare(true); } });
  hold.addEventListener("keyup", (event) => { if (holds(event)) compare(false); });
  hold.addEventListener("contextmenu", (event) => event.preventDefault());

  for (const id of ["take", "pick"]) find(id).addEventListener("change", take);
  find("again").addEventListener("click", () => { trouble(""); go("start"); find("pick").focus({ preventScroll: true }); });
  find("save").addEventListener("click", save);
  find("zoom").addEventListener("click", () => view.toggleZoom());
  find("go").addEventListener("click", () => analyse(Number(at.value)));
  at.addEventListener("input", sayAt);
  slider.addEventListener("input", () => view.focus(Number(slider.value)));
  opening.addEventListener("input", () => { sayAperture(); view.aperture(Number(opening.value)); });
  sayAt();
  sayAperture();
}
