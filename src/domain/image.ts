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
};

export type Image = {
  readonly id: ImageId;
  /** What people call it; unique among images, and moved when a newer one takes its name (null: has lost it). */
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
