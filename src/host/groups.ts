// The groups that this process is in, from the kernel: what Node asks for is the same, and cannot be chosen by a test.
import type { Host } from './host.ts';
import type { Operation } from './operation.ts';

const STATUS_BYTES_MAX = 64 * 1024;

/** In order, the own one among them. */
export async function ownGroups(op: Operation, host: Pick<Host, 'readFile' | 'gid'>): Promise<readonly number[]> {
  const status = new TextDecoder().decode(await host.readFile(op, '/proc/self/status', STATUS_BYTES_MAX));
  const listed = /^Groups:[ \t]*([\d ]*)$/m.exec(status)?.[1]?.trim() ?? '';
  const others = listed === '' ? [] : listed.split(/ +/).map(Number);
  return [...new Set([host.gid, ...others])].sort((left, right) => left - right);
}
