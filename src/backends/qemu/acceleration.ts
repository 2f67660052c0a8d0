// What runs guest code: KVM where a guest really runs under it, else software emulation. /dev/kvm can
// exist, open and answer, and still run nothing: so a small guest is run, as the user that sandboxes
// run as, under a deadline. The answer is kept for this boot of the host, this QEMU, and who may open the device.
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { z } from 'zod';
import { HutchError } from '../../domain/errors.ts';
import { ownGroups } from '../../host/groups.ts';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import { RUNS_NOTHING_AS_ROOT } from '../backend.ts';
import { describe, tailOf } from '../dead.ts';
import { type Acceleration, type Owner, type QemuConfig, RELEASE_MS } from './config.ts';
import type { Emulator } from './emulator.ts';
import { accelerationArgs, SANDBOX_ARGS } from './machine.ts';
import { PROBE_EXIT_CODE, probeBios } from './probe-guest.ts';
import { killVmm, startVmm, vmmEnded } from './vmm.ts';

const KVM_DEVICE = '/dev/kvm';
/** How long the small guest may take under KVM: at least this, and this many times as long as it took under emulation here. */
const PROBE_MS_MIN = 3_000;
const PROBE_SLOWDOWN_MAX = 5;
const EMULATED_PROBE_MS = 20_000;
const ANSWER_FILE = 'acceleration.json';
const ANSWER_BYTES_MAX = 16 * 1024;

export type Accelerated = {
  readonly acceleration: Acceleration;
  /** Why it is not KVM, where it is not. */
  readonly why: string | null;
};

const answerSchema = z.strictObject({
  bootId: z.string().max(64),
  emulator: z.string().max(256),
  device: z.string().max(4096),
  acceleration: z.enum(['kvm', 'tcg']),
  why: z.string().max(4096).nullable(),
});

/** Says what to use; asks the machine at most once for each boot and QEMU. */
export async function findAcceleration(op: Operation, config: QemuConfig, emulator: Emulator): Promise<Accelerated> {
  const { host, workDir } = config;
  if (config.acceleration === 'kvm' || config.acceleration === 'tcg')
    return { acceleration: config.acceleration, why: 'the configuration says so' };
  const question = await questionOf(op, config, emulator);
  const path = join(workDir, ANSWER_FILE);
  const known = await readAnswer(op, host, path);
  if (known !== null && isDeepStrictEqual(question, { bootId: known.bootId, emulator: known.emulator, device: known.device })) return known;
  const why = await whyNoKvm(op, config, emulator);
  const answer: Accelerated = { acceleration: why === null ? 'kvm' : 'tcg', why };
  await keepAnswer(op, host, path, { ...question, ...answer });
  return answer;
}

/** Remembers that a real kernel did not boot under KVM, though the small guest ran. */
export async function giveUpKvm(op: Operation, config: QemuConfig, emulator: Emulator, why: string): Promise<void> {
  await keepAnswer(op, config.host, join(config.workDir, ANSWER_FILE), {
    ...(await questionOf(op, config, emulator)),
    acceleration: 'tcg',
    why: why.slice(0, 1_000),
  });
}

type Question = Pick<z.infer<typeof answerSchema>, 'bootId' | 'emulator' | 'device'>;

/** What the answer depends on: who may open the device changes without a boot, by the command that `doctor` names. */
async function questionOf(op: Operation, { host, templateOwner }: QemuConfig, emulator: Emulator): Promise<Question> {
  const device = await host.stat(op, KVM_DEVICE);
  const may = device === null ? 'none' : `${(device.mode & 0o777).toString(8)} ${device.uid}:${device.gid}`;
  const asWhom = templateOwner == null ? (await ownGroups(op, host)).join(',') : templateOwner.uid;
  return { bootId: host.bootId(), emulator: `${emulator.path} ${emulator.version}`, device: `${may} as ${asWhom}` };
}

/**
 * As whom a VMM can open /dev/kvm: the group that owns it lets it in where others may not. Null: as
 * nobody but root.
 */
export async function kvmOwner(op: Operation, host: Host, runAs: Owner): Promise<Owner | null> {
  const device = await host.stat(op, KVM_DEVICE);
  if (device === null) return null;
  if ((device.mode & 0o006) === 0o006 || runAs.uid === 0) return runAs;
  return (device.mode & 0o060) === 0o060 ? { uid: runAs.uid, gid: device.gid } : null;
}

