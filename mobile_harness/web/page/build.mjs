// Bundles the page into dist/: scripts, style, ONNX Runtime's WebAssembly, and the service worker's
// list of all of them. Nothing in dist/ comes from anywhere but this folder and node_modules.
import { build } from "esbuild";
import { createHash } from "node:crypto";
import { cp, mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";

const out = "dist";
const runtime = "node_modules/onnxruntime-web/dist";
await rm(out, { recursive: true, force: true });
await mkdir(`${out}/ort`, { recursive: true });
for (const kind of ["ort-wasm-simd-threaded", "ort-wasm-simd-threaded.asyncify"]) {
  for (const end of ["mjs", "wasm"]) await cp(`${runtime}/${kind}.${end}`, `${out}/ort/${kind}.${end}`);
}
for (const file of ["index.html", "style.css", "icon.svg"]) await cp(`src/${file}`, `${out}/${file}`);

const { version } = JSON.parse(await readFile("node_modules/onnxruntime-web/package.json", "utf8"));
const shared = {
  bundle: true, minify: true, format: "esm", target: "es2022", legalComments: "none",
  conditions: ["onnxruntime-web-use-extern-wasm"],
  define: { RUNTIME_VERSION: JSON.stringify(version) },
};
await build({ ...shared, entryPoints: ["src/app.ts"], outdir: out });
await build({
  ...shared, entryPoints: ["src/worker.ts"], outdir: out, splitting: true, chunkNames: "ort/[name]-[hash]",
});

const names = (await readdir(out, { recursive: true, withFileTypes: true }))
  .filter((entry) => entry.isFile())
  .map((entry) => `${entry.parentPath ?? entry.path}/${entry.name}`.slice(out.length + 1))
  .sort();
const digest = createHash("sha256");
for (const name of names) digest.update(name).update(await readFile(`${out}/${name}`));
const kept = names.filter((name) => name !== "index.html" && !name.includes("asyncify"));
await build({
  ...shared, entryPoints: ["src/sw.ts"], outdir: out, format: "iife",
  define: {
    ASSETS: JSON.stringify(["./", ...kept]),
    VERSION: JSON.stringify(digest.digest("hex").slice(0, 16)),
  },
});
await writeFile(`${out}/licences.txt`, await licences());

async function licences() {
  const texts = [];
  for (const name of ["onnxruntime-web", "exifr"]) {
    const files = await readdir(`node_modules/${name}`);
    const about = JSON.parse(await readFile(`node_modules/${name}/package.json`, "utf8"));
    const file = files.find((entry) => /^licen[cs]e/i.test(entry));
    const text = file ? await readFile(`node_modules/${name}/${file}`, "utf8") : "";
    texts.push(`${name} ${about.version}: ${about.license}\n\n${text}`.trim());
  }
  return `${texts.join("\n\n---\n\n")}\n`;
}
