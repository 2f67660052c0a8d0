// Faults at the door to the durable state. Each of these wraps any Store: the N-th commit (a `claim`
// counts as one) fails, or is the last thing its process does. Which one that was stands in `hit`, so a
// test can walk N upwards until an operation no longer reaches it. Queries are not counted.
import { HutchError } from '../../src/domain/errors.ts';
import type { Change, Committer, Store } from '../../src/store/contract.ts';

export type StoreCommit = { readonly n: number; readonly opId: string; readonly changes: readonly Change['change'][] };

export type StoreFaultOptions = {
  /** Count the commits that hold this change alone. */
  readonly only?: Change['change'];
  readonly onHit?: (commit: StoreCommit) => void;
};

export type FaultyStore = Store & {
  readonly commits: readonly StoreCommit[];
  /** The commit that the fault struck; undefined while the N-th has not come. */
  readonly hit: StoreCommit | undefined;
};

/** What to do with the N-th commit instead of making it; `make` makes it. */
type Strike = (commit: StoreCommit, make: () => Promise<unknown>) => Promise<unknown>;

/** Only counts. */
export function countCommits(store: Store, options: StoreFaultOptions = {}): FaultyStore {
  return strikeAt(store, 0, options, (_commit, make) => make());
}

/** The N-th commit fails and changes nothing, as on a full disk. */
export function failNthCommit(store: Store, n: number, options: StoreFaultOptions = {}): FaultyStore {
  return strikeAt(store, n, options, ({ opId }) =>
    Promise.reject(new HutchError({ code: 'resource_exhausted', message: `injected failure of commit ${n}; nothing was changed`, opId })),
  );
}

/** The process dies before the N-th commit, or as soon as it is durable and nobody has heard of it. */
export function dieAtNthCommit(
  store: Store,
  n: number,
  options: StoreFaultOptions & { readonly when?: 'before' | 'after'; readonly die?: (commit: StoreCommit) => void } = {},
): FaultyStore {
  const die = options.die ?? (() => void process.kill(process.pid, 'SIGKILL'));
  return strikeAt(store, n, options, async (commit, make) => {
    if (options.when === 'after') await make();
    die(commit);
    return new Promise<never>(() => {});
  });
}

const FAULT = /^(fail|die-before|die-after):(\d+)(?::(\w+))?$/;

/** `ACTION:N` or `ACTION:N:CHANGE`, for a process that a test starts; see `hostWithFault`. */
export function storeWithFault(store: Store, fault: string | undefined, onHit?: (commit: StoreCommit) => void): Store {
  if (fault === undefined || fault === '') return store;
  const [, action, nText, only] = FAULT.exec(fault) ?? [];
  if (action === undefined) throw new Error(`cannot read the fault ${fault}: it is ACTION:N or ACTION:N:CHANGE`);
  const options: StoreFaultOptions = {
    ...(only === undefined ? {} : { only: only as Change['change'] }),
    ...(onHit === undefined ? {} : { onHit }),
  };
  const n = Number(nText);
  if (action === 'fail') return failNthCommit(store, n, options);
  return dieAtNthCommit(store, n, { ...options, when: action === 'die-after' ? 'after' : 'before' });
}

function strikeAt(store: Store, n: number, options: StoreFaultOptions, strike: Strike): FaultyStore {
  const commits: StoreCommit[] = [];
  let hit: StoreCommit | undefined;
  return new Proxy(store as FaultyStore, {
    get(target, name) {
      if (name === 'commits') return commits;
      if (name === 'hit') return hit;
      // Private fields want the store itself, not what stands around it.
      const member: unknown = Reflect.get(target, name, target);
      if (typeof member !== 'function') return member;
      return (...all: unknown[]) => {
        const make = (): unknown => Reflect.apply(member, target, all);
        if (name !== 'commit' && name !== 'claim') return make();
        const changes = (name === 'commit' ? all[1] : all[2]) as readonly Change[];
        const names = changes.map(({ change }) => change);
        if (options.only !== undefined && !names.includes(options.only)) return make();
        const commit = { n: commits.length + 1, opId: (all[0] as Committer).id, changes: names };
        commits.push(commit);
        if (commit.n !== n) return make();
        hit = commit;
        options.onHit?.(commit);
        return strike(commit, make as () => Promise<unknown>);
      };
    },
  });
}
