// hutchd --restore FILE: puts a backup in the place of the store, and ends. It is the daemon of its data directory meanwhile, so
// that no other can be.
import { type Environment, placesOf } from '../config/places.ts';
import { HutchError } from '../domain/errors.ts';
import { newOpId } from '../domain/ids.ts';
import type { Host } from '../host/host.ts';
import { newOperation } from '../host/operation.ts';
import { keepWhatLies } from '../services/kept-by-restore.ts';
import { restoreStore } from '../store/backup.ts';

const SILENT = { debug() {}, info() {}, warn() {}, error() {} };

/** Prints one line of JSON: what was restored, or the error. Gives the exit code. */
export async function restoreAndTell(host: Host, env: Environment, backup: string): Promise<number> {
  const op = newOperation({ id: newOpId(host.randomBytes), actor: 'cli', log: SILENT });
  try {
    const places = placesOf({ uid: host.uid, env });
    await host.makeDir(op, places.dataDir, 0o711);
    const lock = await host.lockFile(op, places.lockPath);
    if (lock === null)
      throw op.error('conflict', `a daemon has ${places.dataDir}: its store cannot be exchanged under it`, {
        hint: 'end it first (sandboxes go on): systemctl stop hutchd where it is a service, else hutch daemon stop',
      });
    await using _held = lock;
    await keepWhatLies(op, host, places.dataDir);
    const { header, check, replaced } = await restoreStore(op, host, places.storePath, backup);
    const { version, schemaVersion, createdAtMs } = header;
    say({
      restored: {
        version,
        schemaVersion,
        createdAtMs,
        ledgerEntries: check.ledger.sequence,
        sandboxes: check.sandboxes,
        storePath: places.storePath,
        replaced,
      },
    });
    return 0;
  } catch (error) {
    const failure =
      error instanceof HutchError
        ? error
        : new HutchError({ code: 'internal', message: error instanceof Error ? error.message : String(error) });
    say({ error: failure.toBody() });
    return 1;
  }
}

function say(line: object): void {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}
