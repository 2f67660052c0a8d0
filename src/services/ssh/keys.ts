// The keys of SSH: one pair for all sandboxes of this daemon, by which clients know it, and one for each project, by which it
// knows them. Made at the first use, kept in files that only the daemon's user can read.
import { join } from 'node:path';
import type Ssh2 from 'ssh2';
import type { ProjectId } from '../../domain/ids.ts';
import type { Operation } from '../../host/operation.ts';
import type { Deps } from '../deps.ts';

const KEY_BYTES_MAX = 16 * 1024;
/** Of an ed25519 public key in SSH's encoding, both strings with their lengths (RFC 8709, 4). */
const PUBLIC_BYTES = 4 + 'ssh-ed25519'.length + 4 + 32;

export type SshPair = { readonly privateKey: string; readonly publicKey: string };

export class SshKeys {
  readonly #deps: Pick<Deps, 'host' | 'places'>;
  readonly #pairs = new Map<string, Promise<SshPair>>();

  constructor(deps: Pick<Deps, 'host' | 'places'>) {
    this.#deps = deps;
  }

  host(op: Operation): Promise<SshPair> {
    return this.#pair(op, 'host');
  }

  project(op: Operation, id: ProjectId): Promise<SshPair> {
    return this.#pair(op, id);
  }

  async #pair(op: Operation, name: string): Promise<SshPair> {
    const known = this.#pairs.get(name) ?? this.#read(op, name);
    this.#pairs.set(name, known);
    try {
      return await known;
    } catch (error) {
      this.#pairs.delete(name);
      throw error;
    }
  }

  async #read(op: Operation, name: string): Promise<SshPair> {
    const { host, places } = this.#deps;
    const dir = join(places.dataDir, 'ssh');
    const path = join(dir, name);
    const text = async (file: string) => new TextDecoder().decode(await host.readFile(op, file, KEY_BYTES_MAX));
    // The public one is written last: where it is, both are.
    if ((await host.stat(op, `${path}.pub`)) !== null) {
      const kept = { privateKey: await text(path), publicKey: (await text(`${path}.pub`)).trim() };
      if (isWhole(kept)) return kept;
      op.log.warn({ path }, 'a key of SSH that never fitted is made anew');
    }
    const pair = newPair((await import('ssh2')).default.utils, `hutch-${name}`);
    await host.makeDir(op, dir, 0o700);
    await host.writeFileAtomic(op, path, pair.privateKey, 0o600);
    await host.writeFileAtomic(op, `${path}.pub`, `${pair.publicKey}\n`, 0o600);
    return pair;
  }
}

/** Of ssh2's pairs one in 256 is none: it leaves out zeros with which the public half begins, in both files. */
export function newPair(utils: Pick<typeof Ssh2.utils, 'generateKeyPairSync'>, comment: string): SshPair {
  for (;;) {
    const { private: privateKey, public: publicKey } = utils.generateKeyPairSync('ed25519', { comment });
    if (isWhole({ publicKey })) return { privateKey, publicKey };
  }
}

function isWhole({ publicKey }: Pick<SshPair, 'publicKey'>): boolean {
  return Buffer.from(publicKey.split(' ')[1] ?? '', 'base64').byteLength === PUBLIC_BYTES;
}
