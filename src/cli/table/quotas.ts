// Verbs about what projects may have.
import type { Flag, Verb } from '../verb.ts';

const quotas = async () => await import('../verbs/quotas.ts');
const BOUNDS: readonly Flag[] = [
  { name: 'sandboxes', value: 'N', about: 'Sandboxes at once, running or not' },
  { name: 'cpus', value: 'N', about: 'Virtual CPUs of all of them together' },
  { name: 'memory', value: 'SIZE', about: 'Memory of all of them together, like 4G' },
  { name: 'disk', value: 'SIZE', about: 'Disks of all of them together, like 100G' },
  { name: 'images', value: 'SIZE', about: 'Images that it pulled, imported or built' },
  { name: 'snapshots', value: 'SIZE', about: 'What is stored for its snapshots' },
  { name: 'builds', value: 'N', about: 'Builds at once' },
  { name: 'builds-per-day', value: 'N', about: 'Builds that begin within 24 hours' },
  { name: 'build-minutes', value: 'N', about: 'Minutes that each build may take' },
];

export const quotaVerbs: readonly Verb[] = [
  {
    name: 'quotas',
    group: 'Machine',
    under: 'admin',
    summary: 'What projects may have, by tier and by project',
    fallback: 'ls',
    subverbs: [
      {
        name: 'ls',
        summary: 'Show what projects use, of what they may have',
        examples: [{ line: 'hutch quotas ls', about: '' }],
        flags: [],
        positionals: [],
        load: async () => (await quotas()).list,
      },
      {
        name: 'set',
        summary: 'Give a project a tier, or bounds of its own, which come before its tier’s',
        examples: [
          { line: 'hutch quotas set default --tier PRO', about: '' },
          { line: 'hutch quotas set default --sandboxes 20 --memory none', about: 'none is no bound, tier is what the tier says' },
        ],
        flags: [{ name: 'tier', value: 'TIER', about: 'Its tier; none takes it away' }, ...BOUNDS],
        positionals: [{ name: 'PROJECT', takes: 'one', completes: 'nothing' }],
        notes: 'What is there stays when a bound is lowered; only what comes is refused, with exit code 5.',
        load: async () => (await quotas()).set,
      },
      {
        name: 'tiers',
        summary: 'List the tiers',
        examples: [{ line: 'hutch quotas tiers', about: '' }],
        flags: [],
        positionals: [],
        load: async () => (await quotas()).tiers,
      },
      {
        name: 'tier',
        summary: 'Change a tier, make one, or remove one that no project has',
        examples: [
          { line: 'hutch quotas tier PRO --sandboxes 5', about: 'holds for all of its projects at once' },
          { line: 'hutch quotas tier OLD --rm', about: '' },
        ],
        flags: [...BOUNDS, { name: 'rm', about: 'Remove it' }],
        positionals: [{ name: 'TIER', takes: 'one', completes: 'nothing' }],
        load: async () => (await quotas()).tier,
      },
    ],
  },
];
