// Much of one thing: restores and boots in a row, creations at once, clients that race, vanish, or do
// not read. None of them hangs, and the daemon does not grow.
import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { ApiError, type DaemonUnderTest } from '../support/daemon-under-test.ts';
import { eventually } from '../support/eventually.ts';
import { createAtOnce } from './at-once.ts';
import { expectInOrder, expectNoLeaks, isLong, numbers, rssKiB, seed, startDaemon, works } from './world.ts';

const RESTORES = isLong ? 300 : 10;
const BOOTS = isLong ? 100 : 2;
const AT_ONCE = isLong ? 50 : 12;
const ROUNDS = isLong ? 40 : 4;
/** Commands that are answered while the flood goes on; each takes a second or more under emulation. */
const FLOODED = isLong ? 20 : 8;
const FLAT_KIB = 48 * 1024;

let daemon: DaemonUnderTest;
beforeAll(async () => {
  daemon = await startDaemon();
});
afterAll(() => daemon[Symbol.asyncDispose]());

/** Made, works, gone. */
async function life(): Promise<string> {
  const { id } = await daemon.call('sandbox.create', { network: 'none' });
  await works(daemon, id);
  await daemon.call('sandbox.delete', { ref: id, force: true });
  return id;
}

/** Whose the lines of the ledger are. */
async function billed(): Promise<Set<unknown>> {
  const ids = new Set<unknown>();
  for await (const line of daemon.lines('ledger.list', {})) ids.add((line as { readonly sandboxId: unknown }).sandboxId);
  return ids;
}

test(`${RESTORES} restores in a row all work`, { timeout: RESTORES * 20_000 }, async () => {
  for (let count = 0; count < RESTORES; count += 1) await life();
  await expectNoLeaks(daemon);
});

/** Complete, or in the making. */
async function templates(of: RegExp): Promise<boolean> {
  const names = await readdir(join(daemon.home, 'data/templates')).catch(() => []);
  return names.some((name) => of.test(name));
}
const MADE = /^[0-9a-f]{40}$/;
const IN_THE_MAKING = /^\.building-/;
const TEMPLATE_MS = 120_000;

test(`${BOOTS} cold boots in a row all work, and a template comes behind each`, { timeout: BOOTS * 2 * TEMPLATE_MS }, async () => {
  const known = await billed();
  for (let count = 0; count < BOOTS; count += 1) {
    await rm(join(daemon.home, 'data/templates'), { recursive: true });
    known.add(await life());
    await eventually('its template is made', () => templates(MADE), TEMPLATE_MS);
    known.add(await life()); // from it, so that the daemon is done with it before it is taken away
  }
  expect(await billed()).toEqual(known); // nobody for a template
  await expectNoLeaks(daemon);
});

test.each(['ends', 'is killed'])(
  'a daemon that %s while a template is made behind a first start leaves nothing of it',
  {
    timeout: 2 * TEMPLATE_MS,
  },
  async (how) => {
    await rm(join(daemon.home, 'data/templates'), { recursive: true });
    await life();
    await eventually('its template is begun', () => templates(IN_THE_MAKING), TEMPLATE_MS);
    await (how === 'ends' ? daemon.terminate() : daemon.kill9());
    if (how === 'ends') expect([await templates(IN_THE_MAKING), await daemon.processes()]).toEqual([false, []]);
    await daemon.startAgain();
    await life(); // makes what the other one has not
    await eventually('its template is made', () => templates(MADE), TEMPLATE_MS);
    await expectNoLeaks(daemon);
  },
);

test(`${AT_ONCE} creations at once all work, or say why not`, { timeout: AT_ONCE * 20_000 }, () => createAtOnce(daemon, AT_ONCE));

