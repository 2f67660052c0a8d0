// What a backend does not claim is refused by the name of the capability, before anything is tried.
import type { Backend, Capabilities } from '../backends/backend.ts';
import type { Operation } from '../host/operation.ts';

type Claim = 'pause' | 'suspend' | 'fork' | 'snapshot' | 'diskSnapshot' | 'hostDirectories' | 'volumes' | 'devices';

/** As whoever asked for it calls it. */
const WORDS: Readonly<Record<Claim, string>> = {
  pause: 'pause a sandbox',
  suspend: 'put a sandbox away with its memory',
  fork: 'keep or copy what runs, with its memory',
  snapshot: 'keep a sandbox to begin there again',
  diskSnapshot: 'make an image of the disk of a sandbox',
  hostDirectories: 'mount directories of this machine',
  volumes: 'mount volumes',
  devices: 'give a sandbox devices of this machine',
};

/** Each backend is asked once; one that does not work says so itself when it is used. */
export class Claims {
  readonly #known = new Map<Backend, Capabilities>();

  /** `hint`: what would do where it is wanted, if not what comes closest to it. @throws HutchError `failed_precondition` when the backend does not claim it. */
  async need(op: Operation, backend: Backend, claim: Claim, hint?: string): Promise<void> {
    const can = await this.#of(op, backend);
    if (can === null || can[claim]) return;
    throw op.error('failed_precondition', `the backend ${backend.name} cannot do this on this machine: ${WORDS[claim]} (${claim})`, {
      hint: hint ?? instead(claim, can) ?? 'what each backend can do: hutch backends',
    });
  }

  /** False also where it does not work. */
  async has(op: Operation, backend: Backend, claim: Claim): Promise<boolean> {
    return (await this.#of(op, backend))?.[claim] === true;
  }

  async #of(op: Operation, backend: Backend): Promise<Capabilities | null> {
    const known = this.#known.get(backend);
    if (known !== undefined) return known;
    const probe = await backend.probe(op);
    if (!probe.ok) return null;
    this.#known.set(backend, probe.can);
    return probe.can;
  }
}

/** Of one that nobody uses. */
export const STOP_WHEN_IDLE = 'what nobody uses can be stopped there: --idle-action stop';

/** What does work there, and comes closest. */
function instead(claim: Claim, can: Capabilities): string | null {
  if (claim === 'suspend' && can.pause) return 'keep it in memory: hutch pause';
  if (claim === 'fork' && can.snapshot)
    return 'begin others with its disk: hutch snapshot create --disk-only --name NAME SANDBOX, then: hutch fork NAME';
  if (claim === 'fork' && can.diskSnapshot) return 'keep its disk as an image, and start others from that: hutch image commit';
  if (claim === 'snapshot' && can.diskSnapshot)
    return 'keep its disk as an image: hutch image commit SANDBOX NAME, then: hutch run --image NAME';
  if (claim === 'diskSnapshot' && can.snapshot)
    return 'keep it as a snapshot: hutch snapshot create SANDBOX, then: hutch run --from SNAPSHOT';
  if (claim === 'hostDirectories')
    return 'copy it in: hutch cp, or hutch run DIR; or keep it on a volume: -v NAME:PATH; or take a backend that mounts: hutch backends';
  if (claim === 'devices') return 'containers of a Docker Engine on this machine can have one: --backend docker';
  if (claim === 'volumes') return 'take a backend that mounts volumes: hutch backends';
  return null;
}
