// This machine is the oracle: the same scripts in a sandbox and here, in the same root file system (the
// image, or the reference's root, with a scratch layer on it), print the same and end the same.
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { nodeHost } from '../../src/host/node-host.ts';
import { realBootFiles } from '../qemu/fixture.ts';
import { testOperation } from '../support/operation.ts';
import { SCRIPTS, type Script } from './oracle-scripts.ts';
import type { Subject } from './subject.ts';

type Told = { readonly exitCode: number; readonly stdout: string; readonly stderr: string };

const PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';
/** In namespaces of its own, so that ids, mounts and processes are not those of whoever tests. */
const ENTER = `mount --make-rprivate / && mount --rbind /dev "$1/dev" && mount -t tmpfs -o mode=1777 tmp "$1/tmp" && mount -t proc proc "$1/proc" && umask 022 && shift && exec "$@"`;

export function oracle(subject: Subject): void {
  describe('the oracle', () => {
    let dir = '';
    let root = '';

    beforeAll(async () => {
      dir = mkdtempSync(join(tmpdir(), 'hutch-oracle-'));
      root = join(dir, 'root');
      for (const name of ['image', 'scratch', 'root']) mkdirSync(join(dir, name));
      let lower = join(dir, 'image');
      if (subject.name === 'reference') {
        const { id } = await subject.make({ start: false });
        lower = join(subject.daemon.home, 'data/sandboxes', id, 'vm/root');
      } else {
        execFileSync('mount', ['-o', 'loop,ro', (await realBootFiles(testOperation(), nodeHost())).imagePath, lower]);
      }
      execFileSync('mount', ['-t', 'tmpfs', '-o', 'mode=755', 'scratch', join(dir, 'scratch')]);
      for (const name of ['upper', 'work']) mkdirSync(join(dir, 'scratch', name));
      execFileSync('mount', [
        '-t',
        'overlay',
        '-o',
        `lowerdir=${lower},upperdir=${dir}/scratch/upper,workdir=${dir}/scratch/work`,
        'root',
        root,
      ]);
    }, 120_000);
    afterAll(() => {
      for (const name of ['root', 'scratch', 'image']) spawnSync('umount', ['-l', join(dir, name)]);
      rmSync(dir, { recursive: true, force: true });
    });

    function here({ script, user, env = {}, terminal }: Script): Told {
      const inside = ['chroot', `--userspec=${user ?? '0:0'}`, '--groups=', root, '/usr/bin/env', '-i'];
      const argv = [
        ...['unshare', '--mount', '--pid', '--fork', '--kill-child', '--uts', '--ipc', '--net', 'sh', '-c', ENTER, 'enter', root],
        ...inside.map((word) => (word === '/usr/bin/env' && subject.name === 'reference' ? '/bin/env' : word)),
        ...Object.entries({ PATH, HOME: user === undefined ? '/root' : '/', ...env }).map(([key, value]) => `${key}=${value}`),
        ...['sh', '-c', script],
      ];
      const quoted = argv.map((word) => `'${word.replaceAll("'", "'\\''")}'`).join(' ');
      const [program = '', ...rest] =
        terminal === undefined ? argv : ['script', '-qefc', `stty rows 30 cols 100; exec ${quoted}`, '/dev/null'];
      const { status, stdout, stderr } = spawnSync(program, rest, { encoding: 'utf8', input: '', timeout: 60_000 });
      return { exitCode: status ?? -1, stdout, stderr };
    }

    async function inside({ script, user, env = {}, terminal }: Script): Promise<Told> {
      return await subject.daemon.run(await subject.box(), ['sh', '-c', script], {
        env: { PATH, HOME: user === undefined ? '/root' : '/', ...env },
        cwd: '/',
        ...(user === undefined ? {} : { user }),
        ...(terminal === undefined ? {} : { terminal: { cols: 100, rows: 30 } }),
      });
    }

    for (const one of SCRIPTS) {
      const unlike = subject.can.isolation === 'user-space-kernel' ? one.unlike?.[subject.can.isolation] : undefined;
      if (unlike !== undefined) {
        test.skip(`oracle: ${one.what}: ${unlike}`, () => {});
        continue;
      }
      test(`oracle: ${one.what}`, { timeout: 120_000 }, async () => {
        const wanted = here(one);
        expect(wanted.stdout, `the oracle itself: ${wanted.stderr}`).not.toBe('');
        expect(await inside(one)).toEqual(wanted);
      });
    }
  });
}
