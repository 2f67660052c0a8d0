// Verbs about this machine, its daemon, its keys, and the CLI itself.
import type { Verb } from '../verb.ts';

const keys = async () => await import('../verbs/keys.ts');
const daemon = async () => await import('../verbs/daemon.ts');

export const machineVerbs: readonly Verb[] = [
  {
    name: 'doctor',
    group: 'Machine',
    summary: 'Tell what this machine can do, and what mends it',
    examples: [
      { line: 'hutch doctor', about: 'exit 1 when sandboxes cannot run' },
      { line: 'hutch doctor --leaks', about: 'what belongs to nothing' },
    ],
    flags: [{ name: 'leaks', about: 'List what lies under Hutch’s roots and belongs to nothing' }],
    positionals: [],
    load: async () => (await import('../verbs/doctor.ts')).run,
  },
  {
    name: 'daemon',
    group: 'Machine',
    summary: 'Start, stop and look at the daemon, and at what it runs sandboxes with',
    subverbs: [
      {
        name: 'start',
        summary: 'Start it, and wait until it answers',
        examples: [{ line: 'hutch daemon start', about: '' }],
        flags: [],
        positionals: [],
        load: async () => (await daemon()).start,
      },
      {
        name: 'stop',
        summary: 'End it; sandboxes go on',
        examples: [{ line: 'hutch daemon stop', about: '' }],
        flags: [],
        positionals: [],
        load: async () => (await daemon()).stop,
      },
      {
        name: 'status',
        summary: 'Tell whether it runs; exit 7 when not',
        examples: [{ line: 'hutch daemon status', about: '' }],
        flags: [],
        positionals: [],
        load: async () => (await daemon()).status,
      },
      {
        name: 'logs',
        summary: 'Show its log',
        examples: [{ line: 'hutch daemon logs -f', about: '' }],
        flags: [
          { name: 'follow', short: 'f', about: 'Go on with what comes' },
          { name: 'tail', short: 'n', value: 'N', about: 'Only the last N lines' },
        ],
        positionals: [],
        load: async () => (await daemon()).logs,
      },
      {
        name: 'backends',
        also: 'backends',
        summary: 'Tell what runs sandboxes here, and what each can do',
        examples: [{ line: 'hutch backends', about: 'one column for each; * is what runs a sandbox that names none' }],
        flags: [],
        positionals: [],
        notes: 'Take another than the default with: hutch run --backend NAME, or sandbox.backend in the configuration.',
        load: async () => (await import('../verbs/backends.ts')).run,
      },
    ],
  },
  {
    name: 'admin',
    group: 'Machine',
    summary: 'Keys, the ledger, and what else an operator looks after',
    subverbs: [],
  },
  {
    name: 'keys',
    group: 'Machine',
    under: 'admin',
    summary: 'Make, list and revoke API keys',
    subverbs: [
      {
        name: 'create',
        summary: 'Make a key; its secret is shown once',
        examples: [
          { line: 'hutch keys create laptop', about: '' },
          { line: 'hutch keys create --project ci runner', about: 'sandboxes, quotas and rules of images apart from yours' },
        ],
        flags: [{ name: 'project', value: 'PROJECT', about: 'Of which project; one that is not there yet is made. Default: your own' }],
        positionals: [{ name: 'NAME', takes: 'one', completes: 'nothing' }],
        load: async () => (await keys()).create,
      },
      {
        name: 'ls',
        summary: 'List keys',
        examples: [{ line: 'hutch keys ls', about: '' }],
        flags: [],
        positionals: [],
        load: async () => (await keys()).list,
      },
      {
        name: 'revoke',
        summary: 'Revoke keys',
        examples: [{ line: 'hutch keys revoke ci', about: '' }],
        flags: [],
        positionals: [{ name: 'KEY', takes: 'several', completes: 'key' }],
        load: async () => (await keys()).revoke,
      },
    ],
  },
  {
    name: 'config',
    group: 'Machine',
    under: 'daemon',
    summary: 'Show the configuration, or set up a shell',
    subverbs: [
      {
        name: 'show',
        summary: 'Show each value, and where it came from',
        examples: [{ line: 'hutch config show', about: '' }],
        flags: [],
        positionals: [],
        load: async () => (await import('../verbs/config.ts')).show,
      },
      {
        name: 'completion',
        also: 'completion',
        summary: 'Print completions for a shell',
        examples: [{ line: 'source <(hutch completion bash)', about: '' }],
        flags: [],
        positionals: [{ name: 'bash|zsh|fish', takes: 'one', completes: ['bash', 'zsh', 'fish'] }],
        load: async () => (await import('../verbs/completion.ts')).run,
      },
    ],
  },
  {
    name: 'df',
    group: 'Machine',
    under: 'daemon',
    summary: 'Show what takes how much of the disk',
    examples: [{ line: 'hutch df', about: '' }],
    flags: [],
    positionals: [],
    load: async () => (await import('../verbs/system.ts')).df,
  },
  {
    name: 'prune',
    group: 'Machine',
    under: 'daemon',
    summary: 'Delete sandboxes that have been stopped for long, and templates that nobody used',
    examples: [
      { line: 'hutch prune --dry-run', about: 'what would go' },
      { line: 'hutch prune --older-than 30d', about: '' },
    ],
    flags: [
      { name: 'older-than', value: 'TIME', about: 'Stopped, or unused, for longer than this; default 7d' },
      { name: 'dry-run', about: 'Only tell what would go' },
    ],
    positionals: [],
    notes:
      'What is to be started again by itself (--restart) stays. Images: hutch image prune; kernels and what else sandboxes are made from: hutch assets gc.',
    load: async () => (await import('../verbs/system.ts')).prune,
  },
  {
    name: 'demo',
    group: 'Machine',
    under: 'daemon',
    summary: 'Show what Hutch is for, in half a minute',
    examples: [{ line: 'hutch demo', about: 'a test suite in eight copies of one sandbox, and the daemon killed meanwhile' }],
    flags: [{ name: 'spare-daemon', about: 'Do not kill the daemon' }],
    positionals: [],
    notes:
      'Everything is real: the sandboxes are deleted at the end. The daemon is killed only if it is on this machine and nobody else has work under way.',
    load: async () => (await import('../verbs/demo.ts')).run,
  },
  {
    name: 'version',
    group: 'Machine',
    under: 'daemon',
    summary: 'Show the versions of Hutch and its parts',
    examples: [{ line: 'hutch version', about: '' }],
    flags: [],
    positionals: [],
    load: async () => (await import('../verbs/version.ts')).run,
  },
];
