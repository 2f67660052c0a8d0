// Verbs that start something: run, create, exec, shell, attach.
import { BACKENDS_HERE, IDLE_ACTIONS, NETWORK_MODES, RESTART_POLICIES } from '../../domain/sandbox.ts';
import type { Flag, Positional, Verb } from '../verb.ts';
import { WORKSPACE_FLAGS } from './workspace.ts';

const SANDBOX: Positional = { name: 'SANDBOX', takes: 'one', completes: 'sandbox' };

const ENVIRONMENT: readonly Flag[] = [
  { name: 'env', short: 'e', value: 'K=V', repeats: true, about: 'Set a variable; K alone takes our own' },
  {
    name: 'env-file',
    value: 'FILE',
    repeats: true,
    about:
      'Variables from a file, one K=V a line, as it stands: # begins a comment line, quotes are part of the value, K alone takes our own',
  },
];
const PLACE: readonly Flag[] = [
  { name: 'workdir', short: 'w', value: 'DIR', about: 'Where it runs; default: the image’s, else the user’s home' },
  { name: 'user', short: 'u', value: 'USER', about: 'As whom: name or uid, with :group or not' },
];
const TERMINAL: readonly Flag[] = [
  { name: 'interactive', short: 'i', about: 'Pass our input on, a terminal’s too (piped input always is)' },
  { name: 'tty', short: 't', about: 'Give it a terminal' },
  { name: 'no-stdin', about: 'Pass no input on, for loops that read theirs' },
];
const DETACH_KEYS: Flag = { name: 'detach-keys', value: 'KEYS', about: 'What lets go of the terminal; default ctrl-p,ctrl-q' };

/** How a sandbox ends, and whether it comes back. */
export const POLICIES: readonly Flag[] = [
  {
    name: 'restart',
    value: 'WHEN',
    choices: RESTART_POLICIES,
    about: `Start it again when it has ended, and after a reboot: ${RESTART_POLICIES.join(', ')}`,
  },
  {
    name: 'idle',
    value: 'TIME',
    about: 'Stop it when nobody has touched it and it did nothing for so long, like 30m; 0: never; default: as configured',
  },
  {
    name: 'idle-action',
    value: 'WHAT',
    choices: IDLE_ACTIONS,
    about: 'What --idle does: stop, or suspend until the next call or connection',
  },
  { name: 'undo', about: 'Keep a snapshot before each exec, of the last ten: hutch undo brings one back' },
];

const CREATE: readonly Flag[] = [
  { name: 'name', value: 'NAME', about: 'Its name, a DNS label; made up when absent' },
  { name: 'image', value: 'IMAGE', completes: 'image', about: 'What is on its disk' },
  {
    name: 'template',
    value: 'TEMPLATE',
    completes: 'template',
    about: 'Begin as a template is: its work done, its processes running; see hutch template',
  },
  { name: 'from', value: 'SNAPSHOT', completes: 'snapshot', about: 'Begin where a snapshot is, memory and all: see hutch snapshot' },
  { name: 'force', about: 'With --from: also where it was made on another kind of machine' },
  { name: 'kernel', value: 'KERNEL', about: 'What a virtual machine boots, see hutch kernel ls' },
  { name: 'cpus', value: 'N', about: 'Virtual CPUs' },
  { name: 'memory', short: 'm', value: 'SIZE', about: 'Memory, like 512M or 2G' },
  { name: 'disk', value: 'SIZE', about: 'Disk, like 8G' },
  { name: 'pids', value: 'N', about: 'Most processes and threads at once' },
  ...ENVIRONMENT,
  { name: 'secret-file', value: 'K=FILE', repeats: true, about: 'A variable whose value is a file’s content and is never shown' },
  ...PLACE,
  { name: 'timeout', value: 'TIME', about: 'Stop it this long after each start, like 90s or 5m' },
  {
    name: 'publish',
    short: 'p',
    value: 'PORTS',
    repeats: true,
    about: 'Answer at a port of this machine: [ADDRESS:]HOST:GUEST, on the loopback without ADDRESS; GUEST alone takes a free one',
  },
  {
    name: 'volume',
    short: 'v',
    value: 'SOURCE:GUEST[:ro]',
    repeats: true,
    about:
      'Show a directory of this machine (./DIR) or a volume (NAME) inside; with :ro nothing there can be written. Which directories may be: volumes.allow',
  },
  {
    name: 'device',
    value: 'PATH',
    repeats: true,
    about: 'Let a container use a device of this machine, like /dev/fuse. Which may be: devices.allow',
  },
  {
    name: 'sync',
    value: 'HOST:GUEST[:MODE]',
    repeats: true,
    about: 'Put files of our home into its home when it is made, 0600 unless a mode is given; see also hutch sync',
  },
  ...POLICIES,
  { name: 'net', value: 'MODE', choices: NETWORK_MODES, about: 'allow: the internet; allow-lan: private addresses too; none' },
  { name: 'no-net', about: 'No network: --net none' },
  { name: 'allow-lan', about: 'Reach private addresses too: --net allow-lan' },
  { name: 'label', short: 'l', value: 'K[=V]', repeats: true, about: 'A label' },
  { name: 'backend', value: 'NAME', choices: BACKENDS_HERE, about: `What runs it: ${BACKENDS_HERE.join(', ')}` },
];

