// Starts the page: tabs, what the host serves, and the copy that stays when the network is gone.
import { find, later, trouble, why } from "./dom";
import { measureTab } from "./measure";
import { KEPT, Run } from "./protocol";
import { refocusTab } from "./refocus";
import { chosen, fillSettings } from "./settings";

const TABS = ["refocus", "measure"];
const RELOADED = "reloaded", CLAIMED_MS = 3000;
const THREADS_MS = 20_000;  // what there is to win by waiting is more threads
const COPY_MS = 300_000;    // as long as Chromium lets a service worker install itself

function tabs(): void {
  const buttons = TABS.map((name) => find<HTMLButtonElement>(`tab-${name}`));
  const select = (index: number) => TABS.forEach((name, i) => {
    find(name).hidden = i !== index;
    buttons[i].setAttribute("aria-selected", String(i === index));
    buttons[i].tabIndex = i === index ? 0 : -1;
  });
  if (TABS.includes(location.hash.slice(1))) select(TABS.indexOf(location.hash.slice(1)));
  buttons.forEach((button, i) => {
    button.addEventListener("click", () => { trouble(""); select(i); });
    button.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      const next = (i + 1) % TABS.length;
      select(next);
      buttons[next].focus();
    });
  });
}

// Whether there is a service worker. `ready` alone waits for ever for one whose files are not got, or
// have no room.
async function installed(registration: ServiceWorkerRegistration, ms: number): Promise<boolean> {
  const { installing } = registration;
  const failed = new Promise<void>((done) => installing?.addEventListener("statechange", () => {
    if (installing.state === "redundant") done();
  }));
  await Promise.race([navigator.serviceWorker.ready, failed, later(ms)]);
  return Boolean(registration.active);
}

// A copy for when the network is gone. The page's own files are the service worker's; the run and
// the chosen file were fetched before it came, so they are laid beside them here.
async function keep(run: Run): Promise<void> {
  const words = find("offline");
  let registered: ServiceWorkerRegistration | undefined;
  try {
    registered = await navigator.serviceWorker.register("sw.js");
    words.textContent = "Keeping a copy for when the network is gone.";
    if (!(await installed(registered, COPY_MS))) throw new Error("the page's own files did not come, or have no room");
    const { file } = chosen(run), kept = await caches.open(KEPT);
    for (const path of ["api/run", `api/files/${file.name}`]) {
      const response = await fetch(path);
      if (!response.ok) throw new Error(`the host says ${response.status}`);
      await kept.put(path, response);
    }
    words.textContent = `Kept on this phone: works without network with ${file.precision}, and with other files once used.`;
  } catch (error) {
    const isKept = await globalThis.caches?.match("api/run").catch(() => undefined);
    words.textContent = isKept
      ? `The copy kept on this phone was not renewed: ${why(error)}.`
      : registered
      ? `No copy was kept on this phone: ${why(error)}. The page works until it is closed.`
      : "Works without network until it is closed. To be kept, the page has to come over USB or with a certificate this phone trusts.";
  }
}

// A plain host of files sends no headers of isolation, without which there is one thread alone. The
// service worker adds them, from the second load on: this is the first.
async function isolated(): Promise<boolean> {
  if (crossOriginIsolated) sessionStorage.removeItem(RELOADED);
  if (crossOriginIsolated || !navigator.serviceWorker || sessionStorage.getItem(RELOADED)) return true;
  find("offline").textContent = "Getting what runs files with all threads; the page then loads once more.";
  const registered = await navigator.serviceWorker.register("sw.js").catch(() => undefined);
  if (!registered || !(await installed(registered, THREADS_MS))) {
    find("offline").textContent = "";
    return true;
  }
  if (!navigator.serviceWorker.controller) await new Promise((done) => {
    navigator.serviceWorker.addEventListener("controllerchange", done, { once: true });
    setTimeout(done, CLAIMED_MS);  // never, where a reload went past the service worker
  });
  sessionStorage.setItem(RELOADED, "true");
  location.reload();
  return false;
}

async function start(): Promise<void> {
  tabs();
  if (!(await isolated())) return;
  const response = await fetch("api/run");
  if (!response.ok) throw new Error(`the host says ${response.status}`);
  const run = (await response.json()) as Run;
  await fillSettings(run);
  refocusTab(run);
  if (run.measures === false) {
    find("tab-refocus").click();
    find("tabs").hidden = true;
  } else measureTab(run);
  document.documentElement.dataset.ready = "true";
  await keep(run);
}

start().catch((error) => trouble(`The page did not start: ${why(error)}. Is what serves it still there?`));
