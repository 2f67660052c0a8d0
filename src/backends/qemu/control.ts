// Talking to a VMM that may be anything by now: its sockets are looked at before they are dialled, and
// every command has a deadline, so a stopped or hostile VMM costs its caller no more than that.
import { dirname } from 'node:path';
import type { Duplex } from 'node:stream';
import { HutchError } from '../../domain/errors.ts';
import type { Host, Reads } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import { asLongAs, pause } from '../wait.ts';
import { MIGRATION_MS, QMP_COMMAND_MS, QMP_READY_MS } from './config.ts';
import { openQmp, type Qmp } from './qmp.ts';

/** A socket that is bound but not yet listening refuses for an instant. */
const REFUSED_AGAIN_MS = 1;

/** Dials a socket of the VMM's. Its directory is the VMM's own, so a link there could lead anywhere: refused. */
export async function dialVmm(op: Operation, host: Host, path: string, reads: Reads = 'fresh'): Promise<Duplex> {
  const info = await host.stat(op, path);
  if (info === null) throw op.error('unavailable', `the virtual machine has no socket ${path}`);
  if (info.type !== 'socket') throw op.error('internal', `${path} is not a socket but a ${info.type}`);
  return await host.connectUnix(op, path, reads);
}

/** Dials a socket as soon as there is one. `stillWanted` throws when it will never come; it is not asked any more once this has returned. */
export async function dialWhenThere(op: Operation, host: Host, path: string, stillWanted: () => Promise<void>): Promise<Duplex> {
  using limited = op.within(QMP_READY_MS, `waiting for ${path}`);
  // Ended by its signal: a watch that is being waited for cannot be ended otherwise.
  const done = new AbortController();
  const watching = { ...limited, signal: AbortSignal.any([limited.signal, done.signal]) };
  const changes = host.watchDir(watching, dirname(path))[Symbol.asyncIterator]();
  const next = (): Promise<unknown> => {
    const change = changes.next();
    change.catch(() => {}); // it may end after nobody waits for it any more
    return change;
  };
  try {
    let change = next();
    for (;;) {
      if ((await host.stat(limited, path)) === null) {
        if ((await within(limited, LOOK_EVERY_MS, change)) === 'in time') change = next();
        else await stillWanted();
        continue;
      }
      try {
        return await dialVmm(limited, host, path);
      } catch (error) {
        if (!(error instanceof HutchError) || error.code !== 'unavailable') throw error;
        await stillWanted();
        await pause(limited, REFUSED_AGAIN_MS);
      }
    }
  } finally {
    done.abort();
  }
}

/** How often a VMM is looked at whose socket does not come: nothing tells of its death. */
const LOOK_EVERY_MS = 250;

async function within(op: Operation, ms: number, promise: Promise<unknown>): Promise<'in time' | 'not yet'> {
  using short = op.within(ms, 'a look');
  try {
    await asLongAs(short, 'wait', promise);
    return 'in time';
  } catch (error) {
    if (op.signal.aborted || !short.signal.aborted) throw error;
    return 'not yet';
  }
}

/** One command on a connection of its own, for a VMM that runs already. */
export async function command(
  op: Operation,
  host: Host,
  qmpPath: string,
  name: string,
  args?: Readonly<Record<string, unknown>>,
): Promise<unknown> {
  using limited = op.within(QMP_COMMAND_MS, `QEMU's answer to ${name}`);
  await using qmp = await openQmp(limited, await dialVmm(limited, host, qmpPath));
  return await qmp.execute(limited, name, args);
}

export const IGNORE_SHARED = {
  capabilities: [
    { capability: 'x-ignore-shared', state: true },
    { capability: 'events', state: true },
  ],
} as const;

/** Waits for the end of a save or a load. @throws HutchError `unavailable` when QEMU says that it failed. */
export async function migrated(op: Operation, qmp: Qmp): Promise<void> {
  using limited = op.within(MIGRATION_MS, "moving the machine's state");
  const end = await qmp.waitFor(limited, 'the end of the migration', ({ name, data }) => {
    return name === 'MIGRATION' && (data['status'] === 'completed' || data['status'] === 'failed');
  });
  if (end.data['status'] === 'failed') throw op.error('unavailable', "QEMU could not move the machine's state");
}
