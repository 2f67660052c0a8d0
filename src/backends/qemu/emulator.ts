// Which emulator this is. Its version is part of every template's key, and the package may be
// upgraded under a running daemon: so the version is remembered only as long as the file is the same.
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { MemoryOpening } from './machine.ts';

export const QEMU_PROGRAM = 'qemu-system-x86_64';

export type Emulator = { readonly path: string; readonly version: string; readonly memory: MemoryOpening };

/** Pure, for tests. */
export function memoryOpening(version: string): MemoryOpening {
  const [major = 0, minor = 0] = version.split('.', 2).map((part) => Number.parseInt(part, 10));
  return major > 8 || (major === 8 && minor >= 2) ? 'read-only' : 'preload';
}

export class EmulatorFinder {
  readonly #host: Host;
  readonly #program: string;
  #known: { readonly identity: string; readonly emulator: Emulator } | undefined;

  constructor(host: Host, program: string = QEMU_PROGRAM) {
    this.#host = host;
    this.#program = program;
  }

  /** @throws HutchError `failed_precondition` when it is not installed or does not say its version. */
  async find(op: Operation): Promise<Emulator> {
    const path = await this.#host.which(op, this.#program);
    if (path === null) {
      throw op.error('failed_precondition', `${this.#program} is not installed`, { hint: 'install it: apt-get install qemu-system-x86' });
    }
    const info = await this.#host.stat(op, path);
    const identity = info === null ? '' : `${path} ${info.device} ${info.inode} ${info.sizeBytes} ${info.modifiedNs}`;
    if (this.#known?.identity === identity) return this.#known.emulator;
    using limited = op.within(10_000, 'asking QEMU for its version');
    const { exitCode, stdout } = await this.#host.run(limited, [path, '--version']);
    const version = /version (\S+(?: \([^)]*\))?)/.exec(new TextDecoder().decode(stdout))?.[1];
    if (exitCode !== 0 || version === undefined) throw op.error('failed_precondition', `${path} --version does not say a version`);
    const emulator = { path, version, memory: memoryOpening(version) };
    this.#known = { identity, emulator };
    return emulator;
  }
}
