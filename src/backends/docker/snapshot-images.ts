// Images of the Engine that snapshots stand on: `hutch/snapshot:ID`, labelled with that id and with this daemon. One goes when the
// directory of its snapshot is gone and no container and no other such image stands on it; nobody else's is ever touched.
import { join } from 'node:path';
import * as z from 'zod';
import { HutchError } from '../../domain/errors.ts';
import { isId } from '../../domain/ids.ts';
import type { Operation } from '../../host/operation.ts';
import { unlessAway } from './away.ts';
import { type DockerConfig, LABEL } from './config.ts';
import type { Engine } from './engine.ts';
import { layerBytesLabel, type StoodOn } from './layer-bytes.ts';

export const REPOSITORY = 'hutch/snapshot';

const images = z.array(
  z.object({
    Id: z.string(),
    ParentId: z.string(),
    RepoTags: z.array(z.string()).nullish(),
    Labels: z.record(z.string(), z.string()).nullish(),
  }),
);
/** A snapshot's id, or a name for what is none. */
const KEY = /^(?:snp|now-)[0-9a-z]{17,20}$/;
const containers = z.array(z.object({ ImageID: z.string() }));

type Unused = { readonly id: string; readonly name: string };

export class SnapshotImages {
  readonly #config: Pick<DockerConfig, 'host' | 'instance' | 'snapshotsDir' | 'workDir'>;
  readonly #engine: Engine;
  /** What is being made, and has no directory under its name. */
  readonly #held = new Set<string>();

  constructor(config: Pick<DockerConfig, 'host' | 'instance' | 'snapshotsDir' | 'workDir'>, engine: Engine) {
    this.#config = config;
    this.#engine = engine;
  }

  /** How the image of what lies in that directory is called; null where it is no snapshot's. */
  nameOf(dir: string): string | null {
    const own = this.#snapshotOf(dir);
    return own === null ? null : `${REPOSITORY}:${own}`;
  }

  /** Of what lies in that directory. `lasts`: as long as that does; what is no snapshot's, until it is disposed. */
  hold(dir: string): Disposable & { readonly key: string; readonly lasts: boolean } {
    const { host } = this.#config;
    const own = this.#snapshotOf(dir);
    const key = own ?? `now-${Buffer.from(host.randomBytes(10)).toString('hex')}`;
    this.#held.add(key);
    return { key, lasts: own !== null, [Symbol.dispose]: () => void this.#held.delete(key) };
  }

  #snapshotOf(dir: string): string | null {
    const { snapshotsDir } = this.#config;
    const name = dir.slice(snapshotsDir.length + 1);
    return dir === join(snapshotsDir, name) && isId('snp', name) ? name : null;
  }

  labels(key: string, below: number, stoodOn: StoodOn | null): Record<string, string> {
    return {
      [LABEL.instance]: this.#config.instance,
      [LABEL.snapshot]: key,
      [LABEL.below]: `${below}`,
      [LABEL.layerBytes]: stoodOn === null ? '' : layerBytesLabel(stoodOn),
    };
  }

  /** Those that nobody needs any more, as far as the Engine gives them away. */
  async sweep(op: Operation): Promise<void> {
    // Who never used an Engine has nothing in it, and need not ask.
    if ((await this.#config.host.stat(op, this.#config.workDir)) === null) return;
    for (;;) {
      const unused = await this.unused(op);
      if (unused.length === 0) return;
      for (const { name } of unused) {
        try {
          // By its name: one that has another name too stays under that. What it stands on stays, whoever's it is.
          await this.#engine.call(op, { method: 'DELETE', path: `/images/${name}`, query: { noprune: true } });
          op.log.info({ image: name }, 'the disk of a snapshot that is gone was removed from the Docker Engine');
        } catch (error) {
          if (!(error instanceof HutchError) || !['conflict', 'not_found'].includes(error.code)) throw error;
          if (error.code === 'conflict') return op.log.debug({ image: name, error }, 'an image is in use still');
        }
      }
    }
  }

  /** Without an Engine there is none. */
  async leaks(op: Operation): Promise<readonly { readonly kind: string; readonly what: string }[]> {
    const unused = await unlessAway(this.unused(op), []);
    return unused.map(({ name }) => ({ kind: 'image', what: `${name} (docker rmi ${name})` }));
  }

  async unused(op: Operation): Promise<readonly Unused[]> {
    const { instance, host, snapshotsDir } = this.#config;
    const filters = JSON.stringify({ label: [`${LABEL.instance}=${instance}`] });
    const all = await this.#engine.json(op, images, { method: 'GET', path: '/images/json', query: { filters } });
    const found: (Unused & { readonly isNeeded: boolean })[] = [];
    const others: (typeof all)[number][] = [];
    for (const image of all) {
      const key = image.Labels?.[LABEL.snapshot] ?? '';
      const name = `${REPOSITORY}:${key}`;
      // Whatever was made of it by others has its labels, and not its name.
      if (!KEY.test(key) || image.RepoTags?.includes(name) !== true) others.push(image);
      else found.push({ id: image.Id, name, isNeeded: this.#held.has(key) || (await host.stat(op, join(snapshotsDir, key))) !== null });
    }
    const going = found.filter(({ isNeeded }) => !isNeeded);
    if (going.length === 0) return [];
    const used = await this.#engine.json(op, containers, { method: 'GET', path: '/containers/json', query: { all: true } });
    const standing = new Set([
      ...used.map(({ ImageID }) => ImageID),
      ...all.map(({ ParentId }) => ParentId),
      ...others.map(({ Id }) => Id),
    ]);
    return going.filter(({ id }) => !standing.has(id));
  }
}
