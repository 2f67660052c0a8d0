// What a stage of a build is given, and what it gives.

import type { PackageSettings } from '../domain/package-settings.ts';
import type { BackendName } from '../domain/sandbox.ts';
import type { Operation } from '../host/operation.ts';
import type { CacheEntry } from '../images/build/cache.ts';
import type { BuildContext } from '../images/build/context.ts';
import type { Dockerfile, Stage } from '../images/build/dockerfile.ts';
import type { Key } from '../images/build/keys.ts';
import type { LayerRef, StageRoot } from '../images/build/layers.ts';
import type { Globals, StageState } from '../images/build/state.ts';
import type { BaseImage } from './build-base.ts';
import type { BuildLog } from './build-log.ts';
import type { MountParts } from './build-mounts.ts';
import type { SandboxParts, Shape } from './build-sandbox.ts';

export type HistoryEntry = {
  readonly created?: string;
  readonly created_by?: string;
  readonly comment?: string;
  readonly empty_layer?: true;
};

/** A stage that is done, or an image as a stage begins with it. */
export type Built = {
  readonly key: Key;
  readonly state: StageState;
  readonly root: StageRoot;
  readonly history: readonly HistoryEntry[];
  /** When its newest layer was made. */
  readonly atMs: number;
  /** From which a sandbox can be started, and how many of its layers that has; null: from nothing. */
  readonly image: { readonly reference: string; readonly layers: number } | null;
};

export type BuildRequest = {
  readonly args: ReadonlyMap<string, string>;
  readonly noCache: boolean;
  readonly shape: Shape;
  /** Times in the image are not later than this. */
  readonly epochSeconds: number | null;
};

export type StageParts = {
  readonly sandbox: SandboxParts;
  readonly cache: {
    get(op: Operation, key: Key): Promise<CacheEntry | null>;
    put(op: Operation, key: Key, entry: CacheEntry): Promise<void>;
  };
  /** Puts the build on record, which is before anything is made; what is cached need not wait for it. */
  readonly recorded: () => Promise<void>;
  readonly context: BuildContext;
  readonly dockerfile: Dockerfile;
  readonly globals: Globals;
  readonly request: BuildRequest;
  readonly log: BuildLog;
  readonly backend: (op: Operation) => Promise<BackendName>;
  /** A stage before, once it is built. */
  readonly stage: (index: number) => Promise<Built>;
  readonly base: (op: Operation, name: string) => Promise<BaseImage>;
  /** An image of layers that none has yet, to start a sandbox from. */
  readonly image: (op: Operation, built: Built) => Promise<string>;
  /** An image of layers that are there before a stage does anything; null: there is no room for it. */
  readonly beginning: (op: Operation, layers: readonly LayerRef[]) => Promise<string | null>;
  /** Proxies, mirrors and certificates of the machine of whoever builds, for RUN alone. */
  readonly lent: (op: Operation) => Promise<PackageSettings>;
  readonly mounts: Pick<MountParts, 'cacheDir' | 'locks'>;
  /** Of the stage with that index, as people read it. */
  readonly stepBegun: (stage: number, step: string) => void;
  readonly stepDone: () => void;
  /** An ARG of that name stands in it. */
  readonly declared: (name: string) => void;
  /** What a build waits for before it is over. */
  readonly ending: (work: Promise<void>) => void;
  /** What was ending is over: a project may have room for one sandbox alone. */
  readonly ended: () => Promise<unknown>;
};

export function stageName(stage: Stage): string {
  return stage.from.as ?? `stage ${stage.index}`;
}
