// Whether the Engine sees our files: it is asked to read back marks that we have left in our directories. One on another
// machine does not, nor one beside the container that we run in.
import { join } from 'node:path';
import * as z from 'zod';
import { HutchError } from '../../domain/errors.ts';
import type { Operation } from '../../host/operation.ts';
import { Asked } from '../asked.ts';
import { type DockerConfig, LABEL, PING_MS } from './config.ts';
import type { Engine } from './engine.ts';
import { listOurs } from './leaks.ts';
import { removeIfThere } from './remove.ts';

type Parts = Pick<DockerConfig, 'host' | 'instance' | 'workDir' | 'runRoot'>;

/** Of nothing, for an Engine that has no image yet. */
const EMPTY_TAR = new Uint8Array(1_024);
/** Of directories with a mark. */
const NONCE = 'nonce-';
const images = z.array(z.object({ Id: z.string() }));
const imported = z.object({ status: z.string() });

export class Sight {
  readonly #parts: Parts;
  readonly #engine: Engine;
  readonly #sees = new Asked<boolean>();

  constructor(parts: Parts, engine: Engine) {
    this.#parts = parts;
    this.#engine = engine;
  }

  /**
   * Whether its containers see what lies in each of the directories in which they need something of ours: the one with the agent's
   * program, and the one with its sockets. One of them may be a volume of the container that we run in, another not.
   */
  async seesOurFiles(op: Operation): Promise<boolean> {
    return await this.#sees.get(op, (asking) => this.#look(asking));
  }

  /** A daemon begins: what one that was killed while it looked has left. An Engine that is away keeps it until the next look. */
  async endWork(op: Operation): Promise<void> {
    const { host, workDir, runRoot } = this.#parts;
    for (const dir of [workDir, runRoot]) {
      if ((await host.stat(op, dir)) === null || !(await host.list(op, dir)).some((name) => name.startsWith(NONCE))) continue;
      using limited = op.within(PING_MS, 'what was left in the Docker Engine');
      await this.#removeLeft(limited).catch((cause: unknown) =>
        op.log.warn({ cause }, 'the probe of the Docker Engine left something behind'),
      );
      return;
    }
  }

  async #removeLeft(op: Operation): Promise<void> {
    for (const { Id, Labels } of await listOurs(op, this.#engine, this.#parts.instance))
      if (Labels?.[LABEL.sandbox] === undefined) await this.#remove(op, `/containers/${Id}`);
    await this.#remove(op, `/images/${this.#nothing}`);
  }

  /** Of this daemon's own look: another one's is not taken away. */
  get #nothing(): string {
    return `hutch/nothing:${this.#parts.instance}`;
  }

  async #remove(op: Operation, path: string): Promise<void> {
    await removeIfThere(op, this.#engine, { path, query: { force: true, v: true } });
  }

  /** One at a time: it takes what it finds for a dead daemon's. */
  async #look(op: Operation): Promise<boolean> {
    const { host, instance, workDir, runRoot } = this.#parts;
    await this.#removeLeft(op);
    await using undo = new AsyncDisposableStack();
    const releasing = (work: (late: Operation) => Promise<void>): void =>
      undo.defer(async () => {
        using late = op.releasing(PING_MS);
        await work(late).catch((cause: unknown) => op.log.warn({ cause }, 'the probe of the Docker Engine left something behind'));
      });
    const nonce = Buffer.from(host.randomBytes(16)).toString('hex');
    const marks = [workDir, runRoot].map((dir, at) => ({ dir: join(dir, `${NONCE}${op.id}`), target: `/.hutch/nonce-${at}` }));
    for (const dir of [workDir, runRoot]) await host.makeDir(op, dir, 0o711);
    for (const { dir } of marks) {
      await host.makeDir(op, dir, 0o755);
      releasing((late) => host.remove(late, dir));
      await host.writeFileAtomic(op, join(dir, nonce), nonce, 0o644);
    }
    const image = await this.#anyImage(op, releasing);
    try {
      const { Id } = await this.#engine.json(op, z.object({ Id: z.string() }), {
        method: 'POST',
        path: '/containers/create',
        body: {
          Image: image,
          Entrypoint: ['/nothing'],
          Labels: { [LABEL.instance]: instance },
          HostConfig: {
            NetworkMode: 'none',
            Mounts: marks.map(({ dir, target }) => ({ Type: 'bind', Source: dir, Target: target, ReadOnly: true })),
          },
        },
      });
      releasing((late) => this.#engine.call(late, { method: 'DELETE', path: `/containers/${Id}`, query: { force: true, v: true } }));
      for (const { target } of marks)
        await this.#engine.call(op, { method: 'HEAD', path: `/containers/${Id}/archive`, query: { path: `${target}/${nonce}` } });
      return true;
    } catch (error) {
      // It refuses a directory that it does not have, or does not find what lies in it.
      if (error instanceof HutchError && ['invalid_argument', 'not_found'].includes(error.code)) return false;
      throw error;
    }
  }

  /** What is in it does not matter: nothing of it runs. */
  async #anyImage(op: Operation, releasing: (work: (late: Operation) => Promise<void>) => void): Promise<string> {
    const [there] = await this.#engine.json(op, images, { method: 'GET', path: '/images/json' });
    if (there !== undefined) return there.Id;
    const [repo = '', tag = ''] = this.#nothing.split(':');
    const { status } = await this.#engine.json(op, imported, {
      method: 'POST',
      path: '/images/create',
      query: { fromSrc: '-', repo, tag, message: 'nothing, to see which files this Engine sees' },
      content: {
        type: 'application/x-tar',
        chunks: (async function* () {
          yield EMPTY_TAR;
        })(),
      },
    });
    releasing((late) => this.#remove(late, `/images/${this.#nothing}`));
    return status;
  }
}
