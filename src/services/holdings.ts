// What a snapshot holds of the disk, as it is found there: every file of its directory once, whatever other names that has, and what
// its backend keeps elsewhere.
import { fileHolding, type Holding, sumOfHoldings } from '../domain/holding.ts';
import type { BackendName } from '../domain/sandbox.ts';
import type { FileInfo, Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import type { Core } from './core.ts';
import { backendOf } from './deps.ts';

export type Found = {
  readonly holdings: readonly Holding[];
  /** With what the machine's own templates have of it. */
  readonly wholeBytes: number;
};

/** Null: its backend does not know it of what an older version of Hutch wrote. */
export async function findHoldings({ deps }: Pick<Core, 'deps'>, op: Operation, backend: BackendName, dir: string): Promise<Found | null> {
  const { host } = deps;
  const { snapshots } = backendOf(deps, op, backend);
  const [files, commons, elsewhere] = await Promise.all([
    filesBelow(op, host, dir),
    namesOf(op, host, (await snapshots?.commons?.(op)) ?? []),
    snapshots?.holdings?.(op, dir) ?? [],
  ]);
  const all = new Map(files.map((info) => [fileHolding(info).what, fileHolding(info)]));
  if (elsewhere === null) return null;
  for (const each of elsewhere) all.set(each.what, each);
  const holdings = [...all.values()];
  return { holdings: holdings.filter(({ what }) => !commons.has(what)), wholeBytes: sumOfHoldings(holdings) };
}

/** Of what was just written. */
export async function foundHoldings(core: Pick<Core, 'deps'>, op: Operation, backend: BackendName, dir: string): Promise<Found> {
  const found = await findHoldings(core, op, backend, dir);
  if (found === null) throw new Error(`the backend ${backend} does not know what it wrote to ${dir}`);
  return found;
}

/** Of a directory that we have made: some files, and a few directories with as many files as a memory or a disk has layers. */
async function filesBelow(op: Operation, host: Host, dir: string): Promise<readonly FileInfo[]> {
  const found = (await host.list(op, dir)).map(async (name) => {
    const path = `${dir}/${name}`;
    const info = await host.stat(op, path);
    if (info?.type === 'directory') return await filesBelow(op, host, path);
    return info?.type === 'file' ? [info] : [];
  });
  return (await Promise.all(found)).flat();
}

async function namesOf(op: Operation, host: Host, paths: readonly string[]): Promise<ReadonlySet<string>> {
  const names = new Set<string>();
  for (const path of paths) {
    const info = await host.stat(op, path);
    if (info !== null) names.add(fileHolding(info).what);
  }
  return names;
}
