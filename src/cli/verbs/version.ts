// hutch version: ours, and the daemon's where one runs. It starts none.

import { HutchError } from '../../domain/errors.ts';
import { ConnectionError } from '../../sdk/errors.ts';
import type { Output } from '../../services/verbs.ts';
import type { Args } from '../args.ts';
import { ask, type Context } from '../context.ts';
import { json } from '../output.ts';
import { VERSION } from '../version.ts';

export async function run(context: Context, _args: Args): Promise<number> {
  const daemon = await daemonVersion(context);
  if (context.json) await context.io.out(json({ version: VERSION, node: process.versions.node, daemon }));
  else {
    const parts = daemon === null ? 'none runs' : `${daemon.version} (process ${daemon.pid}, QEMU ${daemon.qemuVersion ?? 'not found'})`;
    await context.io.out(`hutch   ${VERSION} (Node ${process.versions.node})\ndaemon  ${parts}\n`);
  }
  return 0;
}

export async function daemonVersion(context: Context): Promise<Output<'daemon.version'> | null> {
  try {
    return await ask(context, 'daemon.version', {});
  } catch (error) {
    if (error instanceof ConnectionError && !error.sent) return null;
    // No key was made yet: no daemon has ever run here.
    if (error instanceof HutchError && error.code === 'unauthenticated' && error.opId === null) return null;
    throw error;
  }
}
