// Between an upright photo and what a file takes and gives.
import { Analysis, Fit, FRAMES, IMAGES } from "./protocol";

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

// Of the part that is the photo: what images are made of, and the frames' luma in [0,1], [h,w] each.
export function analysisOf(photo: Float32Array, made: Outputs, fit: Fit): { analysis: Analysis; lumas: Float32Array[] } {
  const { taken: [height, width], size: [h, w], transposed } = fit, pixels = height * width, own = h * w;
  const lengths = [made.stack.length, made.sharp.length, made.detail.length];
  const due = [FRAMES * 3 * pixels, 3 * pixels, IMAGES * pixels];
  if (lengths.some((length, i) => length !== due[i])) throw new Error(`the file made ${lengths} values, due are ${due}`);
  const layers = new Float32Array(IMAGES * 4 * own), lumas: Float32Array[] = [];
  for (let image = 0, to = 0; image < IMAGES; image++) {
    const [values, start] = image < FRAMES ? [made.stack, 3 * pixels * image] : [made.sharp, 0];
    const luma = new Float32Array(own);
    for (let i = 0; i < own; i++) {
      const y = Math.floor(i / w), x = i % w, at = transposed ? x * width + y : y * width + x;
      const gain = made.detail[image * pixels + at];
      const r = values[start + at], g = values[start + pixels + at], b = values[start + 2 * pixels + at];
      layers[to++] = r - (1 + gain) * photo[i];
      layers[to++] = g - (1 + gain) * photo[own + i];
      layers[to++] = b - (1 + gain) * photo[2 * own + i];
      layers[to++] = gain;
      luma[i] = (0.299 * r + 0.587 * g + 0.114 * b + 1) / 2;
    }
    if (image < FRAMES) lumas.push(luma);
  }
  return { analysis: { layers, size: fit.size }, lumas };
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
