// Verbs that tell what happened, and why.
import type { Verb } from '../verb.ts';

export const traceVerbs: readonly Verb[] = [
  {
    name: 'why',
    group: 'Trace',
    summary: 'Tell why a sandbox is in its state, or what an operation did',
    examples: [
      { line: 'hutch why web', about: '' },
      { line: 'hutch why op-1a2b3c4d5e6f', about: 'what an error’s id stands for' },
    ],
    flags: [],
    positionals: [{ name: 'SANDBOX|OP', takes: 'several', completes: 'sandbox' }],
    load: async () => (await import('../verbs/why.ts')).run,
  },
  {
    name: 'events',
    group: 'Trace',
    summary: 'Show what happened',
    examples: [{ line: 'hutch events -f', about: 'and what happens' }],
    flags: [
      { name: 'follow', short: 'f', about: 'Go on with what comes' },
      { name: 'sandbox', value: 'SANDBOX', completes: 'sandbox', about: 'Only its events' },
      { name: 'cursor', value: 'N', about: 'From this event on' },
      { name: 'limit', short: 'n', value: 'N', about: 'Only the last N; with --cursor the first N from there' },
    ],
    positionals: [],
    load: async () => (await import('../verbs/events.ts')).run,
  },
  {
    name: 'ops',
    group: 'Machine',
    under: 'daemon',
    summary: 'List operations, or cancel one',
    fallback: 'ls',
    subverbs: [
      {
        name: 'ls',
        summary: 'List what is under way',
        examples: [{ line: 'hutch ops ls', about: '' }],
        flags: [
          { name: 'all', short: 'a', about: 'Also what is over' },
          { name: 'limit', short: 'n', value: 'N', about: 'At most so many' },
        ],
        positionals: [],
        load: async () => (await import('../verbs/ops.ts')).list,
      },
      {
        name: 'cancel',
        summary: 'Cancel operations; they clean up',
        examples: [{ line: 'hutch ops cancel op-1a2b3c4d5e6f', about: '' }],
        flags: [],
        positionals: [{ name: 'OP', takes: 'several', completes: 'operation' }],
        load: async () => (await import('../verbs/ops.ts')).cancel,
      },
    ],
  },
  {
    name: 'ledger',
    group: 'Machine',
    under: 'admin',
    summary: 'Read and check the record of what is billed',
    subverbs: [
      {
        name: 'tail',
        summary: 'Show the last entries',
        examples: [{ line: 'hutch ledger tail -f', about: 'and what comes' }],
        flags: [
          { name: 'follow', short: 'f', about: 'Go on with what comes' },
          { name: 'limit', short: 'n', value: 'N', about: 'How many; default 20' },
        ],
        positionals: [],
        load: async () => (await import('../verbs/ledger.ts')).tail,
      },
      {
        name: 'sum',
        summary: 'Add up what was used, by kind and shape',
        examples: [
          { line: 'hutch ledger sum --by sandbox --since 2026-11-01 --until 2026-12-01', about: 'in that month, in UTC' },
          { line: 'hutch ledger sum --since 24h', about: 'in the last day' },
        ],
        flags: [
          {
            name: 'by',
            value: 'WHAT',
            choices: ['project', 'sandbox'],
            about: 'A row for each project, or for each sandbox, snapshot and volume; default project',
          },
          {
            name: 'since',
            value: 'WHEN',
            about: 'From then on: a date, a date and time, or a time ago like 24h; default: the first entry',
          },
          { name: 'until', value: 'WHEN', about: 'Up to then; default: now' },
        ],
        positionals: [],
        notes:
          'Of each interval only what lies in that time counts; one that has not ended counts up to its end, and is told under OPEN. Paused time lies\nin the time of compute. The entries themselves: hutch ledger export.',
        load: async () => (await import('../verbs/ledger-sum.ts')).sum,
      },
      {
        name: 'export',
        summary: 'Write all entries as lines of JSON',
        examples: [{ line: 'hutch ledger export --format cocoon > ledger.jsonl', about: '' }],
        flags: [
          {
            name: 'format',
            value: 'FORMAT',
            choices: ['hutch', 'cocoon'],
            about: 'hutch: everything; cocoon: its six kinds and field names',
          },
          { name: 'cursor', value: 'N', about: 'From this sequence number on' },
        ],
        positionals: [],
        load: async () => (await import('../verbs/ledger.ts')).exportAll,
      },
      {
        name: 'verify',
        summary: 'Check the sequence and the hash chain',
        examples: [{ line: 'hutch ledger verify', about: 'exit 1 when it is broken' }],
        flags: [],
        positionals: [],
        load: async () => (await import('../verbs/ledger.ts')).verify,
      },
    ],
  },
];
