// The daemon's log on a bad day: its disk is full. In a process of its own, since what went wrong here once hung the process.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';

const SCRIPT = `
  import { openLog } from ${JSON.stringify(join(import.meta.dirname, 'log.ts'))};
  import { nodeHost } from ${JSON.stringify(join(import.meta.dirname, '../host/node-host.ts'))};
  import { newOperation } from ${JSON.stringify(join(import.meta.dirname, '../host/operation.ts'))};
  const silent = { debug() {}, info() {}, warn() {}, error() {}, child: () => silent };
  const op = newOperation({ id: 'op-000000000000', actor: 'daemon', log: silent });
  const { log, close } = await openLog({ level: 'info', to: 'file', path: process.argv[1], host: nodeHost(), op });
  for (let line = 0; line < 100; line += 1) {
    log.info({ line }, 'a line');
    await new Promise((resolve) => setImmediate(resolve));
  }
  close();
  await new Promise((resolve) => setTimeout(resolve, 50));
  process.stdout.write('it goes on');
`;

function logged(path: string) {
  const { stdout, status, signal } = spawnSync(process.execPath, ['--input-type=module', '-e', SCRIPT, path], {
    stdio: ['ignore', 'pipe', 'inherit'],
    timeout: 30_000,
    killSignal: 'SIGKILL',
  });
  return [stdout.toString(), status, signal];
}

test('a log whose disk is full neither ends the daemon nor holds up its end', () => {
  expect(logged('/dev/full')).toEqual(['it goes on', 0, null]);
  const dir = mkdtempSync(join(tmpdir(), 'hutch-log-'));
  try {
    expect(logged(join(dir, 'log'))).toEqual(['it goes on', 0, null]);
    const lines = readFileSync(join(dir, 'log'), 'utf8').trim().split('\n');
    expect(lines.map((line) => (JSON.parse(line) as { line: number }).line)).toEqual(Array.from({ length: 100 }, (_, at) => at));
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
});
