// The picture that is touched: what of it is seen, at which focus and aperture, and what fingers do.
import { find } from "./dom";
import { Look, Painter, Part, whole } from "./paint";
import { FRAMES, Size } from "./protocol";

const MS_PER_FRAME = 90, MS_AT_MOST = 420;
const HOLD_MS = 350, STILL_PX = 8, TAP_MS = 600, TWICE_MS = 350, TWICE_PX = 40;
const TILE = 2048, QUALITY = 0.95;

const still = matchMedia("(prefers-reduced-motion: reduce)");
const inside = (value: number, most: number) => Math.min(most, Math.max(0, value));

export class View {
  private readonly view = find("view");
  private readonly ring = find("ring");
  private painter!: Painter;
  private full: Size = [1, 1];
  private sharp: { focus: Float32Array; size: Size } | undefined;  // where each place is
  private look: Look = { focus: 0, aperture: 1 };
  private original = false;
  private centre: { x: number; y: number } | undefined;  // of the zoomed picture, in the photo's pixels
  private drawing = 0;
  private racking = 0;

  // `told` is called with the focus that is looked for and whether it is zoomed, when they change;
  // `lost` where the painter is, when it should draw.
  constructor(private readonly told: (focus: number, zoomed: boolean) => void, private readonly lost: () => void) {
    this.fingers();
    new ResizeObserver(() => this.redraw()).observe(this.view);
  }

  open(painter: Painter, full: Size): void {
    this.painter = painter;
    this.full = full;
    this.view.querySelector("canvas")?.remove();
    painter.canvas.setAttribute("aria-hidden", "true");
    painter.canvas.addEventListener("webglcontextlost", this.redraw);
    this.view.insertBefore(painter.canvas, this.ring);
    this.view.style.setProperty("--proportion", String(full[1] / full[0]));
    this.zoom();
  }

  // `sharp`: the focus at which each place is.
  start(sharp: Float32Array, size: Size, look: Look): void {
    this.sharp = { focus: sharp, size };
    this.look = { ...look };
    this.focus(look.focus);
  }

  focus(value: number): void {
    cancelAnimationFrame(this.racking);
    this.look.focus = value;
    this.tell(value);
    this.redraw();
  }

  aperture(value: number): void { this.look.aperture = value; this.redraw(); }

  compare(on: boolean): void {
    this.original = on;
    find("badge").textContent = on ? "Original photo" : "";
    this.redraw();
  }

  // Zoom to a point, in the photo's pixels, or out.
  zoom(to?: { x: number; y: number }): void {
    this.centre = to && { ...to };
    this.view.classList.toggle("zoomed", Boolean(to));
    this.tell(this.look.focus);
    this.redraw();
  }

  toggleZoom(): void { this.zoom(this.centre ? undefined : { x: this.full[1] / 2, y: this.full[0] / 2 }); }

  // The image at the photo's size as a JPEG, made of tiles; nothing else is drawn in between.
  async save(): Promise<Blob> {
    const canvas = document.createElement("canvas"), { painter, full: [height, width] } = this;
    canvas.width = width; canvas.height = height;
    const context = canvas.getContext("2d", { alpha: false });
    for (let top = 0; top < height; top += TILE) {
      for (let left = 0; left < width; left += TILE) {
        const across = Math.min(TILE, width - left), down = Math.min(TILE, height - top);
        painter.draw({ left, top, across, down, width: across, height: down }, this.look);
        context?.drawImage(painter.canvas, left, top);
      }
    }
    this.draw();
    const made = await new Promise<Blob | null>((done) => canvas.toBlob(done, "image/jpeg", QUALITY));
    canvas.width = canvas.height = 0;  // Safari keeps its memory otherwise
    if (painter.lost) throw new Error("the phone took the picture's memory back; it is drawn again, and can then be saved");
    if (!made || !context) throw new Error(`this browser makes no picture of ${width} × ${height} pixels`);
    return made;
  }

  private tell(focus: number): void { this.told(focus, Boolean(this.centre)); }

  // As many of the screen's pixels as are redrawn in time, and the page's for each of them.
  private get room(): { size: Size; pixel: number } {
    const area = this.view.getBoundingClientRect(), scale = devicePixelRatio;
    const pixel = Math.max(1, scale * Math.sqrt((area.height * area.width) / this.painter.mostPixels)) / scale;
    return { size: [Math.max(1, Math.floor(area.height / pixel)), Math.max(1, Math.floor(area.width / pixel))], pixel };
  }

  private get part(): Part {
    const room = this.room.size, [height, width] = this.full;
    if (!this.centre) return whole(this.full, room);
    const across = Math.min(room[1], Math.ceil(width / 2)), down = Math.min(room[0], Math.ceil(height / 2));
    const left = Math.round(inside(this.centre.x - across / 2, width - across));
    const top = Math.round(inside(this.centre.y - down / 2, height - down));
    this.centre = { x: left + across / 2, y: top + down / 2 };
    return { left, top, across, down, width: across, height: down };
  }

