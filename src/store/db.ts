// One connection to the SQLite file: prepared statements, transactions, and opening. Always true: the
// file is locked exclusively while it is open, so nobody else can write, or read a half of what we do.
import { DatabaseSync, type SQLInputValue, type SQLOutputValue, type StatementSync } from 'node:sqlite';
import type { Durability } from './contract.ts';

export type Row = Record<string, SQLOutputValue>;

/** How long to wait for another process that is just closing the file. */
const BUSY_TIMEOUT_MS = 2_000;

export class Db implements Disposable {
  readonly path: string;
  readonly #sqlite: DatabaseSync;
  readonly #statements = new Map<string, StatementSync>();
  #durability: Durability | undefined;

  /** @throws what SQLite throws: `storeError` explains it. */
  constructor(path: string) {
    this.path = path;
    this.#sqlite = new DatabaseSync(path, { timeout: BUSY_TIMEOUT_MS, enableForeignKeyConstraints: true });
    try {
      // Before the first access: with an exclusive lock the write-ahead log needs no shared memory file.
      this.exec('PRAGMA locking_mode = EXCLUSIVE');
      this.exec('PRAGMA trusted_schema = OFF');
      this.exec('PRAGMA journal_mode = WAL');
      this.exec('PRAGMA journal_size_limit = 16777216');
      this.exec('PRAGMA temp_store = MEMORY');
      this.exec('BEGIN EXCLUSIVE');
      this.exec('COMMIT');
    } catch (error) {
      this.#sqlite.close();
      throw error;
    }
  }

  /** For statements without parameters or rows. */
  exec(sql: string): void {
    this.#sqlite.exec(sql);
  }

  run(sql: string, ...parameters: SQLInputValue[]): { readonly changes: number; readonly lastRowId: number } {
    const { changes, lastInsertRowid } = this.#statement(sql).run(...parameters);
    return { changes: Number(changes), lastRowId: Number(lastInsertRowid) };
  }

  get(sql: string, ...parameters: SQLInputValue[]): Row | undefined {
    return this.#statement(sql).get(...parameters);
  }

  all(sql: string, ...parameters: SQLInputValue[]): Row[] {
    return this.#statement(sql).all(...parameters);
  }

  /** For results that are large: leaving the loop ends the reading. */
  iterate(sql: string, ...parameters: SQLInputValue[]): Iterable<Row> {
    return this.#statement(sql).iterate(...parameters);
  }

  /** A whole number that is there for sure: a count, a pragma. */
  number(sql: string, ...parameters: SQLInputValue[]): number {
    const value = Object.values(this.get(sql, ...parameters) ?? {})[0];
    if (typeof value !== 'number') throw new Error(`no number from: ${sql}`);
    return value;
  }

  get inTransaction(): boolean {
    return this.#sqlite.isTransaction;
  }

  /** `work` happens whole or not at all. Not to be nested. */
  transaction<T>(durability: Durability, work: () => T): T {
    this.#setDurability(durability);
    this.run('BEGIN IMMEDIATE');
    try {
      const result = work();
      this.run('COMMIT');
      return result;
    } catch (error) {
      if (this.inTransaction) this.run('ROLLBACK');
      throw error;
    }
  }

  /** Inside a transaction: `work` happens whole, or not at all and throws. */
  savepoint<T>(work: () => T): T {
    this.run('SAVEPOINT part');
    try {
      const result = work();
      this.run('RELEASE part');
      return result;
    } catch (error) {
      // Some failures of the disk end the whole transaction; then there is nothing left to undo.
      if (this.inTransaction) {
        this.run('ROLLBACK TO part');
        this.run('RELEASE part');
      }
      throw error;
    }
  }

  close(): void {
    this.#statements.clear();
    this.#sqlite.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /** FULL syncs the log at each commit; NORMAL leaves that to the next one that does. */
  #setDurability(durability: Durability): void {
    if (this.#durability === durability) return;
    this.exec(durability === 'durable' ? 'PRAGMA synchronous = FULL' : 'PRAGMA synchronous = NORMAL');
    this.#durability = durability;
  }

  #statement(sql: string): StatementSync {
    let statement = this.#statements.get(sql);
    if (statement === undefined) {
      statement = this.#sqlite.prepare(sql);
      this.#statements.set(sql, statement);
    }
    return statement;
  }
}
