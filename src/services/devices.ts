// Devices of this machine that a container may use. None is there unless it is asked for, and may be by the configuration:
// who writes to a device has what it drives, which for a disk is the machine.

import type { Backend } from '../backends/backend.ts';
import type { Call } from './call.ts';
import type { Claims } from './claims.ts';
import type { Deps } from './deps.ts';

/** As they are kept with the sandbox. @throws HutchError that names the one that cannot be had, and why. */
export async function resolveDevices(
  deps: Pick<Deps, 'host' | 'settings' | 'store'>,
  { op, caller }: Call,
  claims: Claims,
  backend: Backend,
  wanted: readonly string[],
): Promise<readonly string[]> {
  if (wanted.length === 0) return [];
  await claims.need(op, backend, 'devices');
  if (caller.projectId !== deps.store.defaultProjectId)
    throw op.error('permission_denied', 'devices of this machine are for its owner: the project default');
  for (const [at, device] of wanted.entries()) {
    if (wanted.indexOf(device) !== at) throw op.error('invalid_argument', `devices: ${device} is given twice`);
    if (!deps.settings.devices.includes(device))
      throw op.error('permission_denied', `${device} may not be used: it is none of the devices that are allowed (devices.allow)`, {
        hint: `allow it in the configuration, [devices] allow = ["${device}"], and restart the daemon: hutch daemon stop`,
      });
    const info = await deps.host.stat(op, await deps.host.realPath(op, device));
    // A device is no file, directory, socket or symlink; the Engine looks closer.
    if (info?.type !== 'other') throw op.error('invalid_argument', `devices.${at}: ${device} is no device`);
  }
  return wanted;
}
