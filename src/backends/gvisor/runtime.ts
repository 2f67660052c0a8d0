// The runtime on this machine: where it is, which release, and what it can do. Releases differ in
// options, so what is used is looked for in its own help text.
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import { Asked } from '../asked.ts';
import { COMMAND_MS } from './config.ts';

export type Runtime = {
  readonly path: string;
  readonly version: string;
  /** In the order of preference. */
  readonly platforms: readonly string[];
  /** Given with every sandbox. */
  readonly options: readonly string[];
  /** Given with whatever it runs, also for a moment. */
  readonly always: readonly string[];
  /** Given with what saves a sandbox. */
  readonly saving: readonly string[];
  readonly canIgnoreCgroups: boolean;
  /** Whether its kernel's last words can be kept; else they are lost. */
  readonly hasPanicLog: boolean;
};

const HINT = 'apt-get install runsc, or see https://gvisor.dev/docs/user_guide/install/';
/** Fastest first, of those that need nothing of the machine but what is asked for by the probe. */
const PLATFORMS = ['systrap', 'kvm', 'ptrace'] as const;

export class RuntimeFinder {
  readonly #host: Host;
  readonly #name: string;
  readonly #found = new Asked<Runtime>();

  constructor(host: Host, name = 'runsc') {
    this.#host = host;
    this.#name = name;
  }

  /** @throws HutchError `failed_precondition` when there is none that can be used. */
  async find(op: Operation): Promise<Runtime> {
    return await this.#found.get(op, (asking) => this.#look(asking));
  }

  async #look(op: Operation): Promise<Runtime> {
    const host = this.#host;
    const path = await host.which(op, this.#name);
    if (path === null) throw op.error('failed_precondition', `${this.#name} is not installed`, { hint: HINT });
    using limited = op.within(COMMAND_MS, 'asking runsc what it can do');
    const ask = async (...args: string[]): Promise<string> => {
      const { stdout, stderr } = await host.run(limited, [path, ...args]);
      return new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr);
    };
    const [version, help, saving] = await Promise.all([ask('--version'), ask('flags'), ask('flags', 'checkpoint')]);
    const runtime = runtimeOf(path, version, help, saving);
    if ('lacking' in runtime) throw op.error('failed_precondition', `${path} cannot be used: ${runtime.lacking}`, { hint: HINT });
    return runtime;
  }
}

/** From what `runsc --version`, `runsc flags` and `runsc flags checkpoint` say. */
export function runtimeOf(path: string, version: string, help: string, savingHelp: string): Runtime | { readonly lacking: string } {
  const about = (option: string, text = help): string | null =>
    new RegExp(`^\\s*-{1,2}${option}\\b[^\\n]*\\n?[^\\n]*`, 'm').exec(text)?.[0] ?? null;
  const has = (option: string): boolean => about(option) !== null;
  const sockets = has('host-uds') ? '--host-uds=open' : has('fsgofer-host-uds') ? '--fsgofer-host-uds' : null;
  if (sockets === null) return { lacking: 'it does not let a sandbox connect to a socket of the host' };
  const platforms = PLATFORMS.filter((platform) => about('platform')?.includes(platform));
  if (platforms.length === 0) return { lacking: 'it names no platform that we know' };
  return {
    path,
    version: /version\s+(?:release-)?(\S+)/.exec(version)?.[1] ?? 'unknown',
    platforms,
    options: [
      sockets,
      // The private layer is ours and outlives the sandbox; newer releases would put their own over it.
      ...(has('overlay2') ? ['--overlay2=none'] : []),
      // A sandbox that opens the host's files itself empties one that it may only read before it is refused to write it.
      ...(has('directfs') ? ['--directfs=false'] : []),
      // A machine's root may ping; what it sends is looked at by nobody but passt.
      ...(has('net-raw') ? ['--net-raw'] : []),
      ...(has('cpu-num-from-quota') ? ['--cpu-num-from-quota'] : []),
    ],
    // By itself it keeps a namespace for all gofers to come, mounted in its state directory, which could not be removed then.
    always: has('gofer-network-namespace') ? ['--gofer-network-namespace=new'] : [],
    // In one file, as older releases do by themselves: without it newer ones write three, of which the memory's is as large as the memory.
    saving: about('compression', savingHelp)?.includes('flate-best-speed') ? ['--compression=flate-best-speed'] : [],
    canIgnoreCgroups: has('ignore-cgroups'),
    hasPanicLog: has('panic-log'),
  };
}
