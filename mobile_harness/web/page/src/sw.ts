// Keeps the page, the runtime and the files that were used, for when the network is gone.
// What the network has is taken first where it may have changed: the page itself and the run.
// Where the host sends no headers of isolation, it adds them: without, a browser gives no threads.
import { later } from "./dom";
import { KEPT } from "./protocol";

declare const ASSETS: string[];
declare const VERSION: string;

interface Asking { readonly request: Request; waitUntil(work: Promise<unknown>): void }

const worker = self as unknown as {
  addEventListener(kind: string, listen: (event: any) => void): void;
  skipWaiting(): Promise<void>;
  clients: { claim(): Promise<void> };
  location: Location;
};
const PATIENCE_MS = 3000;  // where there is a copy: a network that is gone may not say so for minutes
const PAGE = `page-${VERSION}`;
const ROOT = new URL("./", worker.location.href);  // not every host gives the page its own root
const ISOLATION = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
};

worker.addEventListener("install", (event) => {
  event.waitUntil(caches.open(PAGE).then((cache) => cache.addAll(ASSETS)).then(() => worker.skipWaiting()));
});

worker.addEventListener("activate", (event) => {
  event.waitUntil((async () => {
    for (const name of await caches.keys()) {
      if (name !== PAGE && name !== KEPT) await caches.delete(name);
    }
    await worker.clients.claim();
  })());
});

worker.addEventListener("fetch", (event) => {
  const request: Request = event.request, url = new URL(request.url);
  if (request.method !== "GET" || url.origin !== worker.location.origin) return;
  const isNewest = url.pathname.startsWith(`${ROOT.pathname}api/`) || request.mode === "navigate";
  event.respondWith((isNewest ? newest(event, url) : kept(event)).then(isolated));
});

async function newest(event: Asking, url: URL): Promise<Response> {
  const { request } = event, cache = await caches.open(KEPT);
  const key = request.mode === "navigate" ? ROOT.pathname : url.pathname;
  const asked = fetch(request).then((response) => {
    if (request.mode !== "navigate") keep(event, cache, key, response);
    return response;
  });
  const failed = asked.catch(() => undefined);
  event.waitUntil(failed);
  const isMeasured = url.pathname.endsWith("/api/golden");  // with the host, which may take a while
  const answer = await (isMeasured ? failed : Promise.race([failed, later(PATIENCE_MS)]));
  return answer ?? (await cache.match(key)) ?? (await (await caches.open(PAGE)).match(key)) ?? asked;
}

async function kept(event: Asking): Promise<Response> {
  const { request } = event, cache = await caches.open(PAGE);
  const found = await cache.match(request);
  if (found) return found;
  const response = await fetch(request);
  keep(event, cache, request, response);
  return response;
}

// The page gets its answer as it comes, and also where there is no room for a copy.
function keep(event: Asking, cache: Cache, key: RequestInfo, response: Response): void {
  if (response.ok) event.waitUntil(cache.put(key, response.clone()).catch(() => undefined));
}

// A redirect is the browser's to follow: nobody else sees its status, so nobody makes it anew.
function isolated(response: Response): Response {
  if (response.type === "opaqueredirect" || response.headers.has("Cross-Origin-Embedder-Policy")) return response;
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(ISOLATION)) headers.set(name, value);
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}
