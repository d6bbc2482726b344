// Where a stack is sharp: the measure of pocketfocus/photos/focusmap.py (sum-modified Laplacian of Nayar
// and Nakagawa over windows of several sizes), so that a tap here and there agree.
import { FRAMES, Size } from "./protocol";

const SCALES = [1, 2, 4, 8, 16];

function energy(image: Float32Array, height: number, width: number): Float64Array {
  const out = new Float64Array(height * width);
  for (let y = 0; y < height; y++) {
    const above = Math.max(0, y - 1) * width, below = Math.min(height - 1, y + 1) * width;
    for (let x = 0; x < width; x++) {
      const at = y * width, left = Math.max(0, x - 1), right = Math.min(width - 1, x + 1);
      const centre = 2 * image[at + x];
      const sum = Math.abs(centre - image[at + left] - image[at + right])
        + Math.abs(centre - image[above + x] - image[below + x]);
      out[at + x] = sum * sum;
    }
  }
  return out;
}

// Adds to `measure` the mean over every window / radius, by a summed-area table.
function addMeans(measure: Float64Array, values: Float64Array, height: number, width: number): void {
  const stride = width + 1, table = new Float64Array((height + 1) * stride);
  for (let y = 0; y < height; y++) {
    let row = 0;
    for (let x = 0; x < width; x++) {
      row += values[y * width + x];
      table[(y + 1) * stride + x + 1] = table[y * stride + x + 1] + row;
    }
  }
  for (const radius of SCALES) {
    for (let y = 0; y < height; y++) {
      const top = Math.max(0, y - radius), bottom = Math.min(height, y + radius + 1);
      for (let x = 0; x < width; x++) {
        const left = Math.max(0, x - radius), right = Math.min(width, x + radius + 1);
        const sum = table[bottom * stride + right] - table[top * stride + right]
          - table[bottom * stride + left] + table[top * stride + left];
        measure[y * width + x] += sum / ((bottom - top) * (right - left) * radius);
      }
    }
  }
}

// The frame in which each pixel is sharpest, [H,W]: the median of 5 x 5 argmaxes.
export function bestFocus(lumas: Float32Array[], [height, width]: Size): Uint8Array {
  const pixels = height * width;
  const most = new Float64Array(pixels).fill(-1), peak = new Uint8Array(pixels);
  lumas.forEach((luma, frame) => {
    const measure = new Float64Array(pixels);
    addMeans(measure, energy(luma, height, width), height, width);
    for (let i = 0; i < pixels; i++) {
      if (measure[i] > most[i]) { most[i] = measure[i]; peak[i] = frame; }
    }
  });
  const out = new Uint8Array(pixels), counts = new Uint8Array(FRAMES);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      counts.fill(0);
      for (let dy = -2; dy <= 2; dy++) {
        const row = Math.min(height - 1, Math.max(0, y + dy)) * width;
        for (let dx = -2; dx <= 2; dx++) counts[peak[row + Math.min(width - 1, Math.max(0, x + dx))]]++;
      }
      let left = 13, frame = 0;
      while ((left -= counts[frame]) > 0) frame++;
      out[y * width + x] = frame;
    }
  }
  return out;
}