  private redraw = (): void => {
    cancelAnimationFrame(this.drawing);
    this.drawing = requestAnimationFrame(() => this.draw());
  };

  private draw(): void {
    if (!this.sharp || this.view.clientWidth === 0) return;
    if (this.painter.lost) { this.lost(); return; }
    const { part, room: { size, pixel }, painter: { canvas } } = this;
    canvas.style.width = part.width === size[1] ? `${part.width * pixel}px` : "";  // else enlarged
    canvas.style.height = part.height === size[0] ? `${part.height * pixel}px` : "";
    this.painter.draw(part, this.original ? null : this.look);
  }

  private rack(target: number): void {
    cancelAnimationFrame(this.racking);
    this.tell(target);
    const from = this.look.focus, began = performance.now();
    const lasts = still.matches ? 0 : Math.min(MS_AT_MOST, MS_PER_FRAME * Math.abs(target - from));
    const step = (now: number) => {
      const part = lasts > 0 ? inside((now - began) / lasts, 1) : 1;
      this.look.focus = part === 1 ? target : from + (target - from) * (part * part * (3 - 2 * part));
      this.redraw();
      if (part < 1) this.racking = requestAnimationFrame(step);
    };
    step(began);
  }

  private place(event: PointerEvent): { x: number; y: number } {
    const area = this.view.getBoundingClientRect(), part = this.part;
    return {
      x: part.left + (part.across * (event.clientX - area.left)) / area.width,
      y: part.top + (part.down * (event.clientY - area.top)) / area.height,
    };
  }

  private tapped(event: PointerEvent): void {
    const area = this.view.getBoundingClientRect(), { x, y } = this.place(event);
    this.ring.style.left = `${event.clientX - area.left}px`;
    this.ring.style.top = `${event.clientY - area.top}px`;
    this.ring.classList.remove("seen");
    void this.ring.offsetWidth;  // so that the animation starts anew
    this.ring.classList.add("seen");
    if (!this.sharp) return;
    const [height, width] = this.sharp.size;
    const row = Math.floor(inside((y / this.full[0]) * height, height - 1));
    const column = Math.floor(inside((x / this.full[1]) * width, width - 1));
    this.rack(this.sharp.focus[row * width + column]);
  }

  // One finger: still and short is a tap, twice zooms, still and long shows the original; across
  // racks, or moves what is zoomed.
  private fingers(): void {
    const { view } = this;
    let finger: { x: number; y: number; at: number; look: number; centre?: { x: number; y: number }; timer: number; kind: "tap" | "hold" | "drag" } | undefined;
    let tap = { x: 0, y: 0, at: -TWICE_MS, look: 0 };
    view.addEventListener("pointerdown", (event) => {
      if (!event.isPrimary || event.button !== 0) return;
      view.setPointerCapture(event.pointerId);
      const timer = window.setTimeout(() => {
        if (finger?.kind === "tap") { finger.kind = "hold"; this.compare(true); }
      }, HOLD_MS);
      finger = { x: event.clientX, y: event.clientY, at: event.timeStamp, look: this.look.focus, centre: this.centre, timer, kind: "tap" };
    });
    view.addEventListener("pointermove", (event) => {
      if (!finger || finger.kind === "hold") return;
      const across = event.clientX - finger.x, down = event.clientY - finger.y;
      if (finger.kind === "tap" && Math.hypot(across, down) < STILL_PX) return;
      finger.kind = "drag";
      clearTimeout(finger.timer);
      if (finger.centre) {
        const scale = this.part.across / view.clientWidth;
        this.zoom({ x: finger.centre.x - across * scale, y: finger.centre.y - down * scale });
      } else this.focus(inside(finger.look + ((FRAMES - 1) * across) / view.clientWidth, FRAMES - 1));
    });
    view.addEventListener("pointerup", (event) => {
      if (finger?.kind !== "tap" || event.timeStamp - finger.at >= TAP_MS) return;
      const twice = event.timeStamp - tap.at < TWICE_MS && Math.hypot(event.clientX - tap.x, event.clientY - tap.y) < TWICE_PX;
      if (twice) {
        this.focus(tap.look);
        this.zoom(this.centre ? undefined : this.place(event));
      } else this.tapped(event);
      tap = { x: event.clientX, y: event.clientY, at: twice ? -TWICE_MS : event.timeStamp, look: finger.look };
    });
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
      view.addEventListener(end, () => {
        if (!finger) return;
        clearTimeout(finger.timer);
        if (finger.kind === "hold") this.compare(false);
        finger = undefined;
      });
    }
    view.addEventListener("contextmenu", (event) => event.preventDefault());
  }
}
