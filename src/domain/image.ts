// What a sandbox is made from: images and guest kernels, both immutable and named by digest.
import type { ImageId, KernelId } from './ids.ts';

export const ARCHITECTURES = ['x86_64', 'aarch64'] as const;
export type Architecture = (typeof ARCHITECTURES)[number];

/** What an image says about the processes in it; a sandbox's own settings come before. */
export type ImageConfig = {
  readonly env: Readonly<Record<string, string>>;
  readonly entrypoint: readonly string[];
  readonly command: readonly string[];
  readonly workdir: string | null;
  readonly user: string | null;
  /** As the image writes it, such as `SIGQUIT` or `3`; null: SIGTERM. */
  readonly stopSignal: string | null;
  /** Such as `80/tcp`: what it says that it listens on. Opens nothing by itself. */
  readonly exposedPorts: readonly string[];
};

/** In the detail of an image: how the engine that has it calls it. */
export const ENGINE_REFERENCE = 'engineReference';
/** In the detail of an image that brings its own kernel: the id of that. */
export const OWN_KERNEL = 'kernelId';
/** In the detail of an image that is only registered: the user's files that it is made of. */
export const REGISTERED = 'registered';

export type Image = {
  readonly id: ImageId;
  /** What people call it, the oldest of its names; unique among images, and moved when a newer one takes it (null: has none). */
  readonly name: string | null;
  /** `sha256:` and 64 hex, of the root file system. */
  readonly digest: string;
  readonly architecture: Architecture;
  readonly sizeBytes: number;
  readonly config: ImageConfig;
  readonly createdAtMs: number;
  /** How it was made: facts for `inspect` and for rebuilding, of the maker's own form. */
  readonly detail: Readonly<Record<string, unknown>>;
};

/** As it is on record: with every name that it has, the oldest first. */
export type NamedImage = Image & { readonly names: readonly string[] };

/** By their number less one, on every architecture that sandboxes have. */
const SIGNALS =
  'HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS'.split(
    ' ',
  );

/**
 * What every process gets when a sandbox of this image is asked to stop, by name without `SIG`. An image that
 * names none, or one that we do not know (a real-time signal), gets TERM: whatever it says, it can be stopped.
 */
export function stopSignalOf({ stopSignal }: Pick<ImageConfig, 'stopSignal'>): string {
  const said = (stopSignal ?? '').trim().toUpperCase();
  const name = /^\d{1,2}$/.test(said) ? SIGNALS[Number(said) - 1] : said.replace(/^SIG/, '');
  return name !== undefined && SIGNALS.includes(name) ? name : 'TERM';
}

/** What a Dockerfile may say: a number, a name, also one of those that `stopSignalOf` does not know. */
export function isStopSignal(text: string): boolean {
  const name = text.toUpperCase().replace(/^SIG/, '');
  if (/^\d+$/.test(text)) return Number(text) > 0;
  return (
    SIGNALS.includes(name) ||
    ['CLD', 'IOT', 'POLL', 'UNUSED'].includes(name) ||
    /^RT(MIN(\+([1-9]|1[0-5]))?|MAX(-([1-9]|1[0-4]))?)$/.test(name)
  );
}

/** What a sandbox runs whose maker wants what the image is made for: entrypoint, then command. Empty where it says neither. */
export function ownCommandOf({ entrypoint, command }: Pick<ImageConfig, 'entrypoint' | 'command'>): readonly string[] {
  return [...entrypoint, ...command];
}

/** As images say it in their configuration, and Docker in its API. */
export type SaidByImage = {
  readonly Env?: readonly string[] | null | undefined;
  readonly Entrypoint?: readonly string[] | null | undefined;
  readonly Cmd?: readonly string[] | null | undefined;
  readonly WorkingDir?: string | null | undefined;
  readonly User?: string | null | undefined;
  readonly StopSignal?: string | null | undefined;
  readonly ExposedPorts?: Readonly<Record<string, unknown>> | null | undefined;
};

/** What is empty is not said. */
export function imageConfigOf(said: SaidByImage): ImageConfig {
  return {
    env: environmentOf(said.Env ?? []),
    entrypoint: said.Entrypoint ?? [],
    command: said.Cmd ?? [],
    workdir: said.WorkingDir || null,
    user: said.User || null,
    stopSignal: said.StopSignal || null,
    exposedPorts: Object.keys(said.ExposedPorts ?? {}),
  };
}

function environmentOf(lines: readonly string[]): Record<string, string> {
  const pairs = lines.map((line): [string, string] => {
    const at = line.indexOf('=');
    return at < 0 ? [line, ''] : [line.slice(0, at), line.slice(at + 1)];
  });
  return Object.fromEntries(pairs.filter(([name, value]) => name !== '' && !`${name}${value}`.includes('\0')));
}

/** `hutch`: it was taken because nobody asked for another. `snapshot`: it came with one, and is nobody's default by itself. */
export const KERNEL_FROM = ['hutch', 'user', 'snapshot'] as const;
export type KernelFrom = (typeof KERNEL_FROM)[number];

export type Kernel = {
  readonly id: KernelId;
  /** `sha256:` and 64 hex. */
  readonly digest: string;
  /** As `uname -r` shows it. */
  readonly version: string;
  readonly architecture: Architecture;
  readonly sizeBytes: number;
  readonly createdAtMs: number;
  readonly detail: Readonly<Record<string, unknown>>;
};
