// The guest of a template, before it is saved: configured as no sandbox in particular, so that each sandbox
// is only told what differs. What a kernel does for the first time is slow under emulation, so all that
// every sandbox needs is done here once.
import type { Duplex } from 'node:stream';
import type { GuestDisk } from '../backends/qemu/config.ts';
import { connectAgent } from '../guest/agent.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { guestAddress } from '../network/passt.ts';

/** Only whether there is one counts: guests ask an address of passt's. */
const ANY_RESOLVER = '203.0.113.53';
/** What every sandbox reads first. */
export const WARM_PATHS = ['/bin/sh', '/bin/true', '/usr/bin/env', '/etc/passwd', '/etc/group'] as const;

/** Its files in /etc are there and no longer than any sandbox's: to write over them is cheap, to cut or make them is not. */
const NOBODY = {
  generation: 'template',
  hostname: 't',
  machineId: '0'.repeat(32),
  bootId: '00000000-0000-4000-8000-000000000000',
  env: {},
  secrets: {},
} as const;

/** Until a guest that boots has come so far; nothing of it is changed. */
export async function greetGuest(op: Operation, dial: (op: Operation) => Promise<Duplex>): Promise<void> {
  using agent = await connectAgent(op, await dial(op));
  await agent.hello(op);
}

export async function warmGuest(
  op: Operation,
  host: Pick<Host, 'nowMs' | 'randomBytes'>,
  dial: (op: Operation) => Promise<Duplex>,
  disk: GuestDisk,
): Promise<void> {
  using agent = await connectAgent(op, await dial(op));
  await agent.hello(op);
  const { mac: _, ...address } = guestAddress('', [ANY_RESOLVER]);
  await agent.configure(op, {
    ...NOBODY,
    ...{ clockMs: host.nowMs(), entropy: host.randomBytes(64) },
    disk: { ...disk, mount: 'overlay' },
    network: { ...address, up: true },
  });
  await agent.warm(op, WARM_PATHS);
  await agent.sync(op);
}
