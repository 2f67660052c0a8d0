// What a backend asks of the network: a wire for one sandbox's NIC, and what the guest must be told
// about it. Whatever the machine, the rule is one: a sandbox never reaches the host itself, nor
// link-local and metadata addresses, and private ranges only when it was made with `allow-lan`.
import type { SandboxId } from '../domain/ids.ts';
import type { NetworkMode } from '../domain/sandbox.ts';
import type { Operation } from '../host/operation.ts';

export type NetworkPlan = {
  readonly id: SandboxId;
  readonly mode: NetworkMode;
  /** Private to the sandbox's user: sockets go here. Gone after a reboot. */
  readonly socketDir: string;
  /** Who sends the packets; null: we ourselves. */
  readonly runAs: { readonly uid: number; readonly gid: number } | null;
};

/** What the guest needs for its network; given to the agent's `configure`. */
export type GuestAddress = {
  readonly mac: string;
  /** With prefix length. */
  readonly address: string;
  readonly gateway: string;
  readonly dns: readonly string[];
  readonly mtu: number;
};

/** How many changes of our own the rules had when a sandbox was wired. */
export type WiredAt = number & { readonly WiredAt: unique symbol };

/** The kernel's count of changes to this host's rules, read after the sandbox was wired. */
export type SeenRules = { readonly wiredAt: WiredAt; readonly generation: number };

export type Link =
  | { readonly kind: 'none' }
  | {
      readonly kind: 'passt';
      /** Runs beside the VMM, as the same user, with the other end of its socket as fd 3, and ends with it. */
      readonly argv: readonly string[];
      readonly guest: GuestAddress;
      /** What `admit` must be told again. */
      readonly wiredAt: WiredAt;
    }
  /** The VMM's own user network. */
  | { readonly kind: 'vmm-user'; readonly guest: GuestAddress };

/** Null: not known, or nothing that rules are for. */
export function seenRules(link: Link, generation: number | null): SeenRules | null {
  return link.kind !== 'passt' || generation === null ? null : { wiredAt: link.wiredAt, generation };
}

/** Which modes work on this machine, and why the others do not. */
export type NetworkAbilities = { readonly modes: readonly NetworkMode[]; readonly notes: readonly string[] };

export type Network = {
  probe(op: Operation): Promise<NetworkAbilities>;
  /** How the sandbox is wired. @throws HutchError `failed_precondition` when the mode does not work on this machine. */
  wire(op: Operation, plan: NetworkPlan): Promise<Link>;
  /**
   * Sees to it that the rules stand for one sandbox: before its link goes up. Safe to call again. `seen` spares the work
   * where nobody has changed the rules since they were installed; null: not known, so they are installed.
   */
  admit(op: Operation, plan: NetworkPlan, seen: SeenRules | null): Promise<void>;
  /** Takes away what is the sandbox's alone. Its processes are dead. Idempotent. */
  close(op: Operation, plan: NetworkPlan): Promise<void>;
  /** Takes away everything: no sandbox has a network any more. */
  end(op: Operation): Promise<void>;
};

/** None at all, and why. */
export function withoutNetwork(why: string): Network {
  return {
    probe: async () => ({ modes: ['none'], notes: [`no network: ${why}`] }),
    wire: async (op, { mode }) => {
      if (mode !== 'none')
        throw op.error('failed_precondition', `no network: ${why}`, { hint: 'start it with --no-net, or see: hutch doctor' });
      return { kind: 'none' };
    },
    admit: async () => {},
    close: async () => {},
    end: async () => {},
  };
}

/** For whoever wants none. */
export const noNetwork: Network = withoutNetwork('none is wanted');
