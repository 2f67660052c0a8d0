// Directories of this machine and volumes that sandboxes see. Which ones may be, is decided when a sandbox is made, of the directory that
// is really meant: without symlinks, and never what is Hutch's own or the machine's. Before each start it is looked at again.

import type { Backend, Mounted } from '../backends/backend.ts';
import { HutchError } from '../domain/errors.ts';
import { isWithin, type Mount, targetRefusal, targetsRefusal, type WantedMount } from '../domain/mount.ts';
import type { SandboxSpec } from '../domain/sandbox.ts';
import { VOLUMES_MAX } from '../domain/volume.ts';
import type { Operation } from '../host/operation.ts';
import type { Call } from './call.ts';
import type { Claims } from './claims.ts';
import type { Deps } from './deps.ts';
import { findVolume } from './volumes.ts';

/** Whoever writes there has the machine, or what the kernel shows is no directory of files. */
const NEVER = ['/proc', '/sys', '/dev', '/run', '/etc', '/boot', '/var/run', '/var/lib/docker', '/var/lib/containerd'];

const RULES_SHOWN_MAX = 4;

type Needs = Pick<Deps, 'host' | 'settings' | 'places' | 'store'>;

/** As they are kept with the sandbox. @throws HutchError that names the one that cannot be had, and why. */
export async function resolveMounts(
  deps: Needs,
  call: Call,
  claims: Claims,
  backend: Backend,
  wanted: readonly WantedMount[],
): Promise<readonly Mount[]> {
  const { op } = call;
  const isVolume = ({ source }: WantedMount): boolean => !source.startsWith('/');
  if (wanted.some((mount) => !isVolume(mount))) await claims.need(op, backend, 'hostDirectories');
  if (wanted.some(isVolume)) await claims.need(op, backend, 'volumes');
  if (wanted.filter(isVolume).length > VOLUMES_MAX)
    throw op.error('invalid_argument', `mounts: a sandbox has at most ${VOLUMES_MAX} volumes`);
  const together = targetsRefusal(wanted.map(({ target }) => target));
  if (together !== null) throw op.error('invalid_argument', `mounts: ${together}`);
  const mounts: Mount[] = [];
  for (const [at, mount] of wanted.entries()) {
    const why = targetRefusal(mount.target);
    if (why !== null) throw op.error('invalid_argument', `mounts.${at}.target ${why}; it is ${mount.target}`);
    if (isVolume(mount)) {
      const { id, name } = await findVolume(deps, call, mount.source).catch((cause: unknown) => {
        if (!(cause instanceof HutchError) || cause.code !== 'not_found') throw cause;
        const hint =
          'make it: hutch volume create NAME; a directory of this machine begins with / or ./; see what there is: hutch volume ls';
        throw op.error('not_found', cause.message, { hint, cause });
      });
      if (mounts.some(({ volumeId }) => volumeId === id)) throw op.error('invalid_argument', `mounts: volume ${name} is mounted twice`);
      mounts.push({ ...mount, source: name, volumeId: id });
      continue;
    }
    const source = await directoryAt(deps, op, mount.source);
    await refuseNever(deps, op, source);
    await requireAllowed(deps, call, source);
    mounts.push({ ...mount, source });
  }
  return mounts;
}

/** Before a start: what was there when it was made may have gone, or be another directory by now. */
export async function requireMounts(deps: Needs, op: Operation, { name, mounts = [] }: SandboxSpec): Promise<void> {
  for (const { source, target, volumeId } of mounts) {
    if (volumeId !== undefined) continue;
    const now = await directoryAt(deps, op, source).catch((cause: unknown) => {
      if (!(cause instanceof HutchError) || op.signal.aborted) throw cause;
      throw op.error('failed_precondition', `sandbox ${name} has ${source} at ${target}, and that cannot be used: ${cause.message}`, {
        hint: `put the directory back, then: hutch start ${name}`,
        cause,
      });
    });
    if (now !== source)
      throw op.error('failed_precondition', `sandbox ${name} has ${source} at ${target}, and that leads to ${now} by now`, {
        hint: `put the directory back, then: hutch start ${name}`,
      });
    await refuseNever(deps, op, source);
  }
}

