// Type-checked against react-native-executorch 0.10.2; not run here: no phone build of the package.
// Calls follow its own types (core/model.d.ts, core/tensor.d.ts).
//
// manifest.json of the run says: photo float32 [1, 3, 320, 448] in [-1, 1],
// position float32 [1, 9] in [0, 1] (one-hot, or zeros where it is unknown); outputs, in order:
// stack float32 [9, 3, 320, 448] in [-1, 1], sharp float32 [1, 3, 320, 448] in [-1, 1],
// detail float32 [1, 10, 320, 448] in [-1, 1], dioptres float32 [1, 1, 80, 112] in [0, 1],
// positions float32 [1, 9] in [0, 1]. `functions` of the artifact lists a method for every size.

import { loadModel, tensor, type Model, type Tensor } from 'react-native-executorch';

export type Size = readonly [height: number, width: number];
export type Method = { readonly name: string; readonly size: Size }; // of `functions`

export type Try = {
  readonly file: string;
  readonly target: string;
  readonly unit: string;
  readonly at_least_db: number;
  readonly others: readonly Method[]; // for photos of other sizes, each of which is tried too
};

/** A photo of one size, and what is expected of it at every `step`-th pixel: the files' bytes. */
export type Sized = {
  readonly size: Size;
  readonly photo: Uint8Array;
  readonly expected: Uint8Array;
};

/** `canary` of a golden bundle's golden.json, with the bytes of the files that it names. */
export type Canary = Omit<Sized, 'size'> & {
  readonly position: number;
  readonly step: number;
  readonly tries: readonly Try[];
  readonly sizes: readonly Sized[];
};

const FRAMES = 9;
const CELL = 4; // pixels of the photo a place of `dioptres`

/** The method whose photos are most like one of this size in shape: nothing is squashed or cut. */
export function methodFor([height, width]: Size, methods: readonly Method[]): Method {
  const shape = ([h, w]: Size) => Math.abs(Math.log(w / h / (width / height)));
  return methods.reduce((best, next) => (shape(next.size) < shape(best.size) ? next : best));
}

export class Refocus {
  private readonly model: Model;

  constructor(ptePath: string) { // executorch/student-int8.pte; other methods load when first called
    this.model = loadModel(ptePath, { eagerLoadMethods: false });
  }

  /**
   * photo: 3 * height * width values of the method's size, channels first, (pixel / 127.5 - 1);
   * position: 0 near to 8 far, null where it is unknown. Returns all outputs: nine frames first.
   * Call it in a worklet (`wrapAsync`), not on the JavaScript thread.
   */
  analyse(photo: Float32Array, { name, size }: Method, position: number | null): Float32Array[] {
    const [height, width] = size;
    const oneHot = new Float32Array(FRAMES);
    if (position !== null) oneHot[position] = 1;
    const inputs = [
      tensor('float32', [1, 3, height, width], photo),
      tensor('float32', [1, FRAMES], oneHot),
    ];
    const outputs = [
      [FRAMES, 3, height, width], [1, 3, height, width], [1, FRAMES + 1, height, width],
      [1, 1, height / CELL, width / CELL], [1, FRAMES],
    ].map((shape): Tensor => tensor('float32', shape)); // stack, sharp, detail, dioptres, positions
    try {
      this.model.execute(name, inputs, outputs);
      return outputs.map((output) => output.getData(new Float32Array(output.numel)));
    } finally {
      for (const held of [...inputs, ...outputs]) held.dispose();
    }
  }

  close(): void {
    this.model.dispose();
  }
}

const valueOf = (pixel: number): number => pixel / 127.5 - 1;

/** PSNR of a stack at every `step`-th pixel, down and across; NaN, which passes nothing, of NaN. */
export function decibels(stack: Float32Array, { size, expected }: Sized, step: number): number {
  const [height, width] = size;
  let error = 0;
  let n = 0;
  for (let plane = 0; plane < FRAMES * 3; plane++) {
    for (let y = 0; y < height; y += step) {
      for (let x = 0; x < width; x += step) {
        error += (stack[(plane * height + y) * width + x] - valueOf(expected[n++])) ** 2;
      }
    }
  }
  return 10 * Math.log10((4 * n) / error);
}

/**
 * The first .pte of a canary's tries that computes on this phone what it should, at each of its
 * sizes, null where none does. usual: the file's method for its usual size; pathOf: where the app
 * keeps a file.
 */
export function firstThatWorks(
  canary: Canary, usual: Method, pathOf: (file: string) => string,
): Refocus | null {
  const sizes = [{ ...canary, size: usual.size }, ...canary.sizes];
  for (const next of canary.tries.filter(({ target }) => target === 'executorch')) {
    let model: Refocus | null = null;
    try {
      const opened = new Refocus(pathOf(next.file));
      model = opened;
      const works = [usual, ...next.others].every((method) => {
        const sized = sizes.find(({ size }) => String(size) === String(method.size));
        if (sized === undefined) return false;
        const [stack] = opened.analyse(Float32Array.from(sized.photo, valueOf), method, canary.position);
        return decibels(stack, sized, canary.step) >= next.at_least_db;
      });
      if (works) return model;
    } catch {
      // It does not load here, or does not run: the next one may.
    }
    model?.close();
  }
  return null;
}
