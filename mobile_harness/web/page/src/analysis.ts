// Between an upright photo and what a file takes and gives.
import { Analysis, CELL, Fit, FRAMES, IMAGES } from "./protocol";

export interface Outputs { stack: Float32Array; sharp: Float32Array; detail: Float32Array }

// What the file takes, [1,3,H,W], of a photo [3,h,w]: its last row and column are repeated.
export function inputOf(photo: Float32Array, { taken: [height, width], size: [h, w], transposed }: Fit): Float32Array {
  const out = new Float32Array(3 * height * width);
  let to = 0;
  for (let c = 0; c < 3; c++) {
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const [row, column] = transposed ? [x, y] : [y, x];
        out[to++] = photo[(c * h + Math.min(h - 1, row)) * w + Math.min(w - 1, column)];
      }
    }
  }
  return out;
}

// Of the part that is the photo: what images are made of.
export function analysisOf(photo: Float32Array, made: Outputs, fit: Fit): Analysis {
  const { taken: [height, width], size: [h, w], transposed } = fit, pixels = height * width, own = h * w;
  const lengths = [made.stack.length, made.sharp.length, made.detail.length];
  const due = [FRAMES * 3 * pixels, 3 * pixels, IMAGES * pixels];
  if (lengths.some((length, i) => length !== due[i])) throw new Error(`the file made ${lengths} values, due are ${due}`);
  const layers = new Float32Array(IMAGES * 4 * own);
  for (let image = 0, to = 0; image < IMAGES; image++) {
    const [values, start] = image < FRAMES ? [made.stack, 3 * pixels * image] : [made.sharp, 0];
    for (let i = 0; i < own; i++) {
      const y = Math.floor(i / w), x = i % w, at = transposed ? x * width + y : y * width + x;
      const gain = made.detail[image * pixels + at];
      for (let c = 0; c < 3; c++) {
        layers[to++] = values[start + c * pixels + at] - (1 + gain) * photo[c * own + i];
      }
      layers[to++] = gain;
    }
  }
  return { layers, size: fit.size };
}

// The focus 0..8 at which each place is sharp, [h,w], by how far away the student sees it: its map of
// dioptres, a value for CELL x CELL pixels, enlarged bilinearly.
export function focusMap(dioptres: Float32Array, { taken: [height, width], size: [h, w], transposed }: Fit): Float32Array {
  const [rows, columns] = [height / CELL, width / CELL], out = new Float32Array(h * w);
  const tap = (pixel: number, count: number) => {
    const place = Math.min(count - 1, Math.max(0, (pixel + 0.5) / CELL - 0.5)), low = Math.floor(place);
    return { low, high: Math.min(count - 1, low + 1), part: place - low };
  };
  for (let i = 0; i < h * w; i++) {
    const [y, x] = transposed ? [i % w, Math.floor(i / w)] : [Math.floor(i / w), i % w];
    const row = tap(y, rows), column = tap(x, columns);
    const along = (from: number) => dioptres[from + column.low] * (1 - column.part) + dioptres[from + column.high] * column.part;
    const near = along(row.low * columns) * (1 - row.part) + along(row.high * columns) * row.part;
    out[i] = (FRAMES - 1) * Math.min(1, Math.max(0, 1 - near));
  }
  return out;
}

// The focal position of a photo that was analysed without one, and how likely it is to be that or one
// beside it: the median, whose expected error is least.
export function likelyPosition(chances: Float32Array): { position: number; sure: number } {
  const sum = chances.reduce((a, b) => a + b, 0);
  let position = 0;
  for (let gone = chances[0]; gone < sum / 2 && position < FRAMES - 1; gone += chances[position]) position++;
  const near = chances.slice(Math.max(0, position - 1), position + 2).reduce((a, b) => a + b, 0);
  return { position, sure: near / sum };
}
