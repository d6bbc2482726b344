// Which file, what runs it, and with how many threads: the user's choice, within what there is.
import { find, later, option } from "./dom";
import { Backend, Choice, Run } from "./protocol";

const PREFERRED = ["int8", "fp32"];  // WebAssembly has integer kernels, and casts every fp16
const MOST_THREADS = 8;              // more are not faster for so small a network
const ADAPTER_MS = 3000;             // a browser may answer much later, or never

export async function fillSettings(run: Run): Promise<void> {
  const files = find<HTMLSelectElement>("file");
  files.replaceChildren(...run.files.map((file) =>
    option(file.name, `${file.precision} · ${(file.bytes / 2 ** 20).toFixed(1)} MiB`)));
  const first = PREFERRED.map((p) => run.files.find((file) => file.precision === p)).find(Boolean);
  if (first) files.value = first.name;

  const gpu = await hasWebGpu();
  find<HTMLSelectElement>("backend").replaceChildren(
    option("wasm", "Processor (WebAssembly, SIMD)"),
    ...(gpu ? [option("webgpu", "Graphics processor (WebGPU)")] : []));

  const cores = crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency || 1) : 1;
  const threads = find<HTMLSelectElement>("threads");
  threads.replaceChildren(...Array.from({ length: cores }, (_, i) => option(String(i + 1), String(i + 1))));
  threads.value = String(cores <= 4 ? cores : Math.ceil(cores / 2));  // the rest are slow cores
}

export function chosen(run: Run): Choice {
  const name = find<HTMLSelectElement>("file").value;
  const file = run.files.find((entry) => entry.name === name) ?? run.files[0];
  return {
    file,
    backend: find<HTMLSelectElement>("backend").value as Backend,
    threads: Number(find<HTMLSelectElement>("threads").value),
  };
}

async function hasWebGpu(): Promise<boolean> {
  const gpu = (navigator as { gpu?: { requestAdapter(): Promise<unknown> } }).gpu;
  try { return Boolean(gpu && (await Promise.race([gpu.requestAdapter(), later(ADAPTER_MS)]))); } catch { return false; }
}
