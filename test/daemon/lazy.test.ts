// What a daemon does not ask before somebody wants to know.
import { existsSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { ApiError, DaemonUnderTest } from '../support/daemon-under-test.ts';

const ROOT = join(import.meta.dirname, '../..');

test('a daemon asks neither gVisor nor Docker anything before somebody wants them', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'hutch-lazy-'));
  onTestFinished(() => rm(dir, { recursive: true, force: true }));
  const asked: string[] = [];
  const engine = createServer((request, answer) => {
    asked.push(request.url ?? '');
    answer.writeHead(500).end();
  });
  await new Promise<void>((resolve) => engine.listen(join(dir, 'docker.sock'), resolve));
  onTestFinished(() => void engine.close());

  await using daemon = await DaemonUnderTest.start({
    entry: join(ROOT, 'src/daemon/main.ts'),
    env: { DOCKER_HOST: `unix://${dir}/docker.sock` },
  });
  await daemon.call('sandbox.list', {});
  await daemon.call('config.get', {});
  await daemon.terminate();
  await daemon.startAgain();
  expect(asked).toEqual([]);
  // Whoever tries what a runtime can do keeps the answer there.
  expect(existsSync(join(daemon.home, 'run/work'))).toBe(false);

  await expect(daemon.call('sandbox.create', { backend: 'docker', image: 'docker://some/image:1' })).rejects.toBeInstanceOf(ApiError);
  expect(asked[0]).toBe('/_ping');
});
