// A world of containers of an image of next to nothing: bringing it into the Engine, reading it from there and keeping it there takes no time.
import { readFile } from 'node:fs/promises';
import { image, type Member, tar } from '../images/archives.ts';
import { fakeRegistry } from '../images/registry.ts';
import { DockerWorld } from './world.ts';

export type SmallWorld = AsyncDisposable & {
  readonly world: DockerWorld;
  /** By which the image is pulled. */
  readonly image: string;
};

/** With these programs of busybox in the image. */
export async function startSmall(
  options: Parameters<typeof DockerWorld.start>[0],
  programs: readonly string[],
  ...more: readonly Member[]
): Promise<SmallWorld> {
  await using undo = new AsyncDisposableStack();
  const world = undo.use(await DockerWorld.start(options));
  const registry = undo.use(await fakeRegistry());
  const rootfs = tar(
    { path: 'bin/busybox', mode: 0o755, content: await readFile('/bin/busybox') },
    ...programs.map((name) => ({ path: `bin/${name}`, type: 'symlink' as const, link: 'busybox' })),
    { path: 'etc/passwd', content: 'root:x:0:0::/root:/bin/sh\n' },
    ...more,
    { path: 'root/', type: 'directory', mode: 0o700 },
  );
  registry.put('team/small', '1', image([rootfs], { config: { Env: ['PATH=/bin'] } }));
  const kept = undo.move();
  return { world, image: `${registry.name}/team/small:1`, [Symbol.asyncDispose]: () => kept.disposeAsync() };
}

/** Sandboxes go, and after them all snapshots. */
export async function clearSnapshots(world: DockerWorld): Promise<void> {
  await world.clear();
  for (const { id } of (await world.daemon.call('snapshot.list', { all: true })).snapshots)
    await world.daemon.call('snapshot.remove', { snapshot: id, cascade: true }).catch(() => {});
}
