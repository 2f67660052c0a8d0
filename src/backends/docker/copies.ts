// Copies of Hutch's images in the Engine, `hutch/img:DIGEST`, which it was given because it cannot read ours. One goes once its image is no
// more; if it is wanted again, it is brought in again.
import * as z from 'zod';
import { HutchError } from '../../domain/errors.ts';
import type { Operation } from '../../host/operation.ts';
import type { Backend } from '../backend.ts';
import { isAway, unlessAway } from './away.ts';
import { type DockerConfig, LABEL } from './config.ts';
import type { Engine } from './engine.ts';
import { ownImageName } from './image.ts';

const copies = z.array(
  z.object({ Size: z.number(), RepoTags: z.array(z.string()).nullish(), Labels: z.record(z.string(), z.string()).nullish() }),
);
const DIGEST = /^sha256:[0-9a-f]{64}$/;

/** Those that this daemon has brought in: another one's beside it, of the same Engine, are not touched. */
export function copiesIn(
  { host, instance, workDir }: Pick<DockerConfig, 'host' | 'instance' | 'workDir'>,
  engine: Engine,
): NonNullable<Backend['roots']> {
  async function list(op: Operation) {
    // Who never used an Engine has nothing in it, and need not ask.
    if ((await host.stat(op, workDir)) === null) return [];
    const filters = JSON.stringify({ label: [`${LABEL.importer}=${instance}`] });
    const all = await engine.json(op, copies, { method: 'GET', path: '/images/json', query: { filters } });
    return all.flatMap(({ Size: sizeBytes, RepoTags, Labels }) => {
      const digest = Labels?.[LABEL.image] ?? '';
      // What others have made of one has its labels, and not its name.
      return DIGEST.test(digest) && RepoTags?.includes(ownImageName(digest)) === true ? [{ digest, sizeBytes }] : [];
    });
  }
  async function remove(op: Operation, digest: string): Promise<boolean> {
    try {
      await engine.call(op, { method: 'DELETE', path: `/images/${ownImageName(digest)}` });
      return true;
    } catch (error) {
      // A container stands on it, whoever's; or somebody was quicker.
      if (error instanceof HutchError && ['conflict', 'not_found'].includes(error.code)) return false;
      throw error;
    }
  }
  /** One that is not there, or hangs, keeps what it has until the next look. */
  const later = async <T>(asked: Promise<T>, otherwise: T): Promise<T> =>
    await unlessAway(asked, otherwise).catch((error: unknown) => {
      if (isAway(error)) return otherwise;
      throw error;
    });
  return { list: (op) => later(list(op), []), remove: (op, digest) => later(remove(op, digest), false) };
}
