// The tables of projects and API keys. A key is 160 random bits, so its SHA-256 is enough to know it by.
import * as z from 'zod';
import { HutchError } from '../domain/errors.ts';
import type { KeyId, ProjectId } from '../domain/ids.ts';
import type { ApiKey, Project } from '../domain/records.ts';
import { idColumn, timeColumn } from './columns.ts';
import type { ChangeMap, QueryMap } from './contract.ts';
import type { Db, Row } from './db.ts';
import type { Tx } from './tx.ts';

const DEFAULT_PROJECT_NAME = 'default';

const projectRow = z.object({ id: idColumn('prj'), name: z.string(), created_at_ms: timeColumn });

const keyRow = z.object({
  id: idColumn('key'),
  project_id: idColumn('prj'),
  name: z.string(),
  created_at_ms: timeColumn,
  last_used_at_ms: timeColumn.nullable(),
  revoked_at_ms: timeColumn.nullable(),
});

function projectFromRow(raw: Row): Project {
  const { id, name, created_at_ms } = projectRow.parse(raw);
  return { id, name, createdAtMs: created_at_ms };
}

function keyFromRow(raw: Row): ApiKey {
  const parsed = keyRow.parse(raw);
  return {
    id: parsed.id,
    projectId: parsed.project_id,
    name: parsed.name,
    createdAtMs: parsed.created_at_ms,
    lastUsedAtMs: parsed.last_used_at_ms,
    revokedAtMs: parsed.revoked_at_ms,
  };
}

/** The project that is there from the first start on; made with `id` if it is not there yet. */
export function ensureDefaultProject(db: Db, id: ProjectId, atMs: number): ProjectId {
  return db.transaction('durable', () => {
    db.run('INSERT INTO projects (id, name, created_at_ms) VALUES (?, ?, ?) ON CONFLICT (name) DO NOTHING', id, DEFAULT_PROJECT_NAME, atMs);
    return projectFromRow(db.get('SELECT * FROM projects WHERE name = ?', DEFAULT_PROJECT_NAME) ?? {}).id;
  });
}

export function listProjects(db: Db): readonly Project[] {
  return db.all('SELECT * FROM projects ORDER BY created_at_ms, id').map(projectFromRow);
}

export function createProject(tx: Tx, { id, name, atMs }: ChangeMap['createProject']['args']): Project {
  const { changes } = tx.db.run(
    'INSERT INTO projects (id, name, created_at_ms) VALUES (?, ?, ?) ON CONFLICT (name) DO NOTHING',
    ...[id, name, atMs],
  );
  if (changes === 0)
    throw new HutchError({ code: 'conflict', message: `there is a project named ${name}`, hint: 'run the same command again' });
  return { id, name, createdAtMs: atMs };
}

export function createKey(tx: Tx, { id, projectId, name, sha256, atMs }: ChangeMap['createKey']['args']): ApiKey {
  if (!/^[0-9a-f]{64}$/.test(sha256)) throw new Error('a key is stored by the 64 hex digits of its SHA-256');
  const holder = tx.db.get('SELECT id FROM api_keys WHERE project_id = ? AND name = ? AND revoked_at_ms IS NULL', projectId, name)?.['id'];
  if (holder !== undefined) {
    throw new HutchError({
      code: 'conflict',
      message: `there is a key named ${name} (${holder})`,
      hint: `choose another name, or revoke that one: hutch keys revoke ${name}`,
    });
  }
  tx.db.run('INSERT INTO api_keys (id, project_id, name, sha256, created_at_ms) VALUES (?, ?, ?, ?, ?)', id, projectId, name, sha256, atMs);
  return existing(tx.db, id);
}

export function touchKey(tx: Tx, { id, atMs }: ChangeMap['touchKey']['args']): null {
  tx.db.run('UPDATE api_keys SET last_used_at_ms = max(coalesce(last_used_at_ms, 0), ?) WHERE id = ?', atMs, id);
  return null;
}

export function revokeKey(tx: Tx, { id, atMs }: ChangeMap['revokeKey']['args']): ApiKey {
  tx.db.run('UPDATE api_keys SET revoked_at_ms = coalesce(revoked_at_ms, ?) WHERE id = ?', atMs, id);
  return existing(tx.db, id);
}

export function keyByHash(db: Db, sha256: string): ApiKey | null {
  const found = db.get('SELECT * FROM api_keys WHERE sha256 = ?', sha256);
  return found === undefined ? null : keyFromRow(found);
}

export function listKeys(db: Db, { projectId }: QueryMap['keys']['args']): readonly ApiKey[] {
  if (projectId === undefined) return db.all('SELECT * FROM api_keys ORDER BY created_at_ms, id').map(keyFromRow);
  return db.all('SELECT * FROM api_keys WHERE project_id = ? ORDER BY created_at_ms, id', projectId).map(keyFromRow);
}

function existing(db: Db, id: KeyId): ApiKey {
  const found = db.get('SELECT * FROM api_keys WHERE id = ?', id);
  if (found === undefined) throw new HutchError({ code: 'not_found', message: `there is no key ${id}` });
  return keyFromRow(found);
}
