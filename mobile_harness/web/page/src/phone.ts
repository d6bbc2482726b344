// What the browser tells of the phone. Browsers tell less and less: what is not known is null.
import { later } from "./dom";

const MEMORY_MS = 25_000;  // Chromium answers after about 20 s, or not while threads of WebAssembly wait

export interface Phone {
  name: string; os: string; browser: string;
  chip: string | null; cores: number | null; memory_gib: number | null;
}

interface Hints {
  platform?: string;
  brands?: { brand: string; version: string }[];
  getHighEntropyValues?(names: string[]): Promise<{ model?: string; platformVersion?: string }>;
}

export async function examine(): Promise<Phone> {
  const agent = navigator.userAgent;
  const hints = (navigator as { userAgentData?: Hints }).userAgentData;
  const high = (await hints?.getHighEntropyValues?.(["model", "platformVersion"]).catch(() => undefined)) ?? {};
  const os = hints?.platform
    ? `${hints.platform} ${high.platformVersion ?? ""}`.trim()
    : /(iPhone OS [\d_]+|CPU OS [\d_]+|Android [\d.]+|Mac OS X [\d_.]+|Windows NT [\d.]+|Linux)/.exec(agent)?.[1].replaceAll("_", ".");
  const apple = /iPhone|iPad/.exec(agent)?.[0];
  return {
    name: (high.model || apple || "").slice(0, 60),
    os: (os || "unknown").slice(0, 80),
    browser: browser(agent),
    chip: graphics()?.slice(0, 80) || null,
    cores: navigator.hardwareConcurrency || null,
    memory_gib: (navigator as { deviceMemory?: number }).deviceMemory ?? null,
  };
}

function browser(agent: string): string {
  const found = /(Firefox|FxiOS|CriOS|EdgA?|SamsungBrowser|HeadlessChrome|Chrome)\/([\d]+)/.exec(agent);
  if (found) return `${found[1]} ${found[2]}`;
  const safari = /Version\/([\d.]+).*Safari/.exec(agent);
  return safari ? `Safari ${safari[1]}` : "a browser";
}

// The graphics processor's name is the best hint at the chip that a page gets.
function graphics(): string | null {
  const context = document.createElement("canvas").getContext("webgl");
  const names = context?.getExtension("WEBGL_debug_renderer_info");
  const found = context && names ? String(context.getParameter(names.UNMASKED_RENDERER_WEBGL)) : null;
  context?.getExtension("WEBGL_lose_context")?.loseContext();
  return found && `${found} (graphics)`.slice(0, 80);
}

export async function memoryMib(): Promise<number | null> {
  const measure = (performance as { measureUserAgentSpecificMemory?(): Promise<{ bytes: number }> })
    .measureUserAgentSpecificMemory;
  if (!measure || !crossOriginIsolated) return null;
  try {
    const found = await Promise.race([measure.call(performance), later(MEMORY_MS)]);
    return found ? found.bytes / 2 ** 20 : null;
  } catch { return null; }
}