const PUBLISH_ALL = 'name each port: -p GUEST takes a free port of this machine, which hutch ports shows';

/** Flags of `docker run` that are no flags here, and what is done in their place. */
const FROM_DOCKER_RUN: Readonly<Record<string, string>> = {
  platform: 'leave it away: images are those for linux/amd64, which run here',
  pull: 'leave it away: what is not here is pulled; where a name has moved on: hutch image pull NAME',
  entrypoint: 'leave it away: a command that is given runs in place of the image’s ENTRYPOINT',
  mount: 'directories and volumes: -v HOST:GUEST[:ro], -v VOLUME:GUEST',
  P: PUBLISH_ALL,
  'publish-all': PUBLISH_ALL,
  expose: 'leave it away: each port inside is reached by hutch forward; at a port of this machine: -p HOST:GUEST',
};

export const runVerbs: readonly Verb[] = [
  {
    name: 'run',
    group: 'Run',
    summary: 'Run a command in a new sandbox',
    examples: [
      { line: "hutch run --rm -- python3 -c 'print(2**100)'", about: 'one command, nothing left behind' },
      { line: 'hutch run --rm . -- make test', about: 'in a copy of the git repository that we are in' },
      { line: 'hutch run --rm -it -- bash', about: 'a shell in a new sandbox' },
      { line: 'hutch run -d --name web -p 8080:8000 -- python3 -m http.server 8000', about: 'in the background, at http://127.0.0.1:8080' },
    ],
    flags: [
      { name: 'rm', about: 'Delete the sandbox when the command has ended' },
      { name: 'detach', short: 'd', about: 'Print its id and leave it running' },
      ...TERMINAL,
      DETACH_KEYS,
      ...CREATE,
      ...WORKSPACE_FLAGS,
    ],
    foreign: FROM_DOCKER_RUN,
    positionals: [],
    command: 'optional',
    passesExitCode: true,
    notes:
      'A directory and -- before the command: the git repository there is copied in, and the command runs in it (see hutch workspace\nprepare). Ends with the command’s own code. Without a command it runs what an image of a registry is made for (its ENTRYPOINT and CMD), and with -t on our own image a login shell.',
    load: async () => (await import('../verbs/run.ts')).run,
  },
  {
    name: 'create',
    group: 'Run',
    summary: 'Make a sandbox that runs until it is stopped',
    examples: [
      { line: 'hutch create --name dev --memory 2G', about: 'a computer of your own' },
      { line: 'hutch create --no-start --name later -- make test', about: 'made now, started later' },
    ],
    flags: [
      { name: 'rm', about: 'Delete the sandbox when its command has ended' },
      { name: 'no-start', about: 'Do not start it' },
      { name: 'interactive', short: 'i', about: 'Its command reads from whoever attaches' },
      { name: 'tty', short: 't', about: 'Its command has a terminal' },
      ...CREATE,
    ],
    foreign: FROM_DOCKER_RUN,
    positionals: [],
    command: 'optional',
    loneWord: 'name',
    load: async () => (await import('../verbs/create.ts')).run,
  },
  {
    name: 'exec',
    group: 'Run',
    summary: 'Run a command in a sandbox',
    examples: [
      { line: 'hutch exec dev -- git status', about: 'one command' },
      { line: 'cat data.csv | hutch exec dev -- sha256sum', about: 'piped input is passed on' },
      { line: 'hutch exec -it dev -- vim notes.txt', about: 'with a terminal' },
    ],
    flags: [
      ...TERMINAL,
      DETACH_KEYS,
      { name: 'detach', short: 'd', about: 'Leave it running, and print its id' },
      {
        name: 'auto-prepare',
        about: 'First copy in what is new, if HEAD of the repository has moved here since (hutch workspace prepare)',
      },
      ...ENVIRONMENT,
      ...PLACE,
      { name: 'timeout', value: 'TIME', about: 'End it after this time, like 90s or 5m' },
    ],
    positionals: [SANDBOX],
    command: 'required',
    passesExitCode: true,
    notes: 'Ends with the command’s own code.',
    load: async () => (await import('../verbs/exec.ts')).run,
  },
  {
    name: 'shell',
    group: 'Run',
    summary: 'Open a login shell in a sandbox',
    examples: [{ line: 'hutch shell dev', about: '' }],
    flags: [DETACH_KEYS, ...ENVIRONMENT, ...PLACE],
    positionals: [SANDBOX],
    passesExitCode: true,
    notes: 'Ends with the shell’s own code. For people: without --json, which hutch exec has.',
    load: async () => (await import('../verbs/shell.ts')).run,
  },
  {
    name: 'attach',
    group: 'Run',
    summary: 'Go on with the main process of a sandbox',
    examples: [
      { line: 'hutch attach web', about: 'its output from now on; Ctrl-C is passed on; several may be attached, and type' },
      { line: 'hutch attach --exec x-1f0c… dev', about: 'one that `exec -d` left running, with what is kept of its output' },
    ],
    flags: [{ name: 'exec', value: 'ID', about: 'A command of `exec` instead' }, { name: 'no-stdin', about: 'Only watch' }, DETACH_KEYS],
    positionals: [SANDBOX],
    passesExitCode: true,
    load: async () => (await import('../verbs/attach.ts')).run,
  },
];
