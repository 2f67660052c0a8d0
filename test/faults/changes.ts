// The daemon dies in the middle of a change of a sandbox's limits: what holds afterwards is what is on record, as nobody was told
// of anything else.
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import type { DaemonUnderTest } from '../support/daemon-under-test.ts';
import { eventually } from '../support/eventually.ts';
import { diedAt, disarmed } from './killed.ts';
import { expectInOrder, type World, works } from './world.ts';

const TEST_MS = 180_000;
const MIB = 1024 * 1024;
/** The change holds, and is not on record. */
const BEFORE_RECORD = { HUTCH_TEST_STORE_FAULT: 'die-before:1:applyEvent' };
const BEFORE_MIB = 160;
const AFTER_MIB = 384;
const IN_USE_MIB = 220;

type Limits = { readonly memoryMiB: number; readonly cpus: number };

/** Of Docker, where a change is in force at once. */
export function changesCutShort(world: World): void {
  const { daemon } = world;
  const make = async (): Promise<void> =>
    void (await daemon.call('sandbox.create', { name: 'it', memoryMiB: BEFORE_MIB, network: 'none' }));
  const set = (): Promise<unknown> => daemon.call('sandbox.set', { ref: 'it', memoryMiB: AFTER_MIB, cpus: 2, labels: { team: 'one' } });

  async function onRecord(): Promise<Limits & { readonly labels: Readonly<Record<string, string>>; readonly pending: unknown }> {
    const { shape, labels, pending } = await daemon.call('sandbox.get', { ref: 'it' });
    return { memoryMiB: shape.memoryMiB, cpus: shape.cpus, labels, pending };
  }

  test('a change of limits that was cut short before it was recorded is taken back by the next daemon', { timeout: TEST_MS }, async () => {
    await diedAt(world, BEFORE_RECORD, { prepare: make, act: set });
    expect(await inForce(world)).toEqual({ memoryMiB: AFTER_MIB, cpus: 2 });
    await disarmed(world);
    expect(await inForce(world)).toEqual({ memoryMiB: BEFORE_MIB, cpus: 1 });
    expect(await onRecord()).toEqual({ memoryMiB: BEFORE_MIB, cpus: 1, labels: {}, pending: null });
    await set();
    expect(await inForce(world)).toEqual({ memoryMiB: AFTER_MIB, cpus: 2 });
    await inOrder(daemon);
  });

  test('one that cannot be taken back, as the memory is in use by now, is kept and recorded whole', { timeout: TEST_MS }, async () => {
    const fill = `until [ $(cat /sys/fs/cgroup/memory/memory.limit_in_bytes) -gt ${BEFORE_MIB * MIB} ]; do sleep 0.1; done
      (head -c ${IN_USE_MIB * MIB} /dev/zero; sleep 100000) | tail`;
    const prepare = async (): Promise<void> => {
      await make();
      const filling = await daemon.exec('it', { argv: ['sh', '-c', fill] }, { execId: 'fill' });
      await filling.saw('started');
      filling.socket.terminate(); // it goes on without anybody
    };
    await diedAt(world, BEFORE_RECORD, { prepare, act: set });
    await eventually('the memory is in use', async () => (await memoryInUse(world)) > IN_USE_MIB * MIB);
    await disarmed(world);
    expect(await inForce(world)).toEqual({ memoryMiB: AFTER_MIB, cpus: 2 });
    expect(await onRecord()).toEqual({ memoryMiB: AFTER_MIB, cpus: 2, labels: { team: 'one' }, pending: null });
    await inOrder(daemon);
  });

  test('limits that a start was to bring, and that were set back after the daemon died in it, are not there', {
    timeout: TEST_MS,
  }, async () => {
    const prepare = async (): Promise<void> => {
      await make();
      await daemon.call('sandbox.stop', { ref: 'it', force: true });
      await set();
    };
    await diedAt(world, BEFORE_RECORD, { prepare, act: () => daemon.call('sandbox.start', { ref: 'it' }) });
    await disarmed(world);
    expect(await onRecord()).toMatchObject({ memoryMiB: BEFORE_MIB, pending: { memoryMiB: AFTER_MIB, cpus: 2 } });
    await daemon.call('sandbox.set', { ref: 'it', memoryMiB: BEFORE_MIB, cpus: 1 });
    await daemon.call('sandbox.start', { ref: 'it' });
    expect(await inForce(world)).toEqual({ memoryMiB: BEFORE_MIB, cpus: 1 });
    expect(await onRecord()).toMatchObject({ memoryMiB: BEFORE_MIB, cpus: 1, pending: null });
    await inOrder(daemon);
  });
}

