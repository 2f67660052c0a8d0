// What tests of builds share: a daemon over the real backends, an image of one program to build upon, and looks at what was made.
import { readFileSync } from 'node:fs';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { MACHINES, World } from '../cli/world.ts';
import { tar } from '../images/archives.ts';
import { readSaved, type Saved } from './saved.ts';

const APPLETS =
  'sh ls cat echo mkdir rm rmdir touch chmod chown ln mv id env sleep wc printf true false cp stat find grep test sed head sort mkfifo'.split(
    ' ',
  );
/** An image of one program: what the tests build upon, as `base:1`. */
export const BASE = tar(
  { path: 'bin/busybox', mode: 0o755, content: readFileSync('/bin/busybox') },
  ...APPLETS.map((name) => ({ path: `bin/${name}`, type: 'symlink' as const, link: 'busybox' })),
  { path: 'etc/passwd', content: 'root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:app:/home/app:/bin/sh\n' },
  { path: 'etc/group', content: 'root:x:0:\napp:x:1001:\n' },
  { path: 'usr/local/bin', type: 'symlink', link: '../../bin' },
  { path: 'opt/old/one', content: '1' },
  { path: 'opt/old/two', content: '2' },
  { path: 'opt/keep', content: 'k' },
  { path: 'tmp/', type: 'directory', mode: 0o1777 },
);

type Build = {
  readonly id: string;
  readonly state: string;
  readonly step: string | null;
  readonly progressPercent: number;
  readonly logTail: readonly string[];
  readonly error: { readonly message: string } | null;
};

export class BuildWorld implements AsyncDisposable {
  readonly world: World;
  /** For files of the tests. */
  readonly root: string;

  private constructor(world: World, root: string) {
    this.world = world;
    this.root = root;
  }

  static async make(): Promise<BuildWorld> {
    const here = new BuildWorld(await World.make(MACHINES), await mkdtemp(join(tmpdir(), 'hutch-build-')));
    const imported = await here.world.run(['image', 'import', '--name', 'base:1', '-'], { input: BASE });
    if (imported.code !== 0) throw new Error(imported.stderr);
    return here;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await rm(this.root, { recursive: true, force: true });
    await this.world[Symbol.asyncDispose]();
  }

  async context(files: Readonly<Record<string, string>>): Promise<string> {
    const dir = await mkdtemp(join(this.root, 'context-'));
    for (const [path, content] of Object.entries(files)) {
      await mkdir(dirname(join(dir, path)), { recursive: true });
      await writeFile(join(dir, path), content);
    }
    return dir;
  }

  async saved(image: string): Promise<Saved> {
    const { bytes, code, stderr } = await this.world.run(['image', 'export', image]);
    if (code !== 0) throw new Error(stderr);
    return await readSaved(bytes);
  }

  /** Null: it works on this machine. */
  async why(backend: string): Promise<string | null> {
    const { backends } = await this.world.json<{ backends: { name: string; can: object | null }[] }>('backends');
    return backends.some(({ name, can }) => name === backend && can !== null) ? null : `${backend} does not work here`;
  }

  /** The newest first. */
  async builds(): Promise<readonly Build[]> {
    return (await this.world.json<{ builds: Build[] }>('image', 'builds')).builds;
  }

  async sandboxes(): Promise<unknown[]> {
    return (await this.world.json<{ sandboxes: unknown[] }>('ls')).sandboxes;
  }
}
