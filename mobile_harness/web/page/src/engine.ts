// One worker with one open file; another choice starts another worker, so that memory is given back.
import { Choice, Fit, Reply, Request, Size } from "./protocol";

export type Progress = (done: number, total: number, what: string) => void;
type Done = Exclude<Reply, { kind: "progress" } | { kind: "failed" }>;
type Unsent<T> = T extends unknown ? Omit<T, "id"> : never;

export class Engine {
  private worker = new Worker("worker.js", { type: "module" });
  private waiting = new Map<number, { resolve: (reply: Done) => void; reject: (why: Error) => void; progress?: Progress }>();
  private next = 0;
  over: Error | undefined;  // why it answers nothing more

  constructor() {
    this.worker.onmessage = (event: MessageEvent<Reply>) => this.take(event.data);
    this.worker.onerror = (event) => this.fail(new Error(event.message || "the worker stopped"));
    this.worker.onmessageerror = () => this.fail(new Error("what the worker made could not be read"));
  }

  private take(reply: Reply): void {
    const asked = this.waiting.get(reply.id);
    if (!asked) return;
    if (reply.kind === "progress") { asked.progress?.(reply.done, reply.total, reply.what); return; }
    this.waiting.delete(reply.id);
    if (reply.kind === "failed") asked.reject(new Error(reply.why));
    else asked.resolve(reply);
  }

  private fail(why: Error): void {
    this.over ??= why;
    for (const asked of this.waiting.values()) asked.reject(why);
    this.waiting.clear();
  }

  private ask<K extends Done["kind"]>(request: Unsent<Request>, progress?: Progress): Promise<Extract<Done, { kind: K }>> {
    if (this.over) return Promise.reject(this.over);
    const id = this.next++;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve: resolve as (reply: Done) => void, reject, progress });
      this.worker.postMessage({ ...request, id });
    });
  }

  open(choice: Choice, progress?: Progress) { return this.ask<"opened">({ kind: "open", choice }, progress); }
  call(photo: Float32Array, position: number, size: Size) {
    return this.ask<"stack">({ kind: "call", photo, position, size });
  }
  analyse(photo: Float32Array, fit: Fit, position: number | null, progress: Progress) {
    return this.ask<"analysed">({ kind: "analyse", photo, fit, position }, progress);
  }
  close(): void { this.worker.terminate(); this.fail(new Error("stopped")); }
}
