// Verbs about everything that sandboxes are made from.
import type { Positional, Verb } from '../verb.ts';

const assets = async () => await import('../verbs/assets.ts');
const ASSET: Positional = { name: 'ASSET', takes: 'one', completes: 'nothing' };
const KINDS = ['kernel', 'rootfs', 'initrd', 'disk'];

export const assetVerbs: readonly Verb[] = [
  {
    name: 'assets',
    group: 'Machine',
    under: 'admin',
    summary: 'Kernels, root file systems, initrds and disks, and what keeps them',
    fallback: 'ls',
    subverbs: [
      {
        name: 'ls',
        summary: 'List them, with what keeps each',
        examples: [
          { line: 'hutch assets ls', about: '' },
          { line: 'hutch assets ls --kind rootfs -l stage=test', about: '' },
        ],
        flags: [
          { name: 'kind', value: 'KIND', choices: KINDS, about: `Only these: ${KINDS.join(', ')}` },
          { name: 'label', short: 'l', value: 'K[=V]', repeats: true, about: 'Only with this label; all must match' },
        ],
        positionals: [],
        load: async () => (await assets()).list,
      },
      {
        name: 'inspect',
        summary: 'Show everything about assets, with their leases',
        examples: [{ line: 'hutch assets inspect krn4yx1v', about: '' }],
        flags: [],
        positionals: [{ ...ASSET, takes: 'several' }],
        load: async () => (await assets()).inspect,
      },
      {
        name: 'label',
        summary: 'Set labels, or take them away',
        examples: [{ line: 'hutch assets label img7k3d9 stage=test owner-', about: 'owner goes' }],
        flags: [],
        positionals: [ASSET, { name: 'K=V|K-', takes: 'several', completes: 'nothing' }],
        load: async () => (await assets()).label,
      },
      {
        name: 'acquire',
        summary: 'Keep a kernel or a root file system from being removed; prints the lease',
        examples: [
          { line: 'hutch assets acquire --ttl 2h img7k3d9', about: '' },
          { line: 'hutch assets acquire --sandbox web img7k3d9', about: 'as long as web is not deleted' },
        ],
        flags: [
          { name: 'ttl', value: 'TIME', about: 'For this long; default 24h without --sandbox' },
          { name: 'sandbox', value: 'SANDBOX', completes: 'sandbox', about: 'As long as this is not deleted' },
          { name: 'holder', value: 'TEXT', about: 'Who wants it, for people' },
        ],
        positionals: [ASSET],
        load: async () => (await assets()).acquire,
      },
      {
        name: 'renew',
        summary: 'Let a lease go on, from now',
        examples: [{ line: 'hutch assets renew --ttl 2h lse2v8q1', about: '' }],
        flags: [{ name: 'ttl', value: 'TIME', about: 'For this long; default 24h' }],
        positionals: [{ name: 'LEASE', takes: 'several', completes: 'nothing' }],
        load: async () => (await assets()).renew,
      },
      {
        name: 'release',
        summary: 'Give leases back',
        examples: [{ line: 'hutch assets release lse2v8q1', about: '' }],
        flags: [],
        positionals: [{ name: 'LEASE', takes: 'several', completes: 'nothing' }],
        load: async () => (await assets()).release,
      },
      {
        name: 'gc',
        summary: 'Remove what nothing keeps and no sandbox has had for a time',
        examples: [
          { line: 'hutch assets gc --dry-run', about: 'changes nothing' },
          { line: 'hutch assets gc --unused 30d', about: '' },
        ],
        flags: [
          { name: 'dry-run', about: 'Only say what would go' },
          { name: 'unused', value: 'TIME', about: 'Since it came and since a sandbox last had it; default 7d' },
        ],
        positionals: [],
        notes: 'Looking at something is no use of it. Names, sandboxes, leases and being the default keep what they name.',
        load: async () => (await assets()).collect,
      },
    ],
  },
];