/** Of Docker, whose Engine is asked to show what lies in our directories: the daemon that asked was killed. */
export function trialsCutShort(world: World): void {
  const { daemon, engine } = world;

  test('what a daemon has left in the Engine that was killed while it tried what that sees is gone with the next', {
    timeout: TEST_MS,
  }, async () => {
    if (engine === null) throw new Error('there is no Engine');
    await using undo = new AsyncDisposableStack();
    undo.defer(() => engine.removeContainers());
    await daemon.call('sandbox.create', { name: 'it', network: 'none' });
    const [made] = await engine.containers();
    const instance = made?.Labels['dev.hutch.instance'];
    await daemon.deleteAll();
    await daemon.kill9();
    const nothing = `hutch/nothing:${instance}`;
    await engine.import('hutch/nothing', `${instance}`);
    const marks = [join(daemon.home, 'data/docker'), join(daemon.home, 'run/sandboxes')].map((dir) => join(dir, 'nonce-op-0123456789ab'));
    for (const dir of marks) mkdirSync(dir, { recursive: true });
    const own = { Image: nothing, Entrypoint: ['/nothing'], Labels: { 'dev.hutch.instance': instance } };
    expect((await engine.ask('POST', '/containers/create', own)).status).toBe(201);
    const others = { ...own, Labels: { 'dev.hutch.instance': 'another' } };
    expect((await engine.ask('POST', '/containers/create?name=another', { ...others, Image: await anyImage(world) })).status).toBe(201);

    await disarmed(world);
    expect((await engine.containers()).map(({ Names }) => Names)).toEqual([['/another']]);
    expect((await engine.ask('GET', `/images/${nothing}/json`)).status).toBe(404);
    expect(await daemon.leaks()).toEqual([]);
  });
}

/** One that is not the trial's. */
async function anyImage({ engine }: World): Promise<string> {
  const images = (await engine?.ask('GET', '/images/json'))?.body as readonly {
    readonly Id: string;
    readonly RepoTags: readonly string[] | null;
  }[];
  return images.find(({ RepoTags }) => RepoTags?.every((tag) => !tag.startsWith('hutch/nothing')))?.Id ?? '';
}

/** Where a disk has a size of its own: it cannot be made smaller again. */
export function diskGrownByNobody(world: World): void {
  const { daemon } = world;
  const [smaller, larger] = [512, 640];

  test('a disk that a start has grown in which the daemon died is on record as grown', { timeout: TEST_MS }, async () => {
    const prepare = async (): Promise<void> => {
      await daemon.call('sandbox.create', { name: 'it', diskMiB: smaller, network: 'none' });
      await daemon.call('sandbox.stop', { ref: 'it', force: true });
      await daemon.call('sandbox.set', { ref: 'it', diskMiB: larger });
    };
    await diedAt(world, BEFORE_RECORD, { prepare, act: () => daemon.call('sandbox.start', { ref: 'it' }) });
    await disarmed(world);
    expect(await daemon.call('sandbox.get', { ref: 'it' })).toMatchObject({ state: 'stopped', shape: { diskMiB: larger }, pending: null });
    await expect(daemon.call('sandbox.set', { ref: 'it', diskMiB: smaller })).rejects.toThrow('disks only grow');
    await daemon.call('sandbox.start', { ref: 'it' });
    const { stdout } = await daemon.run('it', ['df', '-m', '--output=size', '/']);
    expect(Number(stdout.split('\n')[1])).toBeGreaterThan(smaller);
    await inOrder(daemon);
  });
}

async function inOrder(daemon: DaemonUnderTest): Promise<void> {
  await works(daemon, 'it');
  await expectInOrder(daemon);
  await daemon.deleteAll();
}

/** What the Engine keeps the one sandbox to. */
async function inForce(world: World): Promise<Limits> {
  const { HostConfig } = await ofEngine<{ HostConfig: { Memory: number; NanoCpus: number } }>(world, 'json');
  return { memoryMiB: HostConfig.Memory / MIB, cpus: HostConfig.NanoCpus / 1e9 };
}

async function memoryInUse(world: World): Promise<number> {
  const { memory_stats } = await ofEngine<{ memory_stats: { usage: number } }>(world, 'stats?stream=false&one-shot=true');
  return memory_stats.usage;
}

async function ofEngine<T>({ engine }: World, what: string): Promise<T> {
  const [container] = (await engine?.containers()) ?? [];
  return (await engine?.ask('GET', `/containers/${container?.Id}/${what}`))?.body as T;
}
