// Verbs of SSH.
import type { Verb } from '../verb.ts';

export const sshVerbs: readonly Verb[] = [
  {
    name: 'ssh',
    group: 'Reach into',
    under: 'workspace',
    summary: 'Open a shell in a sandbox, or run a command, by OpenSSH’s own client',
    examples: [
      { line: 'hutch ssh dev', about: '' },
      { line: 'hutch ssh -L 8080:localhost:80 dev', about: 'with a port of the sandbox at this machine’s 8080' },
      { line: 'hutch ssh dev -- make test', about: '' },
    ],
    flags: [
      { name: 'forward', short: 'L', value: 'PORTS', repeats: true, about: 'As ssh -L: [ADDRESS:]PORT:HOST:PORT' },
      {
        name: 'reverse',
        short: 'R',
        value: 'PORTS',
        repeats: true,
        about: 'As ssh -R: PORT:HOST:PORT, a port in the sandbox that this side answers',
      },
      { name: 'user', short: 'u', value: 'USER', about: 'As whom, inside; default: the sandbox’s own user' },
      { name: 'tty', short: 't', about: 'Give a command a terminal' },
      { name: 'stdio', about: 'Only carry the connection on stdin and stdout: what ssh runs as its proxy' },
      { name: 'pass', about: 'Only make the connection and pass it to ssh, which runs this as its proxy (ProxyUseFdpass)' },
    ],
    positionals: [{ name: 'SANDBOX', takes: 'one', completes: 'sandbox' }],
    command: 'optional',
    passesExitCode: true,
    notes: 'The sandbox needs no SSH server: the daemon speaks it. For scp, sftp, rsync and editors see hutch ssh-config.',
    load: async () => (await import('../verbs/ssh.ts')).run,
  },
  {
    name: 'ssh-config',
    group: 'Reach into',
    under: 'workspace',
    summary: 'Print what ~/.ssh/config needs for ssh NAME.hutch',
    examples: [
      { line: 'hutch ssh-config', about: 'put it into ~/.ssh/config; then: ssh dev.hutch, scp file dev.hutch:, rsync, and editors' },
    ],
    flags: [
      { name: 'stdio', about: 'For clients that are not OpenSSH’s and take no connection of their proxy: it copies all that is said' },
    ],
    positionals: [],
    notes: 'It names the key of the project and the host key of the daemon, which it writes into files of yours.',
    load: async () => (await import('../verbs/ssh.ts')).config,
  },
];
