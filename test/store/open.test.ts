import { createHash } from 'node:crypto';
import { copyFile, mkdir, readdir, readFile, stat, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { expect, test } from 'vitest';
import { HutchError } from '../../src/domain/errors.ts';
import { newId } from '../../src/domain/ids.ts';
import { closeDb, copyPath, openDb } from '../../src/store/open.ts';
import { MIGRATIONS, SCHEMA_VERSION } from '../../src/store/schema.ts';
import { testOperation } from '../support/operation.ts';
import { someSandboxId, someSpec } from './support/sandboxes.ts';
import { openAt, tempDir } from './support/stores.ts';

const op = testOperation();

/** A store with one sandbox, closed. */
async function closedStore(dir: string): Promise<string> {
  const path = join(dir, 'hutch.db');
  const store = await openAt(path);
  await store.commit(op, [
    { change: 'createSandbox', id: someSandboxId(), projectId: store.defaultProjectId, spec: someSpec('web'), atMs: 1 },
  ]);
  await store.close();
  return path;
}

async function refusal(path: string): Promise<HutchError> {
  const error = await openAt(path).then(
    () => null,
    (reason: unknown) => reason,
  );
  if (error instanceof HutchError) return error;
  throw new Error('it opened', { cause: error });
}

function tamper(path: string, sql: string): void {
  const db = new DatabaseSync(path);
  db.exec(sql);
  db.close();
}

for (const older of MIGRATIONS.slice(0, -1)) {
  test(`a store of schema ${older.version} is brought up to date, and a copy of it is kept`, async () => {
    await using dir = await tempDir();
    const path = join(dir.path, 'hutch.db');
    await writeFile(path, '', { mode: 0o600 });
    const { db } = openDb(path, true, MIGRATIONS.slice(0, older.version));
    const projectId = newId('prj', () => new Uint8Array(17).fill(8));
    db.run('INSERT INTO projects (id, name, created_at_ms) VALUES (?, ?, ?)', projectId, 'default', 1);
    closeDb(db);

    const store = await openAt(path);
    expect([store.schemaVersion, store.defaultProjectId, store.lastClose]).toEqual([SCHEMA_VERSION, projectId, 'clean']);
    await store.commit(op, [{ change: 'createSandbox', id: someSandboxId(), projectId, spec: someSpec('web'), atMs: 1 }]);
    await store.close();

    const copy = `${path}.schema-${older.version}`;
    expect((await readdir(dir.path)).toSorted()).toEqual(['hutch.db', `hutch.db.schema-${older.version}`]);
    expect((await stat(copy)).mode & 0o777).toBe(0o600);
    const old = openDb(copy, false, MIGRATIONS.slice(0, older.version));
    expect(old.db.number('SELECT count(*) FROM projects')).toBe(1);
    old.db.close();
  });
}

test('a migration that fails leaves the store as it was', async () => {
  await using dir = await tempDir();
  const path = await closedStore(dir.path);
  await writeFile(copyPath(path), '', { mode: 0o600 });
  const broken = {
    version: SCHEMA_VERSION + 1,
    what: 'broken',
    sql: 'CREATE TABLE half (a TEXT) STRICT; CREATE TABLE half (a TEXT) STRICT;',
  };
  expect(() => openDb(path, false, [...MIGRATIONS, broken])).toThrow('table half already exists');
  await using store = await openAt(path);
  expect([store.schemaVersion, await store.query('countSandboxes', {})]).toEqual([SCHEMA_VERSION, 1]);
});

test('released migrations are never edited', () => {
  expect(MIGRATIONS.map(({ version }) => version)).toEqual(MIGRATIONS.map((_, index) => index + 1));
  const digests = MIGRATIONS.map(({ sql }) => createHash('sha256').update(sql.replaceAll(/\s+/g, ' ').trim()).digest('hex').slice(0, 16));
  // Add the digest of a new migration here; one that changes means that stores out there differ from the code.
  expect(digests).toEqual([
    '4b815de1144e2866',
    'f235311b4ce297bb',
    '890096032d37bbb7',
    'd73605f07ab424e6',
    '5ea6b3ccd241ab27',
    '8a1db62ff1cd72a9',
    '9c31b07fd6d855d1',
    'ec947faa2ee00a40',
    'be393716f88618f6',
    '7ca02125b2cda2a0',
    '2b364c6958ec76c9',
    '1ccb6fdeb23a40eb',
    '146d04eee8db514d',
  ]);
});

test('a store of a newer Hutch is refused with a way out, and left alone', async () => {
  await using dir = await tempDir();
  const path = await closedStore(dir.path);
  tamper(path, `PRAGMA user_version = ${SCHEMA_VERSION + 5}`);
  const before = await readFile(path);
  expect(await refusal(path)).toMatchObject({
    code: 'failed_precondition',
    message: `the store ${path} has schema ${SCHEMA_VERSION + 5}; this Hutch knows schemas up to ${SCHEMA_VERSION}`,
    hint: 'use the newer Hutch that wrote it, or restore a backup from before',
  });
  expect(await readFile(path)).toEqual(before);
});

test('another program’s database is refused', async () => {
  await using dir = await tempDir();
  const path = join(dir.path, 'hutch.db');
  tamper(path, 'CREATE TABLE theirs (a)');
  expect(await refusal(path)).toMatchObject({ code: 'failed_precondition', message: `${path} is an SQLite file, but no store of Hutch` });
});

test.each([
  ['emptied', (path: string) => truncate(path, 0), /is damaged \(it is empty\)/],
  ['no database', (path: string) => writeFile(path, 'x'.repeat(10_000)), /is damaged \(file is not a database\)/],
  ['cut in half', async (path: string) => truncate(path, (await stat(path)).size / 2), /is damaged/],
])('a store that is %s is refused and left as it is, never made anew', async (_what, harm, message) => {
  await using dir = await tempDir();
  const path = await closedStore(dir.path);
  await harm(path);
  const before = await readFile(path);
  const error = await refusal(path);
  expect(error).toMatchObject({ code: 'internal', hint: expect.stringContaining('restore it from a backup') });
  expect(error.message).toMatch(message);
  expect(await readFile(path)).toEqual(before);
});

test('a log without its store is refused: it belongs to one that is gone', async () => {
  await using dir = await tempDir();
  const path = join(dir.path, 'hutch.db');
  await writeFile(`${path}-wal`, 'something');
  expect(await refusal(path)).toMatchObject({
    code: 'internal',
    message: `the store ${path} is damaged (it is missing, but its log is there); it was left as it is`,
  });
});

test('a flipped page is found after an unclean end', async () => {
  await using dir = await tempDir();
  const path = await closedStore(dir.path);
  tamper(path, "UPDATE meta SET value = 'yes' WHERE key = 'open'");
  const bytes = await readFile(path);
  bytes.fill(0xff, 4_096 * 3, 4_096 * 4);
  await writeFile(path, bytes);
  expect(await refusal(path)).toMatchObject({ code: 'internal', message: expect.stringContaining('is damaged') });
});

test('a store that its daemon did not close is checked and opens with all that was committed', async () => {
  await using dir = await tempDir();
  const path = join(dir.path, 'hutch.db');
  await using store = await openAt(path);
  await store.commit(op, [
    { change: 'createSandbox', id: someSandboxId(), projectId: store.defaultProjectId, spec: someSpec('web'), atMs: 1 },
  ]);
  // What a dead daemon leaves: the files as they are now.
  const left = join(dir.path, 'left');
  await mkdir(left);
  for (const file of ['hutch.db', 'hutch.db-wal']) await copyFile(join(dir.path, file), join(left, file));
  await using again = await openAt(join(left, 'hutch.db'));
  expect([again.lastClose, await again.query('countSandboxes', {})]).toEqual(['unclean', 1]);
});

test('a second opener is told who is in the way, and disturbs nobody', async () => {
  await using dir = await tempDir();
  const path = await closedStore(dir.path);
  await using store = await openAt(path);
  expect(await refusal(path)).toMatchObject({
    code: 'conflict',
    message: `another process has the store ${path} open`,
    hint: 'there can be one daemon to a data directory: hutch daemon status',
  });
  expect(await store.query('countSandboxes', {})).toBe(1);
});

test('a store in a directory that is not there cannot be made, and nothing is left', async () => {
  await using dir = await tempDir();
  expect(await refusal(join(dir.path, 'nowhere', 'hutch.db'))).toMatchObject({ code: 'not_found' });
  expect(await readdir(dir.path)).toEqual([]);
});

test('an interrupted first start begins again', async () => {
  await using dir = await tempDir();
  const path = join(dir.path, 'hutch.db');
  await writeFile(`${path}.new`, 'half');
  await writeFile(`${path}.new-wal`, 'half');
  await using store = await openAt(path);
  expect([store.lastClose, await store.query('countSandboxes', {})]).toEqual(['new', 0]);
});

test('opening hears its caller’s cancellation', async () => {
  await using dir = await tempDir();
  const { openStore } = await import('../../src/store/store.ts');
  const { nodeHost } = await import('../../src/host/node-host.ts');
  const path = await closedStore(dir.path);
  const cancelled = testOperation({ signal: AbortSignal.abort(new Error('never mind')) });
  await expect(openStore({ path, host: nodeHost(), op: cancelled })).rejects.toMatchObject({ code: 'cancelled' });
  await (await openAt(path)).close();
});
