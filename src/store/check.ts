// Whether a file is a whole store: that SQLite finds nothing wrong in it, and that the ledger's chain is unbroken from the
// first entry to the last. Done in a worker of its own, on a copy: nobody else waits for it.
import { HutchError } from '../domain/errors.ts';
import type { LedgerPosition } from './contract.ts';
import { Db } from './db.ts';
import { damagedError } from './failure.ts';
import { checkLedger, GENESIS } from './ledger.ts';
import { APPLICATION_ID, SCHEMA_VERSION } from './schema.ts';

export type StoreCheck = { readonly schemaVersion: number; readonly ledger: LedgerPosition; readonly sandboxes: number };

const PROBLEMS_MAX = 5;

/** @throws HutchError `internal` that says what is wrong; `failed_precondition` for one that a newer Hutch wrote, or that is none. */
export function checkStore(path: string): StoreCheck {
  using db = new Db(path);
  if (db.number('PRAGMA application_id') !== APPLICATION_ID)
    throw new HutchError({ code: 'failed_precondition', message: `${path} is no store of Hutch` });
  const schemaVersion = db.number('PRAGMA user_version');
  if (schemaVersion > SCHEMA_VERSION)
    throw new HutchError({
      code: 'failed_precondition',
      message: `${path} has schema ${schemaVersion}; this Hutch knows schemas up to ${SCHEMA_VERSION}`,
      hint: 'use the newer Hutch that wrote it',
    });
  const problems = db.all(`PRAGMA integrity_check(${PROBLEMS_MAX})`).map((row) => String(Object.values(row)[0]));
  if (problems.length !== 1 || problems[0] !== 'ok') throw damagedError(path, problems.join('; '));
  for (let at = GENESIS; ; ) {
    const check = checkLedger(db, { from: at });
    if (check.state === 'broken') throw damagedError(path, `its ledger is broken: entry ${check.sequence} ${check.problem}`);
    at = check.at;
    if (check.state === 'whole') return { schemaVersion, ledger: at, sandboxes: db.number('SELECT count(*) FROM sandboxes') };
  }
}
