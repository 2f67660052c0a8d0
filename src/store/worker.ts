// The thread that has the database. It opens the file, then answers whatever comes, a batch at a time:
// all that waits when it looks. Nothing else in the daemon touches SQLite, so a slow disk blocks
// only who waits for it.
import { type MessagePort, parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads';
import type { ProjectId } from '../domain/ids.ts';
import { checkStore, type StoreCheck } from './check.ts';
import type { Db } from './db.ts';
import { type Ask, answerBatch, type BackupAsk, type CommitAsk, type QueryAsk } from './engine.ts';
import { storeError, toWire, type WireError } from './failure.ts';
import { ensureDefaultProject } from './keys.ts';
import { closeDb, type OpenedDb, openDb } from './open.ts';
import { SCHEMA_VERSION } from './schema.ts';

export type WorkerStart = { readonly path: string; readonly fresh: boolean; readonly projectId: ProjectId; readonly nowMs: number };

/** Not a store to serve, but a copy to look at. */
export type CheckStart = { readonly check: string };
export type CheckAnswer = { readonly ok: true; readonly check: StoreCheck } | { readonly ok: false; readonly error: WireError };

export type WorkerReady =
  | ({ readonly ready: true; readonly defaultProjectId: ProjectId; readonly schemaVersion: number } & Omit<OpenedDb, 'db'>)
  | { readonly ready: false; readonly error: WireError };

if (parentPort === null) throw new Error('the store is opened by openStore, not run by itself');
if ('check' in (workerData as CheckStart | WorkerStart)) look(parentPort, workerData as CheckStart);
else serve(parentPort, workerData as WorkerStart);

function look(port: MessagePort, { check: path }: CheckStart): void {
  try {
    port.postMessage({ ok: true, check: checkStore(path) } satisfies CheckAnswer);
  } catch (error) {
    port.postMessage({ ok: false, error: toWire(storeError(error, path)) } satisfies CheckAnswer);
  }
  port.close();
}

function serve(port: MessagePort, start: WorkerStart): void {
  let db: Db;
  try {
    const opened = openDb(start.path, start.fresh);
    db = opened.db;
    const defaultProjectId = ensureDefaultProject(db, start.projectId, start.nowMs);
    const { lastClose, migratedFrom } = opened;
    port.postMessage({ ready: true, defaultProjectId, schemaVersion: SCHEMA_VERSION, lastClose, migratedFrom } satisfies WorkerReady);
  } catch (error) {
    port.postMessage({ ready: false, error: toWire(storeError(error, start.path)) } satisfies WorkerReady);
    port.close();
    return;
  }
  port.on('message', (first: Ask) => {
    const asks = waiting(port, first);
    const work = asks.filter((ask): ask is CommitAsk | QueryAsk => ask.ask === 'commit' || ask.ask === 'query');
    answerBatch(db, work, (answer) => port.postMessage(answer));
    for (const ask of asks) if (ask.ask === 'backup') copyInto(db, port, ask);
    const close = asks.find((ask) => ask.ask === 'close');
    if (close === undefined) return;
    finish(db, port, close.id);
    port.close();
  });
}

/** What came in while the last batch was worked at. */
function waiting(port: MessagePort, first: Ask): Ask[] {
  const asks = [first];
  for (let next = receiveMessageOnPort(port); next !== undefined; next = receiveMessageOnPort(port)) asks.push(next.message as Ask);
  return asks;
}

/** With all that was committed before, and nothing of what comes after. */
function copyInto(db: Db, port: MessagePort, { id, path }: BackupAsk): void {
  try {
    db.run('VACUUM INTO ?', path);
    port.postMessage({ id, ok: true, value: null, news: null });
  } catch (error) {
    port.postMessage({ id, ok: false, error: toWire(storeError(error, path)) });
  }
}

function finish(db: Db, port: MessagePort, id: number): void {
  try {
    closeDb(db);
    port.postMessage({ id, ok: true, value: null, news: null });
  } catch (error) {
    // The next start finds the store unclean and checks it: nothing that was answered is lost.
    port.postMessage({ id, ok: false, error: toWire(storeError(error, db.path)) });
  }
}
