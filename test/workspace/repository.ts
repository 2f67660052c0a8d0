// A small repository of somebody's, for tests of what travels into a sandbox and back.
import { spawnSync } from 'node:child_process';
import { chmod, mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export class TestRepository implements AsyncDisposable {
  /** In which it lies; it goes with the disposal. */
  readonly here: string;
  readonly dir: string;

  private constructor(here: string) {
    this.here = here;
    this.dir = join(here, 'web');
  }

  static async make(): Promise<TestRepository> {
    const made = new TestRepository(await mkdtemp(join(tmpdir(), 'hutch-ws-')));
    await mkdir(join(made.dir, 'src'), { recursive: true });
    made.git('init', '-q', '-b', 'main');
    made.git('config', 'user.name', 'Somebody');
    made.git('config', 'user.email', 'somebody@example.org');
    await writeFile(join(made.dir, 'README'), 'hello\n');
    await writeFile(join(made.dir, 'src/run.sh'), '#!/bin/sh\necho ran\n');
    await chmod(join(made.dir, 'src/run.sh'), 0o755);
    await symlink('../../outside', join(made.dir, 'src/out'));
    await writeFile(join(made.dir, '.gitignore'), 'node_modules\n');
    made.git('add', '.');
    made.git('commit', '-q', '-m', 'one');
    return made;
  }

  /** What git says there, without the newline at its end. */
  git(...args: string[]): string {
    return gitAt(this.dir, args);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await rm(this.here, { recursive: true, force: true });
  }
}

export function gitAt(dir: string, args: readonly string[], input = ''): string {
  const { status, stdout, stderr } = spawnSync('git', ['-C', dir, ...args], { encoding: 'utf8', input });
  if (status !== 0) throw new Error(`git ${args.join(' ')}: ${stderr}`);
  return stdout.trimEnd();
}
