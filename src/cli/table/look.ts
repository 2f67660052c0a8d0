// Verbs that only look.
import type { Positional, Verb } from '../verb.ts';

const SANDBOX: Positional = { name: 'SANDBOX', takes: 'one', completes: 'sandbox' };
const SANDBOXES: Positional = { name: 'SANDBOX', takes: 'several', completes: 'sandbox' };
const STATES = ['created', 'running', 'paused', 'suspended', 'stopped', 'error', 'deleted'];

export const lookVerbs: readonly Verb[] = [
  {
    name: 'ls',
    group: 'Look',
    summary: 'List sandboxes',
    examples: [
      { line: 'hutch ls', about: '' },
      { line: 'hutch rm -f $(hutch ls -q --label ci)', about: 'remove those with a label' },
    ],
    flags: [
      { name: 'quiet', short: 'q', about: 'Only ids' },
      { name: 'watch', about: 'Show it again whenever something happens' },
      {
        name: 'state',
        value: 'STATES',
        completes: STATES,
        about: `Only these, comma-separated: ${STATES.join(', ')}`,
      },
      { name: 'label', short: 'l', value: 'K[=V]', repeats: true, about: 'Only those with the label' },
    ],
    positionals: [],
    load: async () => (await import('../verbs/ls.ts')).run,
  },
  {
    name: 'inspect',
    group: 'Look',
    summary: 'Show everything about sandboxes',
    examples: [{ line: 'hutch inspect web', about: '' }],
    flags: [],
    positionals: [SANDBOXES],
    load: async () => (await import('../verbs/inspect.ts')).run,
  },
  {
    name: 'logs',
    group: 'Look',
    summary: 'Show what the main process wrote, or the boot',
    examples: [
      { line: 'hutch logs -f --tail 20 web', about: 'the last lines, and what comes' },
      { line: 'hutch logs --boot web', about: 'the console' },
    ],
    flags: [
      { name: 'follow', short: 'f', about: 'Go on with what comes' },
      { name: 'tail', short: 'n', value: 'N', about: 'Only the last N lines' },
      { name: 'timestamps', about: 'The time before each line' },
      { name: 'boot', about: 'The console’s log instead' },
      { name: 'vmm', about: 'The virtual machine monitor’s log instead' },
    ],
    positionals: [SANDBOX],
    load: async () => (await import('../verbs/logs.ts')).run,
  },
  {
    name: 'stats',
    group: 'Look',
    summary: 'Show what sandboxes use',
    examples: [
      { line: 'hutch stats', about: 'all that run, again and again' },
      { line: 'hutch stats --no-stream web', about: 'once' },
    ],
    flags: [{ name: 'no-stream', about: 'Once' }],
    positionals: [{ name: 'SANDBOX', takes: 'any', completes: 'sandbox' }],
    load: async () => (await import('../verbs/stats.ts')).run,
  },
  {
    name: 'ports',
    group: 'Look',
    summary: 'List the ports on which sandboxes listen',
    examples: [{ line: 'hutch ports web', about: '' }],
    flags: [],
    positionals: [SANDBOXES],
    load: async () => (await import('../verbs/ports.ts')).run,
  },
];
