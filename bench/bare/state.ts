// The state of a guest in which a program has touched much memory, written down without Hutch: the memory as one flat file, the
// devices as QEMU saves them, the disk as it is. A restore of it by the bare script is what forks and resumes are held against.

import { once } from 'node:events';
import { closeSync, ftruncateSync, mkdtempSync, openSync, readFileSync, readSync, statSync, writeFileSync, writeSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { IGNORE_SHARED } from '../../src/backends/qemu/control.ts';
import { mustRun } from '../place.ts';
import { type BareTemplate, restoreBare } from './restore.ts';
import { BareQmp } from './vm.ts';

const PIECE = 1024 * 1024;

/** `argv` must come to its end once its memory is touched, and leave behind what holds it. */
export async function stateOf(template: BareTemplate, argv: readonly string[]): Promise<BareTemplate> {
  if (template.memory !== 'preload') throw new Error('this QEMU saves no state without its memory');
  const dir = mkdtempSync(join(template.workDir, 's'));
  await using restored = await restoreBare(template);
  const { code } = await restored.agent.run(argv);
  if (code !== 0) throw new Error(`what touches memory ended with ${code}`);
  using qmp = new BareQmp(await restored.socket('qmp.sock'));
  void qmp.execute('qmp_capabilities');
  void qmp.execute('migrate-set-capabilities', IGNORE_SHARED);
  await qmp.execute('stop');
  const chunks: Buffer[] = [];
  const server = createServer((peer) => peer.on('data', (chunk) => chunks.push(chunk)));
  const path = join(restored.dir, 'saved.sock');
  await once(server.listen(path), 'listening');
  await qmp.execute('migrate', { uri: 'unix:saved.sock' });
  await qmp.migrated;
  server.close();
  await once(server, 'close');
  writeFileSync(join(dir, 'state'), Buffer.concat(chunks));
  const memoryPath = join(dir, 'memory');
  copyMemory(restored.pid, template, memoryPath);
  const diskPath = join(dir, 'disk');
  await mustRun(['cp', '--sparse=always', restored.diskPath, diskPath]);
  return { ...template, dir, memoryPath, diskPath, env: { ...template.env, HUTCH_READONLY: memoryPath } };
}

/** As the process has it, written and unwritten; pages of zeros are holes. */
function copyMemory(pid: number, { memoryPath, machine }: BareTemplate, into: string): void {
  const { ino } = statSync(memoryPath);
  const zeros = Buffer.alloc(PIECE);
  const piece = Buffer.alloc(PIECE);
  const from = openSync(`/proc/${pid}/mem`, 'r');
  const to = openSync(into, 'w');
  try {
    ftruncateSync(to, machine.memoryMiB * 2 ** 20);
    for (const line of readFileSync(`/proc/${pid}/maps`, 'utf8').split('\n')) {
      const [range = '', , offset = '0', , inode] = line.split(/\s+/);
      if (Number(inode) !== ino) continue;
      const [begin = 0, end = 0] = range.split('-').map((word) => Number.parseInt(word, 16));
      for (let at = begin; at < end; at += PIECE) {
        const length = Math.min(PIECE, end - at);
        if (readSync(from, piece, 0, length, at) !== length) throw new Error('the memory of the bare guest cannot be read');
        if (piece.subarray(0, length).equals(zeros.subarray(0, length))) continue;
        writeSync(to, piece, 0, length, Number.parseInt(offset, 16) + at - begin);
      }
    }
  } finally {
    closeSync(from);
    closeSync(to);
  }
}
