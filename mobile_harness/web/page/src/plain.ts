// Images drawn by the processor, where a browser has no WebGL2: the same, of fewer pixels at a time.
import { Painter, Part, resize, sumOf } from "./paint";
import { Analysis, Size } from "./protocol";

const MOST_SIDE = 8192, MOST_PIXELS = 400_000;

export function plainPainter(): Painter {
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d", { alpha: false, willReadFrequently: true })!;
  let photo: ImageBitmap | undefined, analysis: Analysis | undefined;
  let read = "", seen: Uint8ClampedArray, made: ImageData;

  // The photo's own pixels of a part, kept while focus and aperture change.
  function look(part: Part): void {
    const key = JSON.stringify(part);
    if (key === read) return;
    resize(canvas, part);
    context.fillStyle = "#fff";
    context.fillRect(0, 0, part.width, part.height);
    context.imageSmoothingQuality = "high";
    context.drawImage(photo!, part.left, part.top, part.across, part.down, 0, 0, part.width, part.height);
    made = context.getImageData(0, 0, part.width, part.height);
    seen = made.data.slice();
    read = key;
  }

  return {
    kind: "Canvas2D", canvas, mostSide: MOST_SIDE, mostPixels: MOST_PIXELS, lost: false,
    load(bitmap) {
      photo?.close();
      photo = bitmap;
      read = "";
    },
    know(known) { analysis = known; },
    draw(part, wanted) {
      look(part);
      if (wanted) render(seen, made.data, part, [photo!.height, photo!.width], summed(analysis!, sumOf(wanted)), analysis!.size);
      else made.data.set(seen);
      context.putImageData(made, 0, 0);
    },
  };
}

function summed({ layers, size }: Analysis, sum: ReturnType<typeof sumOf>): Float32Array {
  const length = 4 * size[0] * size[1], out = new Float32Array(length);
  sum.layers.forEach((layer, i) => {
    const weight = sum.weights[i], from = layer * length;
    if (weight !== 0) for (let k = 0; k < length; k++) out[k] += weight * layers[from + k];
  });
  return out;
}

// Which two of `count` values each of `target` places takes from, and how much of the second.
function taps(start: number, extent: number, full: number, count: number, target: number) {
  const low = new Int32Array(target), part = new Float32Array(target);
  for (let i = 0; i < target; i++) {
    const place = (start + ((i + 0.5) * extent) / target) * (count / full) - 0.5;
    const inside = Math.min(count - 1, Math.max(0, place));
    low[i] = Math.max(0, Math.min(count - 2, Math.floor(inside)));
    part[i] = count > 1 ? inside - low[i] : 0;
  }
  return { low, part };
}

function render(seen: Uint8ClampedArray, made: Uint8ClampedArray, part: Part, full: Size, change: Float32Array, [h, w]: Size): void {
  const rows = taps(part.top, part.down, full[0], h, part.height);
  const columns = taps(part.left, part.across, full[1], w, part.width);
  const row = new Float32Array(4 * w), below = h > 1 ? 4 * w : 0, beside = w > 1 ? 4 : 0;
  let at = 0;
  for (let y = 0; y < part.height; y++) {
    const from = 4 * w * rows.low[y], share = rows.part[y];
    for (let k = 0; k < 4 * w; k++) row[k] = change[from + k] + share * (change[from + below + k] - change[from + k]);
    for (let x = 0; x < part.width; x++, at += 4) {
      const left = 4 * columns.low[x], right = left + beside, t = columns.part[x];
      const gain = 1 + row[left + 3] + t * (row[right + 3] - row[left + 3]);
      for (let c = 0; c < 3; c++) {
        const added = row[left + c] + t * (row[right + c] - row[left + c]);
        made[at + c] = ((seen[at + c] / 127.5 - 1) * gain + added + 1) * 127.5;
      }
    }
  }
}