export function mountedOf(mounts: readonly Mount[]): Mounted {
  const volumes = mounts.filter(({ volumeId }) => volumeId !== undefined).length;
  return { volumes, directories: mounts.length - volumes };
}

/** For what is written down without what lies outside of the sandbox. @throws HutchError `failed_precondition`. */
export function refuseMounted(op: Operation, { spec }: { readonly spec: Pick<SandboxSpec, 'name' | 'mounts'> }, what: string): void {
  const [first] = spec.mounts ?? [];
  if (first === undefined) return;
  const mounted = first.volumeId === undefined ? `${first.source} of this machine` : `volume ${first.source}`;
  throw op.error('failed_precondition', `sandbox ${spec.name} has ${mounted} at ${first.target}: ${what}`, {
    hint: 'what lies there is not part of the sandbox; work with one that has nothing mounted',
  });
}

/** Which directory that is, whatever leads to it. */
async function directoryAt({ host }: Needs, op: Operation, path: string): Promise<string> {
  if (!path.startsWith('/'))
    throw op.error('invalid_argument', `the path of a directory of this machine must be absolute; '${path}' is not`);
  let real: string;
  try {
    real = await host.realPath(op, path);
  } catch (cause) {
    if (!(cause instanceof HutchError) || cause.code !== 'not_found') throw cause;
    throw op.error('not_found', `there is no directory ${path} on this machine`, { hint: `make it: mkdir -p ${path}`, cause });
  }
  const info = await host.stat(op, real);
  if (info?.type === 'directory') return real;
  throw op.error('invalid_argument', `${path} is no directory; only directories are mounted`, {
    hint: 'mount the directory that it lies in, or copy the file: hutch cp',
  });
}

async function refuseNever({ host, places }: Needs, op: Operation, source: string): Promise<void> {
  if (source === '/') throw op.error('permission_denied', '/ is never mounted: it is the whole machine');
  const never = NEVER.find((dir) => isWithin(source, dir));
  if (never !== undefined) throw op.error('permission_denied', `${source} is never mounted: ${never} is the machine's own`);
  for (const dir of [places.dataDir, places.runDir, places.logDir]) {
    const own = await host.realPath(op, dir);
    if (!isWithin(source, own) && !isWithin(own, source)) continue;
    throw op.error(
      'permission_denied',
      `${source} is never mounted: ${source === own ? 'it' : isWithin(source, own) ? own : `in it ${own}`} is Hutch's own`,
      {
        hint: 'mount a directory that has nothing of Hutch in it',
      },
    );
  }
}

async function requireAllowed(deps: Needs, call: Call, source: string): Promise<void> {
  const { op, caller, clientDirectory } = call;
  const { settings, store } = deps;
  const { allow, home } = settings.volumes;
  const isOwners = caller.projectId === store.defaultProjectId;
  // What stands in the configuration may go through symlinks.
  const real = async (path: string): Promise<string> => await deps.host.realPath(op, path).catch(() => path);
  const dirs: string[] = [];
  if (allow !== null) {
    for (const rule of allow) {
      const at = rule.indexOf('=');
      const project = at < 0 ? store.defaultProjectId : rule.slice(0, at);
      if (project === caller.projectId) dirs.push(await real(rule.slice(at + 1)));
    }
  } else if (isOwners) dirs.push(...(await Promise.all([home, clientDirectory].filter((path) => path !== null).map(real))));
  // A home that is / would be everything.
  if (dirs.some((dir) => dir !== '/' && isWithin(source, dir))) return;
  // To who is another project's, no rule of the owner's is shown.
  const rules = isOwners ? [...inForce(settings.volumes), source] : ['…', `${caller.projectId}=${source}`];
  throw op.error('permission_denied', `${source} may not be mounted: it lies in none of the directories that are allowed (volumes.allow)`, {
    hint: `allow it in the configuration: [volumes] allow = ${JSON.stringify(rules)}, the whole list; then restart the daemon: hutch daemon stop`,
  });
}

/** What a list must say for all that is allowed by now to stay so; of many, only that there are some. */
function inForce({ allow, home }: Needs['settings']['volumes']): readonly string[] {
  const rules = allow ?? (home === null ? [] : [home]);
  return rules.length > RULES_SHOWN_MAX ? ['…'] : rules;
}
