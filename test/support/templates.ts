// Each daemon of the tests has a home of its own, and would boot a machine of its own before its first sandbox. One that was
// booted for another test is copied instead: its key names all that it depends on, and a copy is hashed whole before it is used.
// Tests of the building itself do not come here.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';

const KEPT = join(import.meta.dirname, '../../dist.tests/templates');
const KEY = /^[0-9a-f]{40}$/;
/** Of older checkouts the rest; each is some 70 MB. */
const KEPT_MAX = 4;

const keysIn = (dir: string): string[] => {
  try {
    return readdirSync(dir).filter((name) => KEY.test(name));
  } catch {
    return []; // none was made yet
  }
};

/** Puts what is kept into a home that has no templates. Best effort: what is not there is built. */
export function seedTemplates(home: string, kept: string = KEPT): void {
  const dir = join(home, 'data/templates');
  const keys = keysIn(kept);
  if (keys.length === 0 || keysIn(dir).length > 0) return;
  mkdirSync(dir, { recursive: true, mode: 0o711 });
  for (const key of keys) copy(join(kept, key), join(dir, key));
}

/** Sandboxes of it come from templates, and it has none. */
export function lacksTemplates(home: string): boolean {
  return existsSync(join(home, 'data/templates')) && keysIn(join(home, 'data/templates')).length === 0;
}

/** Keeps what a daemon that nobody has harmed yet has built. */
export function keepTemplates(home: string): void {
  const known = new Set(keysIn(KEPT));
  for (const key of keysIn(join(home, 'data/templates'))) if (!known.has(key)) keep(join(home, 'data/templates', key), key);
}

function keep(from: string, key: string): void {
  mkdirSync(KEPT, { recursive: true });
  for (const old of keysIn(KEPT).slice(KEPT_MAX - 1)) rmSync(join(KEPT, old), { recursive: true, force: true });
  const staging = mkdtempSync(join(KEPT, '.new-'));
  if (copy(from, join(staging, key))) {
    try {
      renameSync(join(staging, key), join(KEPT, key));
    } catch {
      // Another worker was first.
    }
  }
  rmSync(staging, { recursive: true, force: true });
}

/** Whole or not at all; the zeros of a memory take no room. */
function copy(from: string, to: string): boolean {
  const { status } = spawnSync('cp', ['-a', '--sparse=always', from, to]);
  if (status !== 0) rmSync(to, { recursive: true, force: true });
  return status === 0;
}
