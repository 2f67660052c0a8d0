// What both sides were when they were last alike, kept between runs: only so can a removal be told from something that is new.
import { createHash } from 'node:crypto';
import { chmod, mkdir, readFile, rename, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { Node, Sides } from './tree.ts';

export type Memory = Map<string, Sides>;

const VERSION = 1;

/** One for each sandbox, directory here and directory there. */
export function memoryPath(dir: string, ...what: readonly string[]): string {
  return join(dir, `${createHash('sha256').update(JSON.stringify(what)).digest('hex').slice(0, 32)}.json`);
}

/** One that cannot be read is none: then nothing is removed, and what differs is a conflict. */
export async function readMemory(path: string | null): Promise<Memory> {
  if (path === null) return new Map();
  try {
    const { version, entries } = JSON.parse(await readFile(path, 'utf8')) as { version?: unknown; entries?: unknown };
    if (version !== VERSION || !Array.isArray(entries)) return new Map();
    return new Map(entries.map(([at, here, guest]: [string, Node | null, Node | null]) => [at, { here, guest }]));
  } catch {
    return new Map();
  }
}

export async function writeMemory(path: string | null, memory: Memory): Promise<void> {
  if (path === null) return;
  await mkdir(dirname(path), { recursive: true, mode: 0o700 });
  const beside = `${path}.${process.pid}`;
  const entries = [...memory].map(([at, { here, guest }]) => [at, here, guest]);
  await writeFile(beside, JSON.stringify({ version: VERSION, entries }), { mode: 0o600 });
  await chmod(beside, 0o600);
  await rename(beside, path);
}
