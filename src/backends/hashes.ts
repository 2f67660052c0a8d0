// Checksums of big sparse files (rust/imprint): of what is in them and where, without reading their holes.
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';

const HASH_MS = 10 * 60_000;
const SAID_CHARS_MAX = 400;

/** Of each file, over everything in it. */
export async function hashes(op: Operation, host: Host, program: string, paths: readonly string[]): Promise<readonly string[]> {
  if (paths.length === 0) return [];
  using limited = op.within(HASH_MS, 'checking what is stored');
  const { exitCode, stdout, stderr } = await host.run(limited, [program, 'hash', ...paths]);
  if (exitCode === 0) return new TextDecoder().decode(stdout).trim().split('\n');
  const said = new TextDecoder()
    .decode(stderr)
    .trim()
    .replace(/^hutch-imprint: /, '');
  throw op.error('unavailable', `what is stored cannot be read: ${said.slice(-SAID_CHARS_MAX)}`);
}