test(`clients that race stop, start, exec and rm leave a sandbox that is whole or gone (seed ${seed})`, {
  timeout: ROUNDS * 120_000,
}, async () => {
  const random = numbers(seed);
  const refused = /^(not_found|conflict|failed_precondition|unavailable|cancelled)$/;
  for (let round = 0; round < ROUNDS; round += 1) {
    const { id: ref } = await daemon.call('sandbox.create', { main: { argv: ['sleep', '100000'] } });
    const acts = [
      () => daemon.call('sandbox.stop', { ref, graceMs: 200 }),
      () => daemon.call('sandbox.stop', { ref, force: true }),
      () => daemon.call('sandbox.start', { ref }),
      () => daemon.call('sandbox.restart', { ref, graceMs: 0 }),
      () => daemon.run(ref, ['echo', 'hello']),
      () => daemon.call('sandbox.pause', { ref }),
      () => daemon.call('sandbox.resume', { ref }),
      ...(round % 2 === 0 ? [() => daemon.call('sandbox.delete', { ref, force: true })] : []),
    ];
    const one = () => acts[Math.floor(random.next().value * acts.length)] ?? works;
    const client = async (): Promise<void> => {
      for (let count = 0; count < 5; count += 1) {
        try {
          await (one() as () => Promise<unknown>)();
        } catch (error) {
          if (!(error instanceof ApiError)) throw error;
          expect(error.code, error.message).toMatch(refused);
        }
      }
    };
    await Promise.all([client(), client(), client()]);
    const now = await daemon.call('sandbox.get', { ref });
    if (now.state === 'paused') await daemon.call('sandbox.resume', { ref });
    await expectInOrder(daemon);
    if (now.state !== 'deleted') await daemon.call('sandbox.delete', { ref, force: true });
    expect(await daemon.processes()).toHaveLength(0);
  }
});

test('a client that vanishes in the middle of its streams leaves its command, and nothing in the daemon', async () => {
  const { id } = await daemon.call('sandbox.create', { network: 'none' });
  const client = await daemon.exec(
    id,
    { argv: ['sh', '-c', 'i=0; while :; do echo line $i; i=$((i+1)); sleep 0.01; done'], stdin: 'open' },
    { execId: 'talker' },
  );
  await client.sawOutput('line 20\n');
  const follower = await daemon.open('GET', `/v1/events?follow=true`);
  follower.on('error', () => {});
  client.socket.terminate();
  follower.destroy();
  const gone = new AbortController();
  async function* half(): AsyncGenerator<Uint8Array> {
    yield new Uint8Array(1024);
    gone.abort();
    yield new Uint8Array(1024);
  }
  const upload = daemon.open('PUT', `/v1/sandboxes/${id}/files?path=/half`, { body: half(), signal: gone.signal });
  await expect(upload).rejects.toThrow();
  await works(daemon, id);
  expect((await daemon.run(id, ['ls', '/half'])).exitCode).not.toBe(0);
  const again = await daemon.attach(id, 'talker', { stdoutOffset: String(client.stdout.byteLength) });
  await again.sawOutput('line ');
  expect(Buffer.concat([client.stdout, again.stdout]).toString('latin1')).toMatch(/^line 0\nline 1\nline 2\n/);
  again.socket.terminate();
  await eventually('nothing is under way for them any more', async () => {
    const { operations } = await daemon.call('operation.list', {});
    return !operations.some(({ verb }) => ['exec.start', 'exec.attach', 'file.write', 'event.list'].includes(verb));
  });
  await daemon.call('sandbox.delete', { ref: id, force: true });
});

test('a guest that floods while nobody reads leaves the daemon as small as it was', { timeout: 180_000 }, async () => {
  const { id } = await daemon.call('sandbox.create', {
    network: 'none',
    main: { argv: ['sh', '-c', 'cat /dev/zero & cat /dev/zero >&2'] },
  });
  await works(daemon, id);
  const before = rssKiB(daemon.pid);
  const clients = await Promise.all(Array.from({ length: 4 }, () => daemon.exec(id, { argv: ['cat', '/dev/zero'] })));
  for (const client of clients) {
    client.keep = false;
    await client.saw('started');
    client.socket.pause();
  }
  // Everybody else is served meanwhile, and each round gives the flood time to pile up.
  for (let count = 0; count < FLOODED; count += 1) {
    await works(daemon, id);
    expect(rssKiB(daemon.pid) - before).toBeLessThan(FLAT_KIB);
  }
  for (const client of clients) client.socket.terminate();
  await daemon.call('sandbox.delete', { ref: id, force: true });
  await expectNoLeaks(daemon);
});
