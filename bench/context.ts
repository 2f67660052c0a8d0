// What every measurement has at hand: the place with its daemon, the baselines over the same files,
// and how many samples to take. Baselines are made when the first one asks for them.
import { type BareBoot, BareGuest, bareBoot } from './bare/guest.ts';
import type { BareTemplate } from './bare/restore.ts';
import { templateOf } from './bare/template.ts';
import type { Row } from './harness.ts';
import type { Place } from './place.ts';

/** `quick` only shows that everything can be measured: its figures mean nothing. */
export type Size = 'quick' | 'usual' | 'long';

export type Measurement = {
  /** What is typed to get it alone. */
  readonly name: string;
  readonly about: string;
  readonly rows: (bench: Bench) => Promise<readonly Row[]>;
};

export class Bench implements AsyncDisposable {
  readonly place: Place;
  readonly size: Size;
  readonly #runs: number | null;
  readonly #owned = new AsyncDisposableStack();
  #template: Promise<BareTemplate> | null = null;
  #boot: Promise<BareBoot> | null = null;
  #guest: Promise<BareGuest> | null = null;

  constructor(place: Place, size: Size, runs: number | null) {
    this.place = place;
    this.size = size;
    this.#runs = runs;
  }

  /** Samples to take: as asked for by `--runs`, else `usual`. */
  runs(usual: number, quick = 2): number {
    return this.#runs ?? (this.size === 'quick' ? quick : usual);
  }

  /** What the size is for something that is no count of samples. */
  pick<T>(by: Readonly<Record<Size, T>>): T {
    return by[this.size];
  }

  template(): Promise<BareTemplate> {
    this.#template ??= templateOf(this.place);
    return this.#template;
  }

  boot(): Promise<BareBoot> {
    this.#boot ??= this.template().then((template) => bareBoot(this.place, template));
    return this.#boot;
  }

  /** One that has been booted and goes on to the end. */
  guest(): Promise<BareGuest> {
    this.#guest ??= (async () => this.#owned.use(await BareGuest.boot(await this.template(), await this.boot())))();
    return this.#guest;
  }

  /** For what a measurement makes beside the place: released with it, or at the latest with the bench when that is interrupted. */
  scope(): AsyncDisposableStack {
    return this.#owned.use(new AsyncDisposableStack());
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#owned.disposeAsync();
  }
}
