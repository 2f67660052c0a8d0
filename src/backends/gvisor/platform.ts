// How the runtime runs a sandbox's code: the best way that really does here. A way can be offered and
// hang, so a program is run by each in turn, under a deadline. The answer is kept for this boot of the
// host, this runtime, and who may open /dev/kvm.
import { basename, dirname, join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { z } from 'zod';
import { HutchError } from '../../domain/errors.ts';
import { ownGroups } from '../../host/groups.ts';
import type { Operation } from '../../host/operation.ts';
import { type GvisorConfig, RELEASE_MS } from './config.ts';
import type { Rights } from './rights.ts';
import type { Runtime } from './runtime.ts';

/** A way that works takes a tenth of this on a busy machine. */
const PROBE_MS = 10_000;
const KVM_DEVICE = '/dev/kvm';
const ANSWER_FILE = 'gvisor-platform.json';
const ANSWER_BYTES_MAX = 16 * 1024;
const WHY_CHARS_MAX = 400;
/** How `hutch-cell --look` ends. */
const LOOKED: Readonly<Record<number, Looked>> = {
  0: { automount: 'taken', processes: 'counted' },
  3: { automount: 'refused', processes: 'counted' },
  4: { automount: 'taken', processes: 'missed' },
  5: { automount: 'refused', processes: 'missed' },
};

export type Platform = {
  readonly name: string;
  /** Why not a better one: one sentence each. */
  readonly notes: readonly string[];
  /** Older releases refuse a flag that `ls -l` sets; then a library goes with every sandbox that leaves it out. */
  readonly automount: 'taken' | 'refused';
  /** Newer releases count them and let nearly every one begin that is too many. */
  readonly processes: 'counted' | 'missed';
};

type Looked = Pick<Platform, 'automount' | 'processes'>;

const answerSchema = z.strictObject({
  bootId: z.string().max(64),
  runtime: z.string().max(4096),
  device: z.string().max(4096),
  name: z.string().max(32),
  notes: z.array(z.string().max(1024)).max(8),
  automount: z.enum(['taken', 'refused']),
  processes: z.enum(['counted', 'missed']),
});

/** @throws HutchError `failed_precondition` when none runs a program here. */
export async function findPlatform(op: Operation, config: GvisorConfig, runtime: Runtime, rights: Rights): Promise<Platform> {
  const { host, workDir } = config;
  const kvm = await host.stat(op, KVM_DEVICE);
  // Who may open it changes without a boot, by the command that `doctor` names.
  const device = kvm === null ? 'none' : `${(kvm.mode & 0o777).toString(8)} ${kvm.uid}:${kvm.gid} as ${await ownGroups(op, host)}`;
  const question = { bootId: host.bootId(), runtime: `${runtime.path} ${runtime.version}`, device };
  const path = join(workDir, ANSWER_FILE);
  const known = await readAnswer(op, config, path);
  if (known !== null && isDeepStrictEqual(question, { bootId: known.bootId, runtime: known.runtime, device: known.device })) return known;
  const notes: string[] = [];
  for (const name of runtime.platforms) {
    const found = await tryOut(op, config, runtime, rights, name);
    if ('why' in found) {
      notes.push(`not ${name}: ${found.why}`);
      continue;
    }
    const answer = { name, notes, ...found };
    await host.makeDir(op, workDir, 0o711);
    await host.writeFileAtomic(op, path, `${JSON.stringify({ ...question, ...answer })}\n`, 0o600);
    return answer;
  }
  throw op.error('failed_precondition', `runsc runs no program here: ${notes.join('; ')}`, { hint: 'see: hutch doctor' });
}

/** Runs a program of ours to its end, which tells by its code what the kernel in user space is like. */
async function tryOut(
  op: Operation,
  config: GvisorConfig,
  runtime: Runtime,
  rights: Rights,
  platform: string,
): Promise<Looked | { readonly why: string }> {
  const { host, cellPath } = config;
  if (platform === 'kvm') {
    if ((await host.stat(op, KVM_DEVICE)) === null) return { why: 'there is no /dev/kvm' };
    // A runtime that hangs under it burns a processor until the deadline: what is known already is not tried again.
    const why = await config.whyNoKvm(op);
    if (why !== null) return { why };
  }
  const name = `probe-${Buffer.from(host.randomBytes(8)).toString('hex')}`;
  const dir = join(config.workDir, name);
  await using undo = new AsyncDisposableStack();
  undo.defer(async () => {
    using late = op.releasing(RELEASE_MS);
    await host.remove(late, dir);
  });
  await host.makeDir(op, join(dir, 'root'), 0o711);
  await host.writeFileAtomic(op, join(dir, 'config.json'), JSON.stringify(probeConfig(cellPath)), 0o600);
  const options = ['--root', join(dir, 'state'), `--platform=${platform}`, '--network=none'];
  const unlimited = [...runtime.always, ...(runtime.canIgnoreCgroups ? ['--ignore-cgroups'] : [])];
  try {
    using limited = op.within(PROBE_MS, 'a program of a moment');
    const argv = rights.argv([runtime.path, ...options, ...unlimited, 'run', '-bundle', dir, name]);
    const { exitCode, stderr } = await host.run(limited, argv);
    return LOOKED[exitCode] ?? { why: lastLine(stderr) || `it ended with ${exitCode}` };
  } catch (error) {
    if (op.signal.aborted || !(error instanceof HutchError)) throw error;
    return { why: error.code === 'deadline_exceeded' ? `a program of a moment hung under it for ${PROBE_MS / 1_000} s` : error.message };
  }
}

function probeConfig(cellPath: string): object {
  const capabilities = Object.fromEntries(
    ['bounding', 'effective', 'permitted'].map((set) => [set, ['CAP_SYS_ADMIN', 'CAP_DAC_OVERRIDE']]),
  );
  return {
    ociVersion: '1.0.2',
    process: { user: { uid: 0, gid: 0 }, args: [`/${basename(cellPath)}`, '--look'], env: [], cwd: '/', capabilities },
    root: { path: dirname(cellPath), readonly: true },
    linux: { namespaces: ['pid', 'ipc', 'uts', 'mount', 'network'].map((type) => ({ type })) },
  };
}

function lastLine(bytes: Uint8Array): string {
  const text = new TextDecoder().decode(bytes).replaceAll(/[^\n\x20-\x7e]/g, '');
  return (text.trim().split('\n').at(-1) ?? '').slice(0, WHY_CHARS_MAX);
}

async function readAnswer(op: Operation, { host }: GvisorConfig, path: string): Promise<z.infer<typeof answerSchema> | null> {
  if ((await host.stat(op, path)) === null) return null;
  try {
    return answerSchema.parse(JSON.parse(new TextDecoder().decode(await host.readFile(op, path, ANSWER_BYTES_MAX))));
  } catch (cause) {
    if (op.signal.aborted) throw cause;
    op.log.warn({ path, cause }, 'the kept answer about platforms cannot be read; the machine is asked again');
    return null;
  }
}
