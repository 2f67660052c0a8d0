// The package settings that a build is lent. Whoever builds may give them with the context, or later: what comes out of the cache needs
// none, and collecting them takes a tenth of such a build. Always true: no RUN is done without those that were announced.
import type { PackageSettings } from '../domain/package-settings.ts';
import type { Operation } from '../host/operation.ts';
import { waitFor } from './operations.ts';

/** After the first RUN asked for them. */
const GIVEN_MS = 60_000;

export class Lending {
  readonly #wanted = Promise.withResolvers<void>();
  readonly #given = Promise.withResolvers<PackageSettings>();
  readonly #givenMs: number;
  #isGiven = false;

  /** Null: they come later, within `givenMs` of the first RUN that asks. */
  constructor(settings: PackageSettings | null, givenMs = GIVEN_MS) {
    this.#givenMs = givenMs;
    if (settings !== null) this.give(settings);
  }

  /** Settles when a RUN waits for them. */
  get wanted(): Promise<void> {
    return this.#wanted.promise;
  }

  /** The first ones count. */
  give(settings: PackageSettings): void {
    this.#isGiven = true;
    this.#given.resolve(settings);
  }

  /** @throws HutchError `deadline_exceeded` when whoever announced them does not give them: a client that was killed. */
  async settings(op: Operation): Promise<PackageSettings> {
    if (this.#isGiven) return await this.#given.promise;
    this.#wanted.resolve();
    using patient = op.within(this.#givenMs, 'waiting for the package settings that were announced');
    try {
      return await waitFor(patient, this.#given.promise, 'the package settings that were announced');
    } catch (error) {
      if (op.signal.aborted) throw error;
      throw op.error('deadline_exceeded', `the package settings that were announced did not come within ${this.#givenMs / 1_000} s`, {
        hint: 'whoever began the build is gone, or has sent no build.settings: build it again',
        cause: error,
      });
    }
  }
}
