import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import ssh2 from 'ssh2';
import { expect, test } from 'vitest';
import { testOperation } from '../../../test/support/operation.ts';
import type { ProjectId } from '../../domain/ids.ts';
import { nodeHost } from '../../host/node-host.ts';
import type { Deps } from '../deps.ts';
import { newPair, SshKeys, type SshPair } from './keys.ts';

const PROJECT = 'prj9xegzbwe64zbfmhqa' as ProjectId;

function expectWhole({ publicKey, privateKey }: SshPair): void {
  for (const key of [publicKey, privateKey]) expect(ssh2.utils.parseKey(key)).not.toBeInstanceOf(Error);
}

test('every pair of keys is one, also where its public half begins with a zero', () => {
  for (let made = 0; made < 2_000; made += 1) expectWhole(newPair(ssh2.utils, 'hutch-test'));
});

test('a pair is kept; one that never was one, as earlier versions now and then wrote it, is made anew', async () => {
  const dataDir = await mkdtemp(join(tmpdir(), 'hutch-ssh-keys-'));
  await using _gone = { [Symbol.asyncDispose]: () => rm(dataDir, { recursive: true }) };
  const keys = () => new SshKeys({ host: nodeHost(), places: { dataDir } as Deps['places'] });
  const first = await keys().project(testOperation(), PROJECT);
  expectWhole(first);
  expect(await keys().project(testOperation(), PROJECT)).toEqual({ ...first, publicKey: first.publicKey.trim() });

  const path = join(dataDir, 'ssh', `${PROJECT}.pub`);
  await writeFile(path, 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAH1JF8g96PHC+jBWkgTraBKYG1J4XsiWctq6VppWB3gw= hutch\n');
  const again = await keys().project(testOperation(), PROJECT);
  expectWhole(again);
  expect(again.publicKey).not.toBe(first.publicKey);
  expect((await readFile(path, 'utf8')).trim()).toBe(again.publicKey.trim());
});
