// What the page and its worker tell each other, and what the host tells the page.

export const FRAMES = 9;
export const KEPT = "files";  // the cache of what the host serves, for when the network is gone

export type Backend = "wasm" | "webgpu";

export interface ModelFile {
  name: string;
  precision: string;
  bytes: number;
  sha256: string;
  inputs: string[];   // photo, position
  outputs: string[];  // stack
}

export interface Run {
  size: [number, number];  // H, W
  files: ModelFile[];
}

export interface Choice {
  file: ModelFile;
  backend: Backend;
  threads: number;
}

// photo: [1,3,H,W] float32 in [-1,1]; position: 0..8; stack: [9,3,H,W] float32 in [-1,1]
export type Request =
  | { id: number; kind: "open"; choice: Choice }
  | { id: number; kind: "call"; photo: Float32Array; position: number; size: [number, number] }
  | { id: number; kind: "focus"; stack: Float32Array; size: [number, number] };

export type Reply =
  | { id: number; kind: "progress"; done: number; total: number; what: string }
  | { id: number; kind: "opened"; loadMs: number; threads: number }
  | { id: number; kind: "stack"; stack: Float32Array; ms: number; heapBytes: number }
  | { id: number; kind: "focus"; best: Uint8Array }
  | { id: number; kind: "failed"; why: string };

// 0 is 5 cm (20 dioptres), 8 is infinity.
export function distance(position: number): string {
  const dioptres = 20 * (1 - position / (FRAMES - 1));
  return dioptres === 0 ? "infinity" : `${Math.round(100 / dioptres)} cm`;
}
