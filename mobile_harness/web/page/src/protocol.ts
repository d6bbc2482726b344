// What the page and its worker tell each other, and what the host tells the page.

export const FRAMES = 9, IMAGES = 10;  // the frames, and the picture that is sharp everywhere
export const CELL = 4;  // pixels a side of what has one distance
export const KEPT = "files";  // the cache of what the host serves, for when the network is gone

export type Backend = "wasm" | "webgpu";
export type Size = readonly [number, number];  // height, width

export interface ModelFile {
  name: string;
  precision: string;
  bytes: number;
  sha256: string;
  inputs: string[];     // photo, position
  outputs: string[];    // stack, sharp, detail, dioptres, positions
  sizes: Size[] | null; // of photos that it takes; null: any whose sides are multiples
}

export interface Run {
  size: Size;        // of the golden photo, and as many pixels as are analysed
  multiple: number;  // of pixels, both sides
  files: ModelFile[];
  measures?: boolean; // whether the host takes measurements; a plain host of files does not
}

export interface Choice {
  file: ModelFile;
  backend: Backend;
  threads: number;
}

// How a photo gets into a file: scaled to `size`, brought to the size `taken` by repeating its last
// row and column, where `transposed` rows and columns change places.
export interface Fit {
  size: Size;
  taken: Size;
  transposed: boolean;
}

// What images are made of: layers [10,h,w,4], of each image what it adds to the photo, less what
// its gain of fine detail adds by itself, and that gain.
export interface Analysis {
  layers: Float32Array;
  size: Size;
}

// photo: [1,3,H,W] float32 in [-1,1], to analyse one of the fit's size; position: 0..8, null to find
// it; stack: [9,3,H,W] in [-1,1]
export type Request =
  | { id: number; kind: "open"; choice: Choice }
  | { id: number; kind: "call"; photo: Float32Array; position: number; size: Size }
  | { id: number; kind: "analyse"; photo: Float32Array; fit: Fit; position: number | null };

// sure: how likely the position that was found is, or one beside it; focus: at which each place is
// sharp, [h,w]
export type Reply =
  | { id: number; kind: "progress"; done: number; total: number; what: string }
  | { id: number; kind: "opened"; loadMs: number; threads: number }
  | { id: number; kind: "stack"; stack: Float32Array; ms: number; heapBytes: number }
  | { id: number; kind: "analysed"; analysis: Analysis; focus: Float32Array; position: number; sure: number | null; ms: number }
  | { id: number; kind: "failed"; why: string };

// 0 is 5 cm (20 dioptres), 8 is infinity.
export function distance(position: number): string {
  const dioptres = 20 * (1 - position / (FRAMES - 1)), cm = 100 / dioptres;
  if (dioptres === 0) return "infinity";
  return cm < 100 ? `${cm.toFixed(cm < 10 ? 1 : 0)} cm` : `${(cm / 100).toFixed(1)} m`;
}

// As `sha256sum` prints it.
export async function sha256(bytes: Uint8Array<ArrayBuffer> | Float32Array<ArrayBuffer>): Promise<string> {
  const digest = await crypto.subtle.digest("SHA-256", bytes);
  return [...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
