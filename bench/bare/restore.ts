// The bare script that starting a sandbox is held against: QEMU loads the same template, the guest
// runs one program, its end is seen, QEMU is killed.
import { closeSync, ftruncateSync, mkdtempSync, openSync, readFileSync, writeSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { IGNORE_SHARED } from '../../src/backends/qemu/control.ts';
import { type MachineShape, type MemoryOpening, machineArgs } from '../../src/backends/qemu/machine.ts';
import { mustRun } from '../place.ts';
import { BareAgent } from './agent.ts';
import { BareQmp, BareVm } from './vm.ts';

export type BareTemplate = {
  readonly qemu: string;
  readonly machine: MachineShape;
  readonly memory: MemoryOpening;
  /** Where memory, state and disk lie. */
  readonly dir: string;
  readonly memoryPath: string;
  readonly disk: { readonly sizeBytes: number; readonly pieces: readonly (readonly [offset: number, bytes: number])[] };
  /** In place of those pieces: a disk as it was, whole. */
  readonly diskPath?: string;
  readonly imagePath: string;
  /** Has the library that maps the memory privately, where QEMU cannot. */
  readonly env: Readonly<Record<string, string>>;
  /** For the runs' directories. */
  readonly workDir: string;
};

export type Restored = AsyncDisposable & {
  readonly pid: number;
  readonly agent: BareAgent;
  readonly dir: string;
  readonly diskPath: string;
  /** One of its sockets, by name. */
  socket(name: string): Promise<Socket>;
};

/** A restored machine whose guest can run programs: in the template its root was there already. */
export async function restoreBare(template: BareTemplate): Promise<Restored> {
  await using undo = new AsyncDisposableStack();
  const dir = mkdtempSync(join(template.workDir, 'b'));
  undo.defer(() => rm(dir, { recursive: true, force: true }));
  const diskPath = join(dir, 'disk');
  if (template.diskPath === undefined) layDisk(template, diskPath);
  else await mustRun(['cp', '--sparse=always', template.diskPath, diskPath]);
  const files = {
    memoryPath: template.memoryPath,
    imagePath: template.imagePath,
    disks: { vdb: diskPath, vdc: null },
    volumes: [],
    filesSocket: null,
  };
  const argv = machineArgs(template.machine, files, { kind: 'unconnected' }, { kind: 'restore', memory: template.memory });
  const vm = undo.use(new BareVm(dir, [template.qemu, ...argv], template.env));
  using qmp = new BareQmp(await vm.socket('qmp.sock'));
  void qmp.execute('qmp_capabilities');
  void qmp.execute('migrate-set-capabilities', IGNORE_SHARED);
  await qmp.execute('migrate-incoming', { uri: 'unix:incoming.sock' });
  const [state, port] = await Promise.all([vm.socket('incoming.sock'), vm.socket('agent.sock')]);
  state.end(readFileSync(join(template.dir, 'state')));
  await qmp.migrated;
  void qmp.execute('cont');
  const agent = undo.use(await BareAgent.connect(port));
  const owned = undo.move();
  return { pid: vm.pid, agent, dir, diskPath, socket: (name) => vm.socket(name), [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

/** The template's disk as it was when the memory was saved: some pieces in a hole. */
function layDisk({ dir, disk }: BareTemplate, path: string): void {
  const content = readFileSync(join(dir, 'disk'));
  const fd = openSync(path, 'w');
  try {
    ftruncateSync(fd, disk.sizeBytes);
    let at = 0;
    for (const [offset, bytes] of disk.pieces) {
      writeSync(fd, content, at, bytes, offset);
      at += bytes;
    }
  } finally {
    closeSync(fd);
  }
}

/** All of the script. */
export async function bareRun(template: BareTemplate): Promise<void> {
  await using restored = await restoreBare(template);
  const { code } = await restored.agent.run(['/bin/true']);
  if (code !== 0) throw new Error(`/bin/true ended with ${code}`);
}
