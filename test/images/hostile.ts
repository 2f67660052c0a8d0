// What tests of lying archives and registries share: a registry in this process, a place with small bounds, and what a refusal must be.
import { expect } from 'vitest';
import { HutchError } from '../../src/domain/errors.ts';
import { BLOCK_BYTES } from '../../src/domain/tar/entry.ts';
import { testOperation } from '../support/operation.ts';
import { type ImageOptions, image, type MadeImage, type Member, member, tar } from './archives.ts';
import { type Place, place } from './place.ts';
import { type FakeRegistry, fakeRegistry } from './registry.ts';

const LIMITS = { entriesMax: 5_000, metadataBytesMax: 1024 * 1024, contentBytesMax: 8 * 1024 * 1024, layerBytesMax: 16 * 1024 * 1024 };
const ONE_MS = 30_000;

export const file = (path: string, content = 'x') => ({ path, content });
export const layer = (...members: readonly (Member | Buffer)[]): MadeImage => image([tar(...members)]);
export const header = (path: string) => member({ path }).subarray(0, BLOCK_BYTES);
export const packed = (how: NonNullable<ImageOptions['packed']>) => image([tar(file('f'))], { packed: how });

/** What is made, and the one error that it is. */
export type Cases = Readonly<Record<string, [archive: () => MadeImage, error: RegExp]>>;

export class Hostile implements AsyncDisposable {
  readonly registry: FakeRegistry;
  readonly here: Place;
  #count = 0;

  private constructor(registry: FakeRegistry, here: Place) {
    this.registry = registry;
    this.here = here;
  }

  static async make(): Promise<Hostile> {
    return new Hostile(await fakeRegistry(), await place({ limits: LIMITS }));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.here[Symbol.asyncDispose]();
    await this.registry[Symbol.asyncDispose]();
  }

  async refusesAll(cases: Cases): Promise<void> {
    for (const [name, [make, expected]] of Object.entries(cases)) {
      await this.refuses(make(), expected).catch((error: unknown) => {
        throw new Error(`${name}: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
      });
    }
  }

  async refuses(made: MadeImage, expected: RegExp): Promise<void> {
    this.#count += 1;
    this.registry.put(`bad/${this.#count}`, '1', made);
    await this.fails(`bad/${this.#count}:1`, expected);
  }

  /** One error of ours, soon, that a person can read; and nothing is left of it but layers that are what they should be. */
  async fails(name: string, expected: RegExp, at: Place = this.here): Promise<void> {
    await failsElsewhere(`${this.registry.name}/${name}`, expected, at);
  }

  /** The answer to one kind of request; all else as usual. */
  async withAnswer(part: string, answer: NonNullable<FakeRegistry['answer']>, work: () => Promise<void>): Promise<void> {
    this.registry.answer = (request, response) => (request.url?.includes(part) === true ? answer(request, response) : false);
    try {
      await work();
    } finally {
      this.registry.answer = null;
    }
  }
}

/** At any registry. */
export async function failsElsewhere(name: string, expected: RegExp, at: Place): Promise<void> {
  using op = testOperation().within(ONE_MS, 'one archive');
  const outcome = await at.pull(name, op).then(
    () => 'it was taken',
    (error: unknown) => error,
  );
  expect(outcome).toBeInstanceOf(HutchError);
  const { message, code } = outcome as HutchError;
  expect(message).toMatch(expected);
  expect(message).not.toMatch(/[^\x20-\x7e…]/);
  expect(message.length).toBeLessThan(700);
  expect(['failed_precondition', 'not_found', 'permission_denied', 'unavailable']).toContain(code);
  const left = await at.left();
  expect(left).toMatchObject({ staging: [], images: [] });
  for (const digest of left.blobs) expect(await at.host.sha256(op, at.library.blobs.path(digest))).toBe(digest);
}
