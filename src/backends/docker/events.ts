// What the Engine says of its own accord, over one connection for all containers of ours: that one has
// ended, was paused, was let go on, was removed. There is one for as long as somebody listens. What was said
// while it was away is not heard; whoever listens looks again whenever it is there.
import * as z from 'zod';
import { newOperation, type Operation } from '../../host/operation.ts';
import { LABEL } from './config.ts';
import type { Engine } from './engine.ts';
import { lines } from './lines.ts';
import { waitAgain } from './wait.ts';

const RETRY_MS = { first: 100, most: 5_000 } as const;
/** An Engine that hangs says nothing, and an old one drops what it cannot send: then one looks without having heard. */
const LOOK_MS = 60_000;

const ACTIONS = { end: ['die', 'destroy'], pause: ['pause', 'unpause'] } as const;
export type Topic = keyof typeof ACTIONS;

const message = z.object({ Action: z.string(), Actor: z.object({ ID: z.string() }) });

type Listener = { readonly topic: Topic; readonly containerId: string | null; readonly hear: () => void };

export class EngineEvents {
  readonly #engine: Engine;
  readonly #instance: string;
  readonly #listeners = new Set<Listener>();
  /** Of the connection, or of trying to have one. */
  #running: AbortController | null = null;
  #isConnected = false;

  constructor(engine: Engine, instance: string) {
    this.#engine = engine;
    this.#instance = instance;
  }

  /**
   * Yields when there may be news of that container (null: of the Engine alone): once it is listened to, again when
   * the Engine was away, and at each event. What happened is not in it: by the time it is read something else may hold.
   */
  async *hints(op: Operation, topic: Topic, containerId: string | null): AsyncGenerator<void, void, undefined> {
    let news = Promise.withResolvers<void>();
    const listener = { topic, containerId, hear: () => news.resolve() };
    this.#listeners.add(listener);
    this.#connect(op);
    if (this.#isConnected) news.resolve();
    try {
      for (;;) {
        await soonest(op, news.promise, LOOK_MS);
        news = Promise.withResolvers<void>();
        yield;
      }
    } finally {
      this.#listeners.delete(listener);
      if (this.#listeners.size === 0) this.#hangUp();
    }
  }

  #connect({ id, log }: Operation): void {
    if (this.#running !== null) return;
    const running = new AbortController();
    this.#running = running;
    // Of nobody who listens: it goes on when one of them does not any more.
    void this.#follow(newOperation({ id, actor: 'daemon', log, signal: running.signal }));
  }

  #hangUp(): void {
    this.#running?.abort();
    this.#running = null;
    this.#isConnected = false;
  }

  async #follow(op: Operation): Promise<void> {
    const filters = JSON.stringify({
      type: ['container'],
      label: [`${LABEL.instance}=${this.#instance}`],
      event: Object.values(ACTIONS).flat(),
    });
    for (let waitMs: number = RETRY_MS.first; !op.signal.aborted; waitMs = Math.min(waitMs * 2, RETRY_MS.most)) {
      try {
        const answer = await this.#engine.stream(op, { method: 'GET', path: '/events', query: { filters } });
        this.#isConnected = true;
        for (const { hear } of this.#listeners) hear();
        for await (const line of lines(op, answer)) {
          waitMs = RETRY_MS.first;
          this.#tell(line);
        }
      } catch (cause) {
        if (op.signal.aborted) return;
        op.log.debug({ cause }, 'the Docker Engine cannot be heard; it is tried again');
      }
      if (op.signal.aborted) return;
      this.#isConnected = false;
      await soonest(op, new Promise(() => {}), waitMs).catch(() => {}); // aborted: the loop ends
    }
  }

  #tell(line: string): void {
    const { Action, Actor } = message.parse(JSON.parse(line));
    for (const { topic, containerId, hear } of this.#listeners) {
      const isMeant = (ACTIONS[topic] as readonly string[]).includes(Action) && containerId === Actor.ID;
      if (isMeant) hear();
    }
  }
}

/** The promise, or so much time, whichever comes first. @throws when the operation ends before. */
async function soonest(op: Operation, promise: Promise<void>, ms: number): Promise<void> {
  const { promise: late, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, ms).unref();
  try {
    await waitAgain(op, Promise.race([promise, late]));
  } finally {
    clearTimeout(timer);
  }
}
