// The VMM's own user network, where nothing better works and the configuration says so: it maps an
// address to this machine's loopback, so a sandbox reaches every server here. It keeps no promise of
// decision 10 but one: `none` is none.
import { createHash } from 'node:crypto';
import type { NetworkMode } from '../domain/sandbox.ts';
import type { Operation } from '../host/operation.ts';
import type { GuestAddress, Network, NetworkAbilities } from './network.ts';

const NOTE = "QEMU's own user network is used, as the configuration says: sandboxes reach servers on this machine and its network";

/** `network` for what it can do; the VMM's own for the rest. */
export function orVmmUser(network: Network): Network {
  let asked: Promise<NetworkAbilities> | undefined;
  const abilities = async (op: Operation): Promise<NetworkAbilities> => {
    asked ??= network.probe(op);
    try {
      return await asked;
    } catch (error) {
      asked = undefined;
      throw error;
    }
  };
  const isBetter = async (op: Operation, mode: NetworkMode): Promise<boolean> => (await abilities(op)).modes.includes(mode);
  return {
    async probe(op) {
      const { modes, notes } = await abilities(op);
      return modes.includes('allow') ? { modes, notes } : { modes: ['none', 'allow', 'allow-lan'], notes: [...notes, NOTE] };
    },
    async wire(op, plan) {
      if (await isBetter(op, plan.mode)) return await network.wire(op, plan);
      return { kind: 'vmm-user', guest: vmmUserAddress(plan.id) };
    },
    async admit(op, plan, seen) {
      if (await isBetter(op, plan.mode)) await network.admit(op, plan, seen);
    },
    async close(op, plan) {
      if (await isBetter(op, plan.mode)) await network.close(op, plan);
    },
    end: (op) => network.end(op),
  };
}

/** As QEMU's user network has it. */
function vmmUserAddress(id: string): GuestAddress {
  const tail = createHash('sha256').update(id).digest('hex').slice(0, 10);
  const mac = `02:${(tail.match(/../g) ?? []).join(':')}`;
  return { mac, address: '10.0.2.15/24', gateway: '10.0.2.2', dns: ['10.0.2.3'], mtu: 1500 };
}
