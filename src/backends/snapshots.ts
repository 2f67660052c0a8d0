// What a backend with snapshots does, as part of the interface of all: what one takes, what begins at it or goes back to it, and what
// travels to another machine.
import type { Holding } from '../domain/holding.ts';
import type { Shape } from '../domain/sandbox.ts';
import type { Operation } from '../host/operation.ts';
import type { SandboxPlan, Started } from './backend.ts';

/** What a snapshot took: how long the sandbox stood still for it, and what it would take without all that it shares. */
export type SnapshotTaken = { readonly stillMs: number; readonly apparentBytes: number };

/** A file of a snapshot that travels. */
export type SnapshotPart = {
  /** Among the parts of its snapshot. */
  readonly name: string;
  readonly path: string;
  readonly bytes: number;
  /** From, and up to, in order: all else of it is zeros. */
  readonly places: readonly (readonly [number, number])[];
};

/** Where the parts of a snapshot that comes from elsewhere are to lie; in the order in which they travel. */
export type SnapshotPlaces = {
  readonly parts: readonly (Pick<SnapshotPart, 'name' | 'path'> & { readonly bytesMax: number; readonly mode: number })[];
  /** When all of them are there and on the disk. */
  complete(op: Operation): Promise<void>;
};

/** Snapshots that travel to another machine: all that one needs, whatever it has in common with others here. */
export type Portable = {
  /** What it is made of. `machine`: what `place` needs to know, as JSON; the same for the same snapshot. `scratch`: for files that are made for this alone. */
  parts(
    op: Operation,
    dir: string,
    scratch: string,
  ): Promise<{ readonly machine: Readonly<Record<string, unknown>>; readonly parts: readonly SnapshotPart[] }>;
  /**
   * Makes the directories in `dir`. `machine` may say anything: no name and no place of it is used. `imageDigest`: of the bytes that its memory knows;
   * null where nobody can say that before they are here.
   * @throws HutchError `failed_precondition` for what is none, or does not fit to `of`.
   */
  place(
    op: Operation,
    dir: string,
    machine: Readonly<Record<string, unknown>>,
    of: { readonly shape: Shape; readonly contents: 'memory and disk' | 'disk'; readonly imageDigest: string | null },
  ): Promise<SnapshotPlaces>;
};

/** Where a memory may go on. `false`: where all is the same; `brought`: but the kernel and the agent, which are in it; `true`: wherever it can be tried. */
export type Forced = boolean | 'brought';

export type Snapshots = {
  /** What programs have written, and their kernel not yet put on its disk, is taken too: nobody has to ask for it in the guest. */
  readonly takesUnwritten?: true;
  /**
   * Writes memory and disk of one instant to `dir`, which must not be there yet, or the disk alone; the sandbox goes on as it
   * was. What is in `since` already, an earlier snapshot, is not stored again. On failure `dir` is gone.
   */
  take(
    op: Operation,
    plan: SandboxPlan,
    dir: string,
    how: {
      readonly what: 'memory and disk' | 'disk';
      readonly since: string | null;
      /** Of one that is suspended: what its memory was saved to (`Checkpoints.save`). */
      readonly saved?: string;
      /** `false`: it is gone before this host is, and need not be on its disk. */
      readonly lasts?: boolean;
    },
  ): Promise<SnapshotTaken>;
  /**
   * Where a take ends the process and starts another: the daemon that asked for one has died, and this lets the sandbox go on, if
   * it does not. False: there is nothing to go on with.
   */
  goOn?(op: Operation, plan: SandboxPlan): Promise<boolean>;
  /**
   * As `create`: the private disk is as it was. It is durable only after `Host.sync`. `spent`: nobody else begins with `dir`, which was not meant
   * to last and goes once this one has started, so that a file of it may become the disk.
   */
  create(op: Operation, plan: SandboxPlan, dir: string, of?: 'spent' | 'kept'): Promise<void>;
  /**
   * As `start`, after `create`: goes on in memory. Its guest takes itself for the other one until it is configured.
   * `forced`: also where it was made on another kind of machine.
   */
  start(op: Operation, plan: SandboxPlan, dir: string, how?: { readonly forced: Forced }): Promise<Started>;
  /**
   * Compares it with what was written. `what is needed`: what tells soon whether it can be gone on with; where that is the same as
   * every byte, every byte. @throws HutchError `failed_precondition` with what is wrong.
   */
  check(op: Operation, dir: string, how?: 'every byte' | 'what is needed'): Promise<void>;
  /**
   * Makes `path` its disk, an ext4 that nobody has mounted, as a sparse file; gives the directory at its top in which the private
   * layer lies. Absent where there is no such disk.
   */
  layOut?(op: Operation, dir: string, path: string): Promise<{ readonly layer: string }>;
  /** Instead of that: what was written above the image, as layers of a container engine, the lowest first. `hides`: names at their top that are our own. */
  layerFiles?(
    op: Operation,
    dir: string,
    scratch: string,
  ): Promise<{ readonly paths: readonly string[]; readonly hides: readonly string[] }>;
  /** Absent where they stay on the machine on which they were made. */
  readonly portable?: Portable;
  /** On what machine it was made and can go on, for people. */
  describe?(op: Operation, dir: string): Promise<Readonly<Record<string, unknown>>>;
  /**
   * Whether its memory can go on here, as a sandbox like that; `forced`: no more has to be the same than what nobody can do
   * without. @throws HutchError `failed_precondition` with what differs. Absent where nothing has to be the same.
   */
  fits?(
    op: Operation,
    plan: Pick<SandboxPlan, 'name' | 'shape' | 'boot' | 'network'>,
    dir: string,
    how: { readonly forced: Forced },
  ): Promise<void>;
  /** SHA-256 of all that was written, in hex. */
  digest(op: Operation, dir: string): Promise<string>;
  /** Where `create` makes more than files: of a sandbox that went back, or did not, nothing but what is its own stays. Again is as once. */
  settle?(op: Operation, plan: SandboxPlan): Promise<void>;
  /** Where `take` makes more than files: what one holds of that. What two of them have in common is the same of both. Null: an older version did not write it down. */
  holdings?(op: Operation, dir: string): Promise<readonly Holding[] | null>;
  /** Files that they may have one more name of, and that are there without them: of the machine itself, and so nobody's. */
  commons?(op: Operation): Promise<readonly string[]>;
  /** Where `take` makes more than files: what it made for directories that are gone goes. @throws HutchError `unavailable`. */
  sweep?(op: Operation): Promise<void>;
};