async function whyNoKvm(op: Operation, config: QemuConfig, emulator: Emulator): Promise<string | null> {
  const { host } = config;
  if ((await host.stat(op, KVM_DEVICE)) === null) return 'there is no /dev/kvm';
  const owner = config.templateOwner ?? null;
  const runAs = owner === null ? null : await kvmOwner(op, host, owner);
  // Sandboxes cannot have it; whether it would help them to have it is told, so that nobody opens it in vain.
  const closed = owner !== null && runAs === null ? "/dev/kvm is root's alone: neither its group nor others may use it" : null;
  // A slow or busy machine is no machine without KVM: emulation, which always works, sets the measure.
  const beganMs = host.monotonicMs();
  await runProbeGuest(op, config, emulator, runAs, 'tcg', EMULATED_PROBE_MS);
  const allowedMs = Math.max(PROBE_MS_MIN, Math.ceil(PROBE_SLOWDOWN_MAX * (host.monotonicMs() - beganMs)));
  const why = await runProbeGuest(op, config, emulator, runAs, 'kvm', allowedMs);
  if (closed === null) return why;
  return why === null ? closed : `${closed}, and ${RUNS_NOTHING_AS_ROOT}`;
}

/** Null when the small guest ran to its end; else why not. */
async function runProbeGuest(
  op: Operation,
  config: QemuConfig,
  emulator: Emulator,
  runAs: Owner | null,
  acceleration: Acceleration,
  allowedMs: number,
): Promise<string | null> {
  const { host } = config;
  await using undo = new AsyncDisposableStack();
  const runDir = join(config.workDir, `probe-${Buffer.from(host.randomBytes(8)).toString('hex')}`);
  undo.defer(async () => {
    using late = op.releasing(RELEASE_MS);
    await killVmm(late, host, runDir, 'now');
    await host.remove(late, runDir);
  });
  await host.makeDir(op, runDir, 0o711);
  await host.writeFileAtomic(op, join(runDir, 'bios'), probeBios(), 0o444);
  const logPath = join(runDir, 'vmm.log');
  try {
    using limited = op.within(allowedMs, 'a guest of a few instructions');
    await startVmm(limited, host, config.shimPath, {
      ...{ runDir, cwd: runDir, logPath, consolePath: join(runDir, 'console.log'), runAs, beside: null, env: {} },
      argv: [
        emulator.path,
        ...[
          '-M',
          'microvm',
          ...accelerationArgs(acceleration),
          '-m',
          'size=16M',
          '-nodefaults',
          '-no-user-config',
          '-display',
          'none',
          '-no-reboot',
        ],
        ...['-bios', 'bios', '-device', 'isa-debug-exit,iobase=0xf4,iosize=4', ...SANDBOX_ARGS],
      ],
    });
    const end = await vmmEnded(limited, host, runDir);
    if (end.exitCode === PROBE_EXIT_CODE) return null;
    return `/dev/kvm is there but runs no guest: QEMU ended with ${describe(end)}: ${await tailOf(op, host, logPath)}`;
  } catch (error) {
    if (op.signal.aborted || !(error instanceof HutchError)) throw error;
    if (error.code === 'deadline_exceeded') return `/dev/kvm is there but a guest of a few instructions hung under it for ${allowedMs} ms`;
    return `/dev/kvm is there but QEMU cannot use it: ${error.message}`;
  }
}

async function readAnswer(op: Operation, host: Host, path: string): Promise<z.infer<typeof answerSchema> | null> {
  if ((await host.stat(op, path)) === null) return null;
  try {
    return answerSchema.parse(JSON.parse(new TextDecoder().decode(await host.readFile(op, path, ANSWER_BYTES_MAX))));
  } catch (cause) {
    if (op.signal.aborted) throw cause;
    op.log.warn({ path, cause }, 'the kept answer about acceleration cannot be read; the machine is asked again');
    return null;
  }
}

async function keepAnswer(op: Operation, host: Host, path: string, answer: z.infer<typeof answerSchema>): Promise<void> {
  await host.makeDir(op, join(path, '..'), 0o711);
  await host.writeFileAtomic(op, path, `${JSON.stringify(answer)}\n`, 0o600);
}
