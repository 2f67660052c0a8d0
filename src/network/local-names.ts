// Names below `hutch.localhost`, at which published ports answer. Browsers know by themselves that what ends in .localhost is this
// machine; other programs ask the machine.
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';

const PROBE = 'doctor.hutch.localhost';
export const NAMES_FIX = 'apt-get install libnss-myhostname';

/** Whether this machine finds them; `unknown` where it has no program to ask with. */
export async function findsLocalNames(op: Operation, host: Host): Promise<'yes' | 'no' | 'unknown'> {
  if ((await host.which(op, 'getent')) === null) return 'unknown';
  const { exitCode, stdout } = await host.run(op, ['getent', 'ahosts', PROBE]);
  const addresses = new TextDecoder()
    .decode(stdout)
    .split('\n')
    .flatMap((line) => line.split(' ')[0] || []);
  return exitCode === 0 && addresses.length > 0 && addresses.every((address) => /^127\.|^::1$/.test(address)) ? 'yes' : 'no';
}
