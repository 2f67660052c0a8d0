// Verbs that only look.
import type { Positional, Verb } from '../verb.ts';

const SANDBOX: Positional = { name: 'SANDBOX', takes: 'one', completes: 'sandbox' };
const SANDBOXES: Positional = { name: 'SANDBOX', takes: 'several', completes: 'sandbox' };
const STATES = ['created', 'running', 'paused', 'suspended', 'stopped', 'error', 'deleted'];

const PORTS_STAND_BEHIND = (verb: 'add' | 'rm') => `leave it away, ports stand behind the sandbox: hutch ports ${verb} SANDBOX 8080:80`;

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
      { name: 'all', short: 'a', about: 'Those that do not run too, as always: for who is used to typing it' },
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
    summary: 'Ports on which sandboxes listen, and those of this machine that answer for them',
    fallback: 'ls',
    fallbackTakes: 'words',
    subverbs: [
      {
        name: 'ls',
        summary: 'List the ports on which sandboxes listen, and where they are published',
        examples: [
          { line: 'hutch ports web', about: 'as hutch ports ls web' },
          { line: 'hutch ports --watch web', about: 'what listens, then each port that is opened or closed, until Ctrl-C' },
        ],
        flags: [{ name: 'watch', short: 'w', about: 'Go on: one sandbox, a line for each port that is opened or closed' }],
        positionals: [SANDBOXES],
        load: async () => (await import('../verbs/ports.ts')).run,
      },
      {
        name: 'add',
        summary: 'Publish ports of a sandbox that there is already',
        examples: [
          { line: 'hutch ports add web 8080:80', about: 'http://127.0.0.1:8080, until it is deleted' },
          { line: 'hutch ports add web 3000', about: 'a free port, which it prints' },
        ],
        flags: [],
        foreign: { p: PORTS_STAND_BEHIND('add'), publish: PORTS_STAND_BEHIND('add') },
        positionals: [
          { name: 'SANDBOX', takes: 'one', completes: 'sandbox' },
          { name: 'PORTS', takes: 'several', completes: 'nothing' },
        ],
        notes:
          'PORTS are written as with -p, such as 8080:80, 0.0.0.0:8080:80 or 80. They are answered at once while it runs, and again after each start.',
        load: async () => (await import('../verbs/publish.ts')).add,
      },
      {
        name: 'rm',
        summary: 'Do not publish ports any more',
        examples: [
          { line: 'hutch ports rm web 8080:80', about: '' },
          { line: 'hutch ports rm web 80', about: 'all that lead to port 80 inside' },
        ],
        flags: [],
        foreign: { p: PORTS_STAND_BEHIND('rm'), publish: PORTS_STAND_BEHIND('rm') },
        positionals: [
          { name: 'SANDBOX', takes: 'one', completes: 'sandbox' },
          { name: 'PORTS', takes: 'several', completes: 'nothing' },
        ],
        load: async () => (await import('../verbs/publish.ts')).remove,
      },
      {
        name: 'open',
        also: 'open',
        summary: 'Open a port of a sandbox in the browser',
        examples: [
          { line: 'hutch open web 3000', about: 'prints its address, and opens it where there is a screen' },
          { line: 'hutch open --share 1h web 3000', about: 'a link for others' },
        ],
        flags: [
          { name: 'print', about: 'Only print the address' },
          {
            name: 'share',
            value: 'TIME',
            about: 'Print a link for others instead, which works for so long, like 1h; the port is not published',
          },
          { name: 'unshare', about: 'Take back all links to the port' },
        ],
        positionals: [
          { name: 'SANDBOX', takes: 'one', completes: 'sandbox' },
          { name: 'PORT', takes: 'one', completes: 'nothing' },
        ],
        notes: 'The port is published if it is not yet: on the loopback, at a free port, until hutch ports rm.',
        load: async () => (await import('../verbs/open.ts')).run,
      },
    ],
  },
];
