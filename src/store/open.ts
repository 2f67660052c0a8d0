// Opening the file: checks that it is ours, whole and not from the future, and brings it up to date.
// Never creates anew what is damaged, and never touches what a newer Hutch wrote.
import { HutchError } from '../domain/errors.ts';
import { Db } from './db.ts';
import { damagedError } from './failure.ts';
import { APPLICATION_ID, MIGRATIONS, type Migration } from './schema.ts';

export type OpenedDb = {
  readonly db: Db;
  readonly lastClose: 'new' | 'clean' | 'unclean';
  /** The schema that it had, when that was an older one. */
  readonly migratedFrom: number | null;
};

/** `fresh`: the file was made a moment ago and is empty. Anything else that is empty is damaged. */
export function openDb(path: string, fresh: boolean, migrations: readonly Migration[] = MIGRATIONS): OpenedDb {
  const db = new Db(path);
  try {
    return { db, ...prepare(db, fresh, migrations) };
  } catch (error) {
    db.close();
    throw error;
  }
}

/** After this the next start knows that nothing was cut short. */
export function closeDb(db: Db): void {
  db.transaction('durable', () => setMeta(db, 'open', 'no'));
  db.exec('PRAGMA wal_checkpoint(TRUNCATE)');
  db.close();
}

function prepare(db: Db, fresh: boolean, migrations: readonly Migration[]): Omit<OpenedDb, 'db'> {
  const { path } = db;
  const applicationId = db.number('PRAGMA application_id');
  const version = db.number('PRAGMA user_version');
  const empty = applicationId === 0 && version === 0 && db.number('SELECT count(*) FROM sqlite_schema') === 0;
  if (empty && !fresh) throw damagedError(path, 'it is empty');
  if (!empty && applicationId !== APPLICATION_ID) {
    throw new HutchError({
      code: 'failed_precondition',
      message: `${path} is an SQLite file, but no store of Hutch`,
      hint: 'move it away',
    });
  }
  const newest = migrations.length;
  if (version > newest) {
    throw new HutchError({
      code: 'failed_precondition',
      message: `the store ${path} has schema ${version}; this Hutch knows schemas up to ${newest}`,
      hint: 'use the newer Hutch that wrote it, or restore a backup from before',
    });
  }
  const unclean = !empty && meta(db, 'open') !== 'no';
  if (unclean) check(db);
  migrate(db, version, empty, migrations);
  db.transaction('durable', () => setMeta(db, 'open', 'yes'));
  return {
    lastClose: empty ? 'new' : unclean ? 'unclean' : 'clean',
    migratedFrom: empty || version === newest ? null : version,
  };
}

function check(db: Db): void {
  const problems = db.all('PRAGMA quick_check(5)').map((row) => String(Object.values(row)[0]));
  if (problems.length !== 1 || problems[0] !== 'ok') throw damagedError(db.path, problems.join('; '));
}

function migrate(db: Db, from: number, empty: boolean, migrations: readonly Migration[]): void {
  if (from === migrations.length) return;
  // A copy of how it was: the only way back, since migrations only go forward. The caller has made
  // the file, empty and private, and gives it its name once everything went well.
  if (!empty) db.run('VACUUM INTO ?', copyPath(db.path));
  for (const migration of migrations.slice(from)) {
    db.transaction('durable', () => {
      db.exec(migration.sql);
      db.exec(`PRAGMA application_id = ${APPLICATION_ID}`);
      db.exec(`PRAGMA user_version = ${migration.version}`);
    });
  }
}

/** Where a migration leaves the copy of the store from before it. */
export function copyPath(path: string): string {
  return `${path}.before`;
}

export function meta(db: Db, key: string): string | null {
  const value = db.get('SELECT value FROM meta WHERE key = ?', key)?.['value'];
  return typeof value === 'string' ? value : null;
}

export function setMeta(db: Db, key: string, value: string): void {
  db.run('INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value', key, value);
}
