// A repository travels to a daemon that is reached by an address and a key alone, as one on another machine.
import { appendFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { Hutch } from '../../src/sdk/hutch.ts';
import { bringWorkspace } from '../../src/sdk/workspace/bring.ts';
import { hasMoved, prepareWorkspace } from '../../src/sdk/workspace/prepare.ts';
import { DaemonUnderTest } from '../support/daemon-under-test.ts';
import { TestRepository } from './repository.ts';

let daemon: DaemonUnderTest;
let repository: TestRepository;

beforeAll(async () => {
  daemon = await DaemonUnderTest.start();
});
afterAll(async () => {
  await daemon[Symbol.asyncDispose]();
});
beforeEach(async () => {
  repository = await TestRepository.make();
});
afterEach(async () => {
  await repository[Symbol.asyncDispose]();
});

test('a repository goes to a daemon by its address and a key, is brought up to date there, and without git inside stays there', async () => {
  const { address } = daemon.ready;
  const { dir } = repository;
  await using sandbox = await Hutch.create({ url: `http://${address?.host}:${address?.port}`, apiKey: daemon.key, network: 'none' });
  const { workspace } = await prepareWorkspace(sandbox, dir, { guestPath: '/tmp/web' });
  expect(workspace).toMatchObject({ guestPath: '/tmp/web', mode: 'shallow_overlay', branch: 'main', repoName: 'web' });

  await appendFile(join(dir, 'README'), 'more\n');
  await writeFile(join(dir, 'untracked'), 'not asked for\n');
  repository.git('commit', '-qam', 'two');
  expect(await hasMoved(workspace)).toBe(true);
  expect(await prepareWorkspace(sandbox, dir)).toMatchObject({ incremental: true, files: 1 });
  expect(await sandbox.exec(['sh', '-c', 'cat README; ls; cat .git/HEAD'], { cwd: '/tmp/web' })).toMatchObject({
    exitCode: 0,
    stdout: 'hello\nmore\nREADME\nsrc\nref: refs/heads/main\n',
  });
  // What goes in needs no git there; what comes back does.
  await expect(bringWorkspace(sandbox)).rejects.toMatchObject({
    code: 'failed_precondition',
    message: expect.stringContaining('there is no git in'),
    hint: expect.stringContaining('hutch cp'),
  });

  using stranger = Hutch.connect({ url: `http://${address?.host}:${address?.port}`, apiKey: `e2b_${'0'.repeat(40)}` });
  await expect(stranger.sandbox(sandbox.id)).rejects.toMatchObject({ code: 'unauthenticated' });
});
