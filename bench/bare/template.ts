// The template that a daemon uses, for the bare script to restore the same one. What it is, is read
// off the command line of a sandbox that runs: so the two cannot differ.
import { mkdirSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { Acceleration } from '../../src/backends/qemu/config.ts';
import { type Place, ROOT } from '../place.ts';
import type { BareTemplate } from './restore.ts';

/** `memoryMiB`: of the sandbox, in place of what is usual. No other may run there. */
export async function templateOf(place: Place, memoryMiB?: number): Promise<BareTemplate> {
  const create = () => place.hutch.create({ network: 'none', ...(memoryMiB === undefined ? {} : { memoryMiB }) });
  // The first of its kind boots by itself; the next one comes from the template, and waits until that is there.
  await (await create())[Symbol.asyncDispose]();
  await using _sandbox = await create();
  const [machine] = place.machines();
  if (machine === undefined) throw new Error('a sandbox was made, but no QEMU of it is to be seen');
  const argv = readFileSync(`/proc/${machine.vmm}/cmdline`, 'utf8').split('\0');
  const after = (flag: string): string => argv[argv.indexOf(flag) + 1] ?? '';
  const memory = JSON.parse(after('-object')) as { 'mem-path': string; size: number; readonly?: boolean };
  const image = JSON.parse(after('-blockdev')) as { file: { filename: string } };
  const workDir = join(place.home, 'bare');
  mkdirSync(workDir, { recursive: true });
  const dir = dirOf(place, memory['mem-path']);
  const memoryPath = join(dir, 'memory');
  const preload = { LD_PRELOAD: join(ROOT, 'prebuilt', 'x86_64', 'hutch-readonly.so'), HUTCH_READONLY: memoryPath };
  const manifest = JSON.parse(readFileSync(join(dir, 'manifest.json'), 'utf8')) as Pick<BareTemplate, 'disk'>;
  return {
    dir,
    disk: manifest.disk,
    qemu: argv[0] ?? '',
    machine: {
      acceleration: after('-accel').split(',')[0] as Acceleration,
      cpus: Number(after('-smp').replace('cpus=', '')),
      memoryMiB: memory.size / 2 ** 20,
      volumes: 0,
      directories: false,
    },
    memory: memory.readonly === true ? 'read-only' : 'preload',
    memoryPath,
    imagePath: image.file.filename,
    env: memory.readonly === true ? {} : preload,
    workDir,
  };
}

/** A sandbox has its template's memory under a name of its own: it is the same file. */
function dirOf(place: Place, memoryPath: string): string {
  const templates = join(place.dataDir, 'templates');
  const { ino } = statSync(memoryPath);
  const own = readdirSync(templates).find((name) => statSync(join(templates, name, 'memory'), { throwIfNoEntry: false })?.ino === ino);
  if (own === undefined) throw new Error(`no template in ${templates} has the memory ${memoryPath}`);
  return join(templates, own);
}
