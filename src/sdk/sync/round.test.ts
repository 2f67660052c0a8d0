import { appendFile, mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import type { Guest } from './guest.ts';
import { Here } from './here.ts';
import type { Memory } from './memory.ts';
import { Round, type SyncEvent } from './round.ts';
import { decide, type Node, type Tree } from './tree.ts';

const DIRECTIONS = { twoWay: true, removes: false } as const;
const FILE = { type: 'file', size: 5, mode: 0o644, mtimeMs: 1_700_000_000_000 } as const satisfies Node;

/** A sandbox that has one file, `work`, and forgets what it is given. */
function sandboxWith(content: string): Guest {
  const guest: Pick<Guest, 'at' | 'as' | 'scan'> & { readonly files: unknown } = {
    at: (path) => `/there/${path}`,
    as: {},
    async scan(_path: string, tree: Tree) {
      tree.set('work', FILE);
    },
    files: { readStream: async () => bytesOf(content) },
  };
  return guest as unknown as Guest;
}

async function* bytesOf(content: string): AsyncGenerator<Uint8Array> {
  yield Buffer.from(content);
}

test('an edit of a file that has just come down is seen as ours by the next look, not taken for what came', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'hutch-round-'));
  onTestFinished(() => rm(dir, { recursive: true, force: true }));
  await using here = await Here.open(dir, { isIgnored: () => false, onSkipped: () => {} });
  const write = here.write.bind(here);
  let edits = 0;
  // An editor that saves in the moment after the file was put in place.
  here.write = async (...args) => {
    const put = await write(...args);
    edits += 1;
    await appendFile(join(dir, 'work'), ', and mine');
    return put;
  };
  const memory: Memory = new Map();
  const told: SyncEvent[] = [];
  const round = new Round({
    ...{ here, guest: sandboxWith('hello'), memory, directions: DIRECTIONS, fileBytesMax: 1_000_000, dryRun: false },
    ...{ signal: new AbortController().signal, watcher: null, tell: async (event) => void told.push(event) },
  });
  await round.run(null);
  expect(told).toEqual([{ type: 'down', path: 'work', bytes: 5 }]);
  expect(await readFile(join(dir, 'work'), 'utf8')).toBe('hello, and mine');
  expect(edits).toBe(1);
  // The sandbox has not changed it since: so the edit goes up, and is not lost to what comes down next.
  const next = { here: await here.look('work'), guest: FILE };
  expect(decide(memory.get('work') ?? null, next, DIRECTIONS)).toBe('up');
});
