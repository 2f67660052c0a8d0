// Verbs that change a sandbox's state.
import { NETWORK_MODES } from '../../domain/sandbox.ts';
import type { Positional, Verb } from '../verb.ts';
import { POLICIES } from './run.ts';

const SANDBOX: Positional = { name: 'SANDBOX', takes: 'one', completes: 'sandbox' };
const SANDBOXES: Positional = { name: 'SANDBOX', takes: 'several', completes: 'sandbox' };
const load = async () => await import('../verbs/life.ts');

const PORTS_HAVE_A_VERB = 'ports come and go by: hutch ports add|rm SANDBOX 8080:80';
const MOUNTS_STAY = 'what is mounted is chosen when a sandbox is made: hutch run -v, hutch create -v';

export const changeVerbs: readonly Verb[] = [
  {
    name: 'start',
    group: 'Change',
    summary: 'Start stopped sandboxes again',
    examples: [{ line: 'hutch start web', about: 'runs its main process again' }],
    flags: [],
    positionals: [SANDBOXES],
    load: async () => (await load()).start,
  },
  {
    name: 'stop',
    group: 'Change',
    summary: 'Stop sandboxes; disks are kept',
    examples: [{ line: 'hutch stop web db', about: '' }],
    flags: [
      { name: 'timeout', value: 'TIME', about: 'How long its processes may take, like 10s' },
      { name: 'force', short: 'f', about: 'At once' },
    ],
    positionals: [SANDBOXES],
    load: async () => (await load()).stop,
  },
  {
    name: 'restart',
    group: 'Change',
    summary: 'Stop and start sandboxes',
    examples: [{ line: 'hutch restart web', about: '' }],
    flags: [{ name: 'timeout', value: 'TIME', about: 'How long its processes may take, like 10s' }],
    positionals: [SANDBOXES],
    load: async () => (await load()).restart,
  },
  {
    name: 'pause',
    group: 'Change',
    summary: 'Freeze sandboxes; memory stays',
    examples: [{ line: 'hutch pause web', about: '' }],
    flags: [],
    positionals: [SANDBOXES],
    load: async () => (await load()).pause,
  },
  {
    name: 'suspend',
    group: 'Change',
    summary: 'Put sandboxes away; memory goes to disk',
    examples: [{ line: 'hutch suspend web', about: 'hutch resume web lets it go on where it was' }],
    flags: [],
    positionals: [SANDBOXES],
    load: async () => (await load()).suspend,
  },
  {
    name: 'resume',
    group: 'Change',
    summary: 'Let paused and suspended sandboxes go on',
    examples: [{ line: 'hutch resume web', about: '' }],
    flags: [],
    positionals: [SANDBOXES],
    load: async () => (await load()).resume,
  },
  {
    name: 'fork',
    group: 'Change',
    summary: 'Copy a running or suspended sandbox, or begin several from a snapshot',
    examples: [
      { line: 'hutch fork web', about: 'prints the name of the copy; web goes on' },
      { line: "hutch fork -n 4 web --exec 'pytest -q tests/part-$HUTCH_FORK_INDEX'", about: 'from one warmed-up state' },
    ],
    flags: [
      { name: 'number', short: 'n', value: 'N', about: 'How many' },
      { name: 'name-prefix', value: 'NAME', about: 'Called NAME-1, NAME-2, …' },
      { name: 'exec', value: 'COMMAND', about: 'Run it in the shell of each' },
    ],
    positionals: [{ ...SANDBOX, name: 'SANDBOX|SNAPSHOT' }],
    notes: 'Each copy has its own name, address, machine-id, boot id and random numbers before its network is up.',
    load: async () => (await import('../verbs/fork.ts')).fork,
  },
  {
    name: 'set',
    group: 'Change',
    summary: 'Change what sandboxes have and how they end',
    examples: [
      { line: 'hutch set --memory 2G web', about: 'now where its backend can, else from its next start on: it says which' },
      {
        line: 'hutch set --restart always --idle 0 web',
        about: 'there again after an end and after a reboot, and never stopped as unused',
      },
      { line: 'hutch set --timeout none --label tier=prod web db', about: '' },
    ],
    flags: [
      { name: 'cpus', value: 'N', about: 'Virtual CPUs' },
      { name: 'memory', short: 'm', value: 'SIZE', about: 'Memory, like 512M or 2G' },
      { name: 'disk', value: 'SIZE', about: 'Disk, like 16G; it only grows' },
      { name: 'pids', value: 'N', about: 'Most processes and threads at once' },
      { name: 'net', value: 'MODE', choices: NETWORK_MODES, about: 'allow: the internet; allow-lan: private addresses too; none' },
      { name: 'timeout', value: 'TIME', about: 'Stop it so long from now, and after each start; none: no limit' },
      { name: 'label', short: 'l', value: 'K[=V]', repeats: true, about: 'A label beside the others' },
      { name: 'unlabel', value: 'K', repeats: true, about: 'Take a label away' },
      ...POLICIES,
      { name: 'no-undo', about: 'No more; what was kept goes' },
    ],
    foreign: { ...{ p: PORTS_HAVE_A_VERB, publish: PORTS_HAVE_A_VERB }, ...{ v: MOUNTS_STAY, volume: MOUNTS_STAY } },
    positionals: [SANDBOXES],
    notes: 'What is not named stays as it is. What waits for the next start is kept, and shown by hutch inspect as "pending".',
    load: async () => (await import('../verbs/set.ts')).run,
  },
  {
    name: 'rename',
    group: 'Change',
    under: 'admin',
    summary: 'Give a sandbox another name',
    examples: [{ line: 'hutch rename web web-old', about: '' }],
    flags: [],
    positionals: [SANDBOX, { name: 'NAME', takes: 'one', completes: 'nothing' }],
    load: async () => (await load()).rename,
  },
  {
    name: 'rm',
    group: 'Change',
    summary: 'Delete sandboxes and their disks',
    examples: [{ line: 'hutch rm -f web', about: 'a running or suspended one too' }],
    flags: [{ name: 'force', short: 'f', about: 'Also one that runs, is paused or suspended; what does not exist is no error' }],
    positionals: [SANDBOXES],
    load: async () => (await load()).rm,
  },
  {
    name: 'wait',
    group: 'Change',
    summary: 'Wait until sandboxes do not run any more',
    examples: [{ line: 'code=$(hutch wait job)', about: 'prints the main process’s code' }],
    flags: [],
    positionals: [SANDBOXES],
    load: async () => (await load()).wait,
  },
];
