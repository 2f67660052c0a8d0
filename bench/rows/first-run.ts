// What a first run downloads and installs, as far as it can be told without doing it again: from apt's
// own lists for a machine that has only the usual packages, and from what lies here now. How long the rest
// of it takes is tried.
import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Bench, Measurement } from '../context.ts';
import { alone, type Row, short } from '../harness.ts';
import { Place, ROOT, runProgram } from '../place.ts';

const MB = 1e6;
const DOWNLOAD_MB_MAX = 250;
const SECONDS_MAX = 60;
/** Said by scripts/setup.sh when it fetches them. */
const NODE_DOWNLOAD_MB = 57;
const LIBRARIES_DOWNLOAD_MB = 6;
/** What every machine that one can log in to has. */
const PRESENT = ['apt', 'ca-certificates', 'sudo', 'git', 'python3-minimal', '?essential', '?priority(required)', '?priority(important)'];

type Package = { readonly name: string; readonly bytes: number };
type Closure = { readonly count: number; readonly downloadMb: number; readonly installedMb: number };

/** The packages that setup installs to run sandboxes, and to fetch Node.js. */
function setupPackages(): readonly string[] {
  const text = readFileSync(join(ROOT, 'scripts', 'setup.sh'), 'utf8');
  const body = /^machine_programs\(\) \{$([\s\S]*?)^\}$/m.exec(text)?.[1] ?? '';
  return [...body.matchAll(/[^\s':]+:([a-z0-9.+-]+)/g)].map(([, name = '']) => name).concat('npm', 'libatomic1');
}

function imagePackages(): readonly string[] {
  const text = readFileSync(join(ROOT, 'src', 'images', 'default-image.ts'), 'utf8');
  const body = /^const PACKAGES = \[$([\s\S]*?)^\];$/m.exec(text)?.[1] ?? '';
  return ['apt', '?essential', ...[...body.matchAll(/'([a-z0-9.+-]+)'/g)].map(([, name = '']) => name)];
}

/** What apt would fetch for these on a machine that has nothing at all. */
async function wanted(status: string, packages: readonly string[]): Promise<readonly Package[]> {
  const apt = ['apt-get', '-qq', '--print-uris', '--no-install-recommends', '-o', `Dir::State::status=${status}`, 'install', ...packages];
  const { code, stdout, stderr } = await runProgram(apt);
  if (code !== 0) throw new Error(stderr.trim());
  return [...stdout.matchAll(/^'[^']*' ([^_\s]+)_\S+\.deb (\d+)/gm)].map(([, name = '', bytes]) => ({ name, bytes: Number(bytes) }));
}

async function closure(status: string, packages: readonly string[], present: readonly string[]): Promise<Closure> {
  const there = new Set(present.length === 0 ? [] : (await wanted(status, present)).map(({ name }) => name));
  const missing = (await wanted(status, [...present, ...packages])).filter(({ name }) => !there.has(name));
  const { stdout } = await runProgram(['apt-cache', 'show', '--no-all-versions', ...missing.map(({ name }) => name)]);
  const installedKib = [...stdout.matchAll(/^Installed-Size: (\d+)$/gm)].reduce((sum, [, kib]) => sum + Number(kib), 0);
  return {
    count: missing.length,
    downloadMb: missing.reduce((sum, { bytes }) => sum + bytes, 0) / MB,
    installedMb: (installedKib * 1024) / MB,
  };
}

type Apt = { readonly host: Closure; readonly npm: Closure; readonly image: Closure; readonly kernel: Closure };

/** Null where apt has no lists, or the distribution is another. */
async function aptSizes(): Promise<Apt | null> {
  const dir = mkdtempSync(join(tmpdir(), 'hutch-bench-apt-'));
  try {
    const status = join(dir, 'status');
    writeFileSync(status, '');
    const packages = setupPackages();
    return {
      host: await closure(status, packages, PRESENT),
      npm: await closure(status, ['npm'], [...PRESENT, ...packages.filter((name) => name !== 'npm')]),
      image: await closure(status, imagePackages(), []),
      kernel: await closure(status, ['linux-image-cloud-amd64'], [...PRESENT, 'initramfs-tools', 'linux-base', 'kmod']),
    };
  } catch {
    return null;
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
}

async function diskMb(...paths: readonly string[]): Promise<number> {
  const { stdout } = await runProgram(['du', '-s', '-B1', '-c', ...paths]);
  return Number(/^(\d+)\s+total$/m.exec(stdout)?.[1] ?? 0) / MB;
}

type FirstStart = { readonly workMs: number; readonly downloadMs: number };

/**
 * Milliseconds from an empty directory until the first program has run, without the time in which the image's packages
 * come over the network. The kernel's package comes at the same time, and is unpacked then.
 */
async function firstStart(bench: Bench): Promise<FirstStart> {
  await using place = bench.scope().use(await Place.make('empty'));
  const began = performance.now();
  await place.startDaemon();
  let downloadMs = 0;
  let since: number | null = null;
  const sandbox = await place.hutch.create({
    onProgress: ({ step, detail }) => {
      if (step !== 'image') return;
      if (since !== null) downloadMs += performance.now() - since;
      since = /^(fetching|downloading) /.test(detail ?? '') ? performance.now() : null;
    },
  });
  await sandbox.exec(['true']);
  return { workMs: performance.now() - began - downloadMs, downloadMs };
}

function timeOf({ workMs, downloadMs }: FirstStart): Row {
  return alone(
    {
      what: 'first run: until the first program has run, downloads excluded',
      unit: 's',
      target: `≤ ${SECONDS_MAX} s`,
      met: workMs / 1_000 <= SECONDS_MAX,
      note: `Kernel, image, template and a sandbox from an empty directory; ${short(downloadMs / 1_000)} s more in which the image’s packages came. What apt-get unpacks on a machine that lacks the programs is not in it. Bound by dpkg, which sets up the image’s packages one by one; then packing it, and one cold boot.`,
    },
    [workMs / 1_000],
  );
}

async function firstRun(bench: Bench): Promise<readonly Row[]> {
  await bench.template(); // so that everything has been made
  const { dataDir } = bench.place;
  const tools = join(ROOT, '.tools');
  const node = readFileSync(join(tools, 'node-path'), 'utf8').trim();
  const privateNode = /^(.*\/\.tools\/node-[^/]+)\//.exec(node)?.[1] ?? node;
  const data = await diskMb(join(dataDir, 'images'), join(dataDir, 'kernels'), join(dataDir, 'initramfs'));
  const template = await diskMb(join(dataDir, 'templates'));
  const own = await diskMb(privateNode, join(ROOT, 'dist'), join(ROOT, 'prebuilt'), join(ROOT, 'src'));
  const apt = await aptSizes();
  const here = data + template + own;
  // Minutes on a busy machine, and what it shows is shown by anybody's first run.
  const time = bench.size === 'quick' ? [] : [timeOf(await firstStart(bench))];
  const disk = alone(
    {
      what: 'first run: on disk afterwards',
      unit: 'MB',
      target: 'reported',
      met: null,
      note: `Node.js, Hutch and its programs ${short(own)} MB; image, kernel and initramfs ${short(data)} MB; the first template ${short(template)} MB${apt === null ? '; packages of the distribution not counted: apt has no lists here' : `; ${apt.host.count} packages of the distribution ${short(apt.host.installedMb)} MB, of which ${apt.npm.count} with ${short(apt.npm.installedMb)} MB are npm and what it needs, on a machine that has no Node.js`}. Not counted: what npm keeps for itself.`,
    },
    [here + (apt?.host.installedMb ?? 0)],
  );
  if (apt === null) return [...time, disk];
  const download = apt.host.downloadMb + apt.image.downloadMb + apt.kernel.downloadMb + NODE_DOWNLOAD_MB + LIBRARIES_DOWNLOAD_MB;
  return [
    alone(
      {
        what: 'first run: to download',
        unit: 'MB',
        target: `≤ ${DOWNLOAD_MB_MAX} MB`,
        met: download <= DOWNLOAD_MB_MAX,
        note: `Packages of the distribution ${short(apt.host.downloadMb)} MB beyond Debian’s required and important ones (npm and what it needs: ${short(apt.npm.downloadMb)} MB), Node.js ${NODE_DOWNLOAD_MB} MB and libraries ${LIBRARIES_DOWNLOAD_MB} MB as setup says, the image’s packages ${short(apt.image.downloadMb)} MB, the kernel ${short(apt.kernel.downloadMb)} MB. Root is needed for one step: \`apt-get install\`.`,
      },
      [download],
    ),
    ...time,
    disk,
  ];
}

export const FIRST_RUN: readonly Measurement[] = [
  { name: 'first-run', about: 'what a first run downloads and installs, and how long it works', rows: firstRun },
];
