// ONNX Runtime off the page's own thread, so that the page answers while it computes.
import type { InferenceSession } from "onnxruntime-web/wasm";
import { analysisOf, focusMap, inputOf, likelyPosition } from "./analysis";
import { Choice, FRAMES, Reply, Request, sha256, Size } from "./protocol";

type Ort = typeof import("onnxruntime-web/wasm");

const scope = self as unknown as {
  onmessage: ((event: MessageEvent<Request>) => void) | null;
  postMessage(message: Reply, transfer?: Transferable[]): void;
};
// The runtime's heaps, seen as they are made: they never shrink, so their size is their peak, and it
// is told by every browser.
const heaps: WebAssembly.Memory[] = [];
WebAssembly.Memory = class extends WebAssembly.Memory {
  constructor(descriptor: WebAssembly.MemoryDescriptor) {
    super(descriptor);
    heaps.push(this);
  }
};
const heapBytes = () => heaps.reduce((sum, heap) => sum + heap.buffer.byteLength, 0);

let ort: Ort;
let session: InferenceSession;
let names: { inputs: string[]; outputs: string[] };

async function runtime(choice: Choice): Promise<Ort> {
  const kind = choice.backend === "webgpu" ? "ort-wasm-simd-threaded.asyncify" : "ort-wasm-simd-threaded";
  const module: Ort = choice.backend === "webgpu"
    ? (await import("onnxruntime-web/webgpu")) as unknown as Ort
    : await import("onnxruntime-web/wasm");
  module.env.wasm.numThreads = choice.threads;
  const place = (end: string) => new URL(`ort/${kind}.${end}`, location.href).href;
  module.env.wasm.wasmPaths = { mjs: place("mjs"), wasm: place("wasm") };
  return module;
}

async function download(id: number, choice: Choice): Promise<Uint8Array<ArrayBuffer>> {
  const { file } = choice;
  const response = await fetch(`api/files/${file.name}`);
  if (!response.ok || !response.body) throw new Error(`the host gives no ${file.name} (${response.status})`);
  const bytes = new Uint8Array(file.bytes), reader = response.body.getReader();
  let done = 0;
  for (;;) {
    const part = await reader.read();
    if (part.done) break;
    if (done + part.value.length > file.bytes) throw new Error(`${file.name} is longer than the manifest says`);
    bytes.set(part.value, done);
    done += part.value.length;
    scope.postMessage({ id, kind: "progress", done, total: file.bytes, what: "Getting the file" });
  }
  if (await sha256(bytes) !== file.sha256) throw new Error(`${file.name} is not the file that the manifest lists; load the page again`);
  return bytes;
}

async function open(id: number, choice: Choice): Promise<void> {
  const bytes = await download(id, choice);
  ort = await runtime(choice);
  scope.postMessage({ id, kind: "progress", done: 0, total: 0, what: "Starting the runtime" });
  const began = performance.now();
  session = await ort.InferenceSession.create(bytes, { executionProviders: [choice.backend] });
  names = choice.file;
  scope.postMessage({ id, kind: "opened", loadMs: performance.now() - began, threads: ort.env.wasm.numThreads ?? 1 });
}

// Only what is asked for is copied out of the runtime's heap. No position: it is not known.
async function made(photo: Float32Array, [height, width]: Size, position: number | null, outputs: string[]): Promise<Float32Array[]> {
  const oneHot = new Float32Array(FRAMES);
  if (position !== null) oneHot[position] = 1;
  const feeds = {
    [names.inputs[0]]: new ort.Tensor("float32", photo, [1, 3, height, width]),
    [names.inputs[1]]: new ort.Tensor("float32", oneHot, [1, FRAMES]),
  };
  const results = await session.run(feeds, outputs);
  return Promise.all(outputs.map((name) => results[name].getData() as Promise<Float32Array>));
}

async function call({ id, photo, size, position }: Extract<Request, { kind: "call" }>): Promise<void> {
  const began = performance.now();
  const [stack] = await made(photo, size, position, names.outputs.slice(0, 1));
  const ms = performance.now() - began;
  if (stack.length !== FRAMES * photo.length) throw new Error(`the file made ${stack.length} values`);
  const own = new Float32Array(stack);
  scope.postMessage({ id, kind: "stack", stack: own, ms, heapBytes: heapBytes() }, [own.buffer]);
}

async function analyse({ id, photo, fit, position: known }: Extract<Request, { kind: "analyse" }>): Promise<void> {
  const input = inputOf(photo, fit);
  const images = names.outputs.slice(0, -1), [positions] = names.outputs.slice(-1);
  const say = (what: string) => scope.postMessage({ id, kind: "progress", done: 0, total: 0, what });
  let position = known ?? 0, sure: number | null = null;
  if (known === null) {
    say("Finding where it was focused");
    const [chances] = await made(input, fit.taken, null, [positions]);
    ({ position, sure } = likelyPosition(chances));
  }
  say("Analysing the photo");
  const began = performance.now();
  const [stack, sharp, detail, dioptres] = await made(input, fit.taken, position, images);
  const ms = performance.now() - began;
  const analysis = analysisOf(photo, { stack, sharp, detail }, fit), focus = focusMap(dioptres, fit);
  scope.postMessage({ id, kind: "analysed", analysis, focus, position, sure, ms }, [analysis.layers.buffer, focus.buffer]);
}

async function answer(message: Request): Promise<void> {
  try {
    if (message.kind === "open") await open(message.id, message.choice);
    else if (message.kind === "call") await call(message);
    else await analyse(message);
  } catch (error) {
    scope.postMessage({ id: message.id, kind: "failed", why: error instanceof Error ? error.message : String(error) });
  }
}

let queue = Promise.resolve();
scope.onmessage = (event) => { queue = queue.then(() => answer(event.data)); };
