// What a sandbox is, without any of its machinery: the model that random sequences are compared with.
// Pure and in memory; it knows the states (src/domain/sandbox.ts) and what is on the disk.
import fc from 'fast-check';
import type { ErrorCode } from '../../src/domain/errors.ts';

export const SLOTS = [0, 1] as const;
export const KEYS = ['a', 'b'] as const;

export type Slot = (typeof SLOTS)[number];
export type Op =
  | { readonly do: 'create'; readonly slot: Slot; readonly start: boolean }
  | { readonly do: 'start' | 'stop' | 'restart' | 'pause' | 'resume' | 'crash'; readonly slot: Slot }
  | { readonly do: 'delete'; readonly slot: Slot; readonly force: boolean }
  | { readonly do: 'rename'; readonly slot: Slot; readonly name: string }
  | { readonly do: 'write'; readonly slot: Slot; readonly key: string; readonly text: string; readonly by: 'api' | 'process' }
  | { readonly do: 'read'; readonly slot: Slot; readonly key: string; readonly by: 'api' | 'process' }
  | { readonly do: 'remove'; readonly slot: Slot; readonly key: string }
  | { readonly do: 'scratch' | 'scratched'; readonly slot: Slot }
  | { readonly do: 'daemon-killed' };

/** What came of an operation: a code, and what was read where something was. */
export type Answer = { readonly code: 'done' | ErrorCode; readonly read?: string | null };

export type Seen = {
  readonly state: 'created' | 'running' | 'paused' | 'stopped' | 'deleted';
  readonly name: string;
  readonly startCount: number;
};
type Sandbox = { state: Seen['state']; name: string; startCount: number; readonly disk: Map<string, string>; memory: boolean };

const DONE: Answer = { code: 'done' };
const REFUSED: Answer = { code: 'failed_precondition' };

export class Model {
  readonly #sandboxes: [Sandbox | null, Sandbox | null] = [null, null];
  readonly #canPause: boolean;

  constructor(canPause: boolean) {
    this.#canPause = canPause;
  }

  seen(slot: Slot): Seen | null {
    const sandbox = this.#sandboxes[slot];
    return sandbox === null ? null : { state: sandbox.state, name: sandbox.name, startCount: sandbox.startCount };
  }

  /** Null: it makes no sense here, and is not asked. */
  apply(op: Op): Answer | null {
    if (op.do === 'daemon-killed') return DONE;
    const sandbox = this.#sandboxes[op.slot];
    if (op.do === 'create') {
      if (sandbox !== null && sandbox.state !== 'deleted') return null;
      const state = op.start ? 'running' : 'created';
      this.#sandboxes[op.slot] = { state, name: '', startCount: op.start ? 1 : 0, disk: new Map(), memory: false };
      return DONE;
    }
    if (sandbox === null) return null;
    const { state } = sandbox;
    switch (op.do) {
      case 'start':
        if (state === 'running') return DONE;
        if (state === 'paused' || state === 'deleted') return REFUSED;
        return begin(sandbox);
      case 'stop':
        if (state === 'running' || state === 'paused') sandbox.state = 'stopped';
        return DONE;
      case 'restart':
        return state === 'deleted' ? REFUSED : begin(sandbox);
      case 'pause':
        if (state === 'paused') return DONE;
        if (state !== 'running' || !this.#canPause) return REFUSED;
        sandbox.state = 'paused';
        return DONE;
      case 'resume':
        if (state === 'running') return DONE;
        if (state !== 'paused') return REFUSED;
        sandbox.state = 'running';
        return DONE;
      case 'delete':
        if (!op.force && (state === 'running' || state === 'paused')) return REFUSED;
        sandbox.state = 'deleted';
        return DONE;
      case 'rename': {
        if (state === 'deleted') return REFUSED;
        const other = this.#sandboxes[op.slot === 0 ? 1 : 0];
        if (other !== null && other.state !== 'deleted' && other.name === op.name) return { code: 'conflict' };
        sandbox.name = op.name;
        return DONE;
      }
      case 'crash':
        if (state !== 'running') return null; // what a paused one has not written yet nobody can tell
        sandbox.state = 'stopped';
        return DONE;
      case 'scratch':
        if (state !== 'running') return REFUSED;
        sandbox.memory = true;
        return DONE;
      case 'scratched':
        return state === 'running' ? { code: 'done', read: sandbox.memory ? 'yes' : 'no' } : REFUSED;
      case 'write':
        if (state !== 'running') return REFUSED;
        sandbox.disk.set(op.key, op.text);
        return DONE;
      case 'read': {
        if (state !== 'running') return REFUSED;
        const text = sandbox.disk.get(op.key);
        if (text !== undefined) return { code: 'done', read: text };
        return op.by === 'api' ? { code: 'not_found' } : { code: 'done', read: null };
      }
      case 'remove':
        if (state !== 'running') return REFUSED;
        return sandbox.disk.delete(op.key) ? DONE : { code: 'not_found' };
    }
  }

  /** The name that a creation was given is known only afterwards. */
  named(slot: Slot, name: string): void {
    const sandbox = this.#sandboxes[slot];
    if (sandbox !== null) sandbox.name = name;
  }
}

/** A new process: what was in memory is gone. */
function begin(sandbox: Sandbox): Answer {
  sandbox.state = 'running';
  sandbox.startCount += 1;
  sandbox.memory = false;
  return DONE;
}

const slot = fc.constantFrom(...SLOTS);
const key = fc.constantFrom(...KEYS);
const by = fc.constantFrom('api' as const, 'process' as const);
const each = <const T extends Op['do']>(what: T) => fc.record({ do: fc.constant(what), slot });

const op: fc.Arbitrary<Op> = fc.oneof(
  { weight: 3, arbitrary: fc.record({ do: fc.constant('create' as const), slot, start: fc.boolean() }) },
  { weight: 4, arbitrary: each('start') },
  { weight: 2, arbitrary: each('stop') },
  { weight: 1, arbitrary: each('restart') },
  { weight: 3, arbitrary: each('pause') },
  { weight: 3, arbitrary: each('resume') },
  { weight: 1, arbitrary: each('crash') },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('delete' as const), slot, force: fc.boolean() }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('rename' as const), slot, name: fc.constantFrom('model-x', 'model-y') }) },
  { weight: 4, arbitrary: fc.record({ do: fc.constant('write' as const), slot, key, text: fc.stringMatching(/^[a-z]{0,12}$/), by }) },
  { weight: 4, arbitrary: fc.record({ do: fc.constant('read' as const), slot, key, by }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('remove' as const), slot, key }) },
  { weight: 1, arbitrary: each('scratch') },
  { weight: 2, arbitrary: each('scratched') },
  { weight: 1, arbitrary: fc.constant({ do: 'daemon-killed' as const }) },
);

/** Begins with a sandbox that runs: most of what can go wrong needs one. */
export const sequence = (operationsMax: number): fc.Arbitrary<readonly Op[]> =>
  fc.array(op, { minLength: 2, maxLength: operationsMax }).map((ops) => [{ do: 'create', slot: 0, start: true }, ...ops]);
