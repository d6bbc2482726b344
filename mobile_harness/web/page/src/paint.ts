// Images of an analysed photo, at any focus and aperture: what both ways to draw them share.
// Image = photo + enlarged(image - small - gain * small) + photo * enlarged(gain), as in
// pocketfocus/models/render.py; what is enlarged is one sum of at most three of the ten layers.
import { Analysis, FRAMES, IMAGES, Size } from "./protocol";

export interface Look { focus: number; aperture: number }  // 0..8, 0..2

// What of the photo is drawn, in its pixels, and as how many pixels of the canvas.
export interface Part { left: number; top: number; across: number; down: number; width: number; height: number }

export interface Painter {
  readonly kind: "WebGL2" | "Canvas2D";
  readonly canvas: HTMLCanvasElement;
  readonly mostSide: number;    // of a photo
  readonly mostPixels: number;  // of a canvas that follows a finger
  readonly lost: boolean;       // for good: it draws nothing more, and no call says so
  load(photo: ImageBitmap): void;  // which it closes when it is done with it
  know(analysis: Analysis): void;
  draw(part: Part, look: Look | null): void;  // null: the photo itself
}

// The layers of an image, and their weights.
export function sumOf(look: Look | null): { layers: [number, number, number]; weights: [number, number, number] } {
  const focus = look?.focus ?? 0, aperture = look?.aperture ?? 0;
  const below = Math.min(FRAMES - 2, Math.floor(focus)), part = focus - below;
  return {
    layers: [below, below + 1, IMAGES - 1],
    weights: [(1 - part) * aperture, part * aperture, look ? 1 - aperture : 0],
  };
}

export function resize(canvas: HTMLCanvasElement, { width, height }: Part): void {
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
}

export function whole([height, width]: Size, most: Size): Part {
  const scale = Math.min(1, most[0] / height, most[1] / width);
  const side = (pixels: number) => Math.max(1, Math.round(pixels * scale));
  return { left: 0, top: 0, across: width, down: height, width: side(width), height: side(height) };
}
