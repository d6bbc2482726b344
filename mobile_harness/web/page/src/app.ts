// Starts the page: tabs, what the host serves, and the copy that stays when the network is gone.
import { find, trouble, why } from "./dom";
import { measureTab } from "./measure";
import { Run } from "./protocol";
import { refocusTab } from "./refocus";
import { fillSettings } from "./settings";

const TABS = ["refocus", "measure"];

function tabs(): void {
  const buttons = TABS.map((name) => find<HTMLButtonElement>(`tab-${name}`));
  const select = (index: number) => TABS.forEach((name, i) => {
    find(name).hidden = i !== index;
    buttons[i].setAttribute("aria-selected", String(i === index));
    buttons[i].tabIndex = i === index ? 0 : -1;
  });
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

async function keep(): Promise<void> {
  const words = find("offline");
  try {
    await navigator.serviceWorker.register("/sw.js");
    await navigator.serviceWorker.ready;
    words.textContent = "Kept on this phone: the page works without network, with the files used before.";
  } catch {
    words.textContent = "Works without network until it is closed; this browser does not keep it (the certificate is not a trusted one).";
  }
}

async function start(): Promise<void> {
  tabs();
  const response = await fetch("/api/run");
  if (!response.ok) throw new Error(`the host says ${response.status}`);
  const run = (await response.json()) as Run;
  await fillSettings(run);
  refocusTab(run);
  measureTab(run);
  document.documentElement.dataset.ready = "true";
  await keep();
}

start().catch((error) => trouble(`The page did not start: ${why(error)}. Is \`pocketfocus serve\` still running?`));
