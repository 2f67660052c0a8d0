// `./dev lab up|run CMD…|shell|down|test`: the outer VM in which /dev/kvm, systemd, cgroup v2, vsock and
// XFS with reflink are real. `test` proves there what most users have and this machine may lack.
import { existsSync } from 'node:fs';
import { command, down, livingPid, up } from './lab/machine.ts';
import { runLabTests } from './lab/tests.ts';

const USAGE = `usage: ./dev lab up           boot the outer VM (builds it first), with this checkout in /hutch
       ./dev lab run CMD…     run a command in it (--user dev: as a user without privileges)
       ./dev lab shell        a shell in it, line by line
       ./dev lab down         end it
       ./dev lab test [--long] [--suite] [FILTER]
                              what is proven in it: a sample, all (--long), only what has FILTER in its name;
                              --suite: the conformance suite whole`;

const [verb, ...rest] = process.argv.slice(2);
try {
  process.exitCode = await main();
} catch (error) {
  console.error(`error: ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = 1;
}

async function main(): Promise<number> {
  switch (verb) {
    case 'up':
      await up();
      console.log('lab: up; try ./dev lab run ls -l /dev/kvm');
      return 0;
    case 'run': {
      await up();
      const user = rest[0] === '--user' ? rest.splice(0, 2)[1] : undefined;
      if (rest.length === 0) throw new Error('run takes a command');
      return command({
        argv: rest,
        ...(user === undefined ? {} : { user }),
        ...(existsSync('/dev/stdin') && !process.stdin.isTTY ? { input: process.stdin } : {}),
      });
    }
    case 'shell':
      await up();
      return command({ argv: ['bash', '-i'], input: process.stdin });
    case 'down':
      down();
      return 0;
    case 'status':
      console.log(livingPid() === null ? 'lab: down' : `lab: up, pid ${livingPid()}`);
      return 0;
    case 'test':
      return (await runLabTests({
        long: rest.includes('--long'),
        suite: rest.includes('--suite'),
        filter: rest.find((word) => !word.startsWith('-')) ?? '',
        seed: Number(process.env['HUTCH_TEST_SEED'] ?? Date.now() % 2 ** 31),
      }))
        ? 0
        : 1;
    default:
      console.error(USAGE);
      return 2;
  }
}
