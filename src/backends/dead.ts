// What is said of a process that ended, and where its last words are.
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import type { ProcessEvidence } from './backend.ts';

export type Dead = ProcessEvidence & { readonly alive: false };

export function describe(dead: Dead): string {
  if (dead.oomKilled) return 'out of memory';
  if (dead.signal !== null) return `signal ${dead.signal}`;
  return dead.exitCode === null ? dead.proof : `exit code ${dead.exitCode}`;
}

const TAIL_BYTES = 2_000;
const TAIL_LINES = 6;

/** The end of a log, in one line. Guest text is in it: what could act on a terminal is taken out. */
export async function tailOf(op: Operation, host: Host, path: string): Promise<string> {
  const info = await host.stat(op, path);
  if (info === null || info.type !== 'file') return '';
  const bytes = await host.readRange(op, path, Math.max(0, info.sizeBytes - TAIL_BYTES), TAIL_BYTES);
  const lines = new TextDecoder()
    .decode(bytes)
    .replaceAll(/[^\n\x20-\x7e]/g, '')
    .split('\n')
    .map((line) => line.trim());
  return lines
    .filter((line) => line !== '')
    .slice(-TAIL_LINES)
    .join(' | ');
}
