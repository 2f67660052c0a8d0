// Dockerfiles as people write them, short, over one context. What each gives was recorded from BuildKit by record.ts, and is in
// test/vectors/dockerfiles.json.
import { readFileSync } from 'node:fs';
import { chmod, mkdir, symlink, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { tar } from '../images/archives.ts';
import { CASES_OF_FILES } from './cases-of-files.ts';
import { CASES_OF_WORDS } from './cases-of-words.ts';
import { listingOf, type Saved } from './saved.ts';

export type Case = {
  readonly text: string;
  readonly args?: Readonly<Record<string, string>>;
  readonly target?: string;
  /** Of the context, beside what all have. */
  readonly files?: Readonly<Record<string, string>>;
  readonly secrets?: Readonly<Record<string, string>>;
};

/** What a case gave: of its files those that are not as in the base image, null for one that is gone. Null: it is refused. */
export type Recorded = { readonly config: readonly unknown[]; readonly files: Readonly<Record<string, string | null>> } | null;

const APPLETS = 'sh ls cat echo mkdir rm rmdir touch chmod chown ln mv id env wc printf true false cp stat find grep sed head sort'.split(
  ' ',
);

/** What the Dockerfiles build upon, but for its program, which each machine has of its own. */
export function baseImage(): Buffer {
  return tar(
    { path: 'bin/busybox', mode: 0o755, content: readFileSync('/bin/busybox') },
    ...APPLETS.map((name) => ({ path: `bin/${name}`, type: 'symlink' as const, link: 'busybox' })),
    { path: 'etc/passwd', content: 'root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:app:/home/app:/bin/sh\n' },
    { path: 'etc/group', content: 'root:x:0:\napp:x:1001:\n' },
    { path: 'usr/local/bin', type: 'symlink', link: '../../bin' },
    { path: 'opt/old/one', content: '1' },
    { path: 'opt/old/two', content: '2' },
    { path: 'opt/keep', content: 'k' },
    { path: 'srv/link', type: 'symlink', link: '/opt/old' },
    { path: 'tmp/', type: 'directory', mode: 0o1777 },
    // An engine puts these into each image that a RUN was done in.
    ...['dev/', 'proc/', 'sys/', 'run/'].map((path) => ({ path, type: 'directory' as const, mode: 0o755 })),
    ...['etc/hosts', 'etc/hostname', 'etc/resolv.conf'].map((path) => ({ path, content: '' })),
  );
}

const ARCHIVE = tar(
  { path: 'pkg/', type: 'directory', mode: 0o755 },
  { path: 'pkg/readme', content: 'in the archive\n', uid: 7, gid: 8 },
  { path: 'pkg/run', content: '#!/bin/sh\n', mode: 0o755 },
  { path: 'pkg/link', type: 'symlink', link: 'readme' },
);

const FILES: Readonly<Record<string, string | Buffer>> = {
  'package.json': '{"name":"web"}\n',
  'package-lock.json': '{"lockfileVersion":3}\n',
  'requirements.txt': 'flask==3.0\n',
  'go.mod': 'module example\n',
  'src/index.js': 'console.log(1)\n',
  'src/lib/util.js': 'export {}\n',
  'src/lib/deep/x.txt': 'x\n',
  'src/lib/deep/y.md': 'y\n',
  'docs/a.md': 'a\n',
  'docs/b.md': 'b\n',
  'docs/c.txt': 'c\n',
  'docs/sub/d.md': 'd\n',
  'scripts/run.sh': '#!/bin/sh\nexec "$@"\n',
  'README.md': 'read me\n',
  '.env': 'A=1\n',
  '.hidden/file': 'h\n',
  'with space.txt': 's\n',
  'file[1].txt': 'brackets\n',
  'a.txt': 'A\n',
  'b.txt': 'B\n',
  'data.tar': ARCHIVE,
  'data.tar.gz': gzipSync(ARCHIVE, { level: 9 }),
  'only.gz': gzipSync(Buffer.from('no archive\n')),
  'node_modules/left-pad/index.js': 'left\n',
};

export async function writeContext(dir: string, { text, files }: Case): Promise<void> {
  for (const [path, content] of Object.entries({ ...FILES, ...files, Dockerfile: text })) {
    await mkdir(dirname(join(dir, path)), { recursive: true });
    await writeFile(join(dir, path), content);
    await chmod(join(dir, path), path.endsWith('.sh') ? 0o755 : 0o644);
    for (let at = dirname(path); at !== '.'; at = dirname(at)) await chmod(join(dir, at), 0o755);
  }
  await mkdir(join(dir, 'empty'), { mode: 0o755 });
  await symlink('README.md', join(dir, 'link'));
  await symlink('src', join(dir, 'dirlink'));
  await symlink('nowhere', join(dir, 'dangling'));
}

const SAID = [
  ...['Env', 'Cmd', 'Entrypoint', 'WorkingDir', 'User', 'ExposedPorts', 'Volumes', 'Labels', 'StopSignal', 'Healthcheck', 'Shell'],
  'OnBuild',
];

/** What an image says of itself, without what says nothing. */
export function saidBy({ config: { config } }: Saved): readonly unknown[] {
  const isNothing = (value: unknown) =>
    value == null || value === '' || (typeof value === 'object' && Object.keys(value).length === 0 && !Array.isArray(value));
  return SAID.map((key) => [key, isNothing(config[key]) ? null : config[key]]);
}

/** Without the program, of which each machine has its own. */
export async function filesOf({ files }: Saved): Promise<Readonly<Record<string, string | null>>> {
  const base = await listingOf([baseImage()]);
  const paths = [...new Set([...base.keys(), ...files.keys()])].filter((path) => path !== 'bin/busybox' && path !== '').sort();
  const differing = paths.filter((path) => files.get(path) !== base.get(path));
  return Object.fromEntries(differing.map((path) => [path, files.get(path) ?? null]));
}

export const CASES: Readonly<Record<string, Case>> = { ...CASES_OF_FILES, ...CASES_OF_WORDS };
