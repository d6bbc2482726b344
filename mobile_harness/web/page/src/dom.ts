// Short words for the document.
export function find<T extends HTMLElement = HTMLElement>(id: string): T {
  const element = document.getElementById(id);
  if (!element) throw new Error(`no #${id}`);
  return element as T;
}

export function show(id: string, on: boolean): void { find(id).hidden = !on; }

export function trouble(words: string): void {
  find("trouble").textContent = words;
  show("trouble", words !== "");
}

// Without its full stop: a sentence goes on after it.
export function why(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).replace(/\.$/, "");
}

// What a promise that may never settle is raced against.
export function later(ms: number): Promise<undefined> {
  return new Promise((done) => setTimeout(() => done(undefined), ms));
}

export function progress(bar: HTMLProgressElement, done: number, total: number): void {
  if (total > 0) { bar.max = total; bar.value = done; } else bar.removeAttribute("value");
}

export function option(value: string, words: string): HTMLOptionElement {
  const made = document.createElement("option");
  made.value = value;
  made.textContent = words;
  return made;
}
