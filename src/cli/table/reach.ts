// Verbs that carry bytes in and out.
import type { Verb } from '../verb.ts';

export const reachVerbs: readonly Verb[] = [
  {
    name: 'cp',
    group: 'Reach into',
    summary: 'Copy files into a sandbox, or out of one',
    examples: [
      { line: 'hutch cp notes.txt src dev:/work/', about: 'in' },
      { line: 'hutch cp dev:/work/out .', about: 'out' },
      { line: 'tar c src | hutch cp - dev:/work', about: 'a tar stream' },
    ],
    flags: [{ name: 'user', short: 'u', value: 'USER', about: 'As whom, inside' }],
    positionals: [{ name: 'SRC… DST', takes: 'several', completes: 'path' }],
    notes:
      'A place in a sandbox is SANDBOX:PATH; `-` is a tar stream on stdin or stdout. As with docker cp: a directory\ncopied onto one that exists goes into it, one whose path ends with /. gives its content. Modes and times are\nkept, but for the set-user-id and set-group-id bits on the way out: what a sandbox made must not run here as\nsomebody else. A relative PATH begins where commands start: the sandbox’s working directory, else the user’s home. A local path\nwith a colon is written ./like:this. --json says how many entries and bytes of the tar stream were copied.',
    load: async () => (await import('../verbs/cp.ts')).run,
  },
  {
    name: 'forward',
    group: 'Reach into',
    under: 'ports',
    summary: 'Bring ports or unix sockets of a sandbox to this machine’s loopback',
    examples: [
      { line: 'hutch forward web 8080:80', about: 'http://127.0.0.1:8080' },
      { line: 'hutch forward web 0:80', about: 'a free port, which it prints' },
      { line: 'hutch forward web ./app.sock:/run/app.sock', about: 'unix sockets, here and there; 8080:/run/app.sock works as well' },
    ],
    flags: [],
    positionals: [
      { name: 'SANDBOX', takes: 'one', completes: 'sandbox' },
      { name: 'LOCAL:GUEST', takes: 'several', completes: 'nothing' },
    ],
    load: async () => (await import('../verbs/forward.ts')).run,
  },
];
