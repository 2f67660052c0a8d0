// A git repository into a sandbox, again, and back, against what a person would type in its place.
import { spawn } from 'node:child_process';
import { appendFile, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Sandbox } from '../../src/sdk/sandbox.ts';
import { bringWorkspace } from '../../src/sdk/workspace/bring.ts';
import { prepareWorkspace } from '../../src/sdk/workspace/prepare.ts';
import type { Bench, Measurement } from '../context.ts';
import { judge, type Row, timed } from '../harness.ts';
import { execOk, mustRun } from '../place.ts';
import { PUBLISHED } from './published.ts';
import { SCP } from './reach.ts';

const FILES = { quick: 300, usual: 30_000, long: 30_000 } as const;
const FILE_BYTES = 10_000;
const FOLDER_FILES = 100;
const CHANGED_AGAIN = 10;
const CHANGED_INSIDE = 100;

/** A repository of that many files, 300 MB for 30,000, with one commit. */
async function makeRepository(dir: string, files: number): Promise<void> {
  const line = Buffer.alloc(FILE_BYTES, 'the quick brown fox jumps over the lazy dog\n');
  for (let nth = 0; nth < files; nth += FOLDER_FILES) {
    const folder = join(dir, `d${nth / FOLDER_FILES}`);
    await mkdir(folder, { recursive: true });
    for (let at = nth; at < Math.min(nth + FOLDER_FILES, files); at += 1)
      await writeFile(join(folder, `f${at}`), Buffer.concat([Buffer.from(`${at} ${Math.random()}\n`), line]).subarray(0, FILE_BYTES));
  }
  await git(dir, 'init', '-q', '-b', 'main');
  await commit(dir);
}

async function git(dir: string, ...args: string[]): Promise<void> {
  await mustRun(['git', '-C', dir, '-c', 'user.name=Bench', '-c', 'user.email=bench@localhost', '-c', 'gc.auto=0', ...args]);
}

async function commit(dir: string): Promise<void> {
  await git(dir, 'add', '-A');
  await git(dir, 'commit', '-q', '-m', 'a change');
}

/** `git clone --shared`, and the clone through a pipe of tar into the sandbox. */
async function byHand(sandbox: Sandbox, repo: string, scratch: string): Promise<void> {
  const clone = await mkdtemp(join(scratch, 'clone-'));
  await mustRun(['git', 'clone', '-q', '--shared', repo, clone]);
  const tar = spawn('tar', ['-C', clone, '-cf', '-', '.'], { stdio: ['ignore', 'pipe', 'inherit'] });
  await sandbox.files.unpack('/by-hand', tar.stdout, { mkdirs: true });
  await rm(clone, { recursive: true });
}

async function workspace(bench: Bench): Promise<readonly Row[]> {
  await using scope = bench.scope();
  const scratch = await mkdtemp(join(tmpdir(), 'hutch-bench-ws-'));
  scope.defer(() => rm(scratch, { recursive: true, force: true }));
  const repo = join(scratch, 'repo');
  const files = FILES[bench.size];
  await makeRepository(repo, files);
  const taken = { hand: [] as number[], first: [] as number[], again: [] as number[], bundle: [] as number[], bring: [] as number[] };
  const { hutch } = bench.place;
  for (let i = 0; i < bench.runs(1, 1); i += 1) {
    const sandboxes = [await hutch.create({ diskMiB: 4_096 }), await hutch.create({ diskMiB: 4_096 })] as const;
    const [plain, ours] = sandboxes;
    await execOk(plain, ['true']);
    await execOk(ours, ['true']);
    taken.hand.push(await timed(() => byHand(plain, repo, scratch)));
    taken.first.push(await timed(() => prepareWorkspace(ours, repo)));
    for (let nth = 0; nth < CHANGED_AGAIN; nth += 1) await appendFile(join(repo, 'd0', `f${nth}`), `${i}\n`);
    await commit(repo);
    taken.again.push(await timed(() => prepareWorkspace(ours, repo)));
    const change = `cd /work/repo; for nth in $(seq 0 ${Math.min(CHANGED_INSIDE, files) - 1}); do echo changed >> d$((nth / ${FOLDER_FILES}))/f$nth; done
      git -c user.name=G -c user.email=g@localhost commit -qam changed`;
    await execOk(ours, ['sh', '-ec', change]);
    const bundle = join(scratch, `bundle-${i}`);
    taken.bundle.push(
      await timed(async () => {
        const { stdoutBuffer, exitCode } = await ours.exec(['sh', '-c', 'cd /work/repo && git bundle create -q - main ^refs/hutch/base']);
        if (exitCode !== 0) throw new Error('git bundle failed');
        await writeFile(bundle, stdoutBuffer);
        await git(repo, 'fetch', '-q', bundle, `main:by-hand-${i}`);
      }),
    );
    taken.bring.push(await timed(() => bringWorkspace(ours, { branch: `brought-${i}` })));
    for (const sandbox of sandboxes) await sandbox.delete();
  }
  const size = `${files.toLocaleString('en')} files, ${Math.round((files * FILE_BYTES) / 1e6)} MB`;
  return [
    judge(
      {
        what: `workspace: prepare (${size})`,
        unit: 'ms',
        baselineName: '`git clone --shared` + tar over a pipe into the sandbox',
        target: '≤ 1.2×',
        meets: (ratio) => ratio <= 1.2,
        note: 'Bound by making the files in the guest. The sandbox gets the last commit’s objects as well, which the clone refers to where it came from and would not find in the sandbox.',
      },
      taken.hand,
      taken.first,
    ),
    judge(
      {
        what: `workspace: prepare again, ${CHANGED_AGAIN} files changed`,
        unit: 'ms',
        baselineName: 'the first time',
        target: '≤ 0.1×',
        meets: (ratio) => ratio <= 0.1,
        note: 'Git finds here by the times of files what has changed; in the guest it is asked about those files alone, while they are put together here. What is left in the guest is five starts of git, and reading and writing an index of all files, which grows with the repository.',
      },
      taken.first,
      taken.again,
    ),
    judge(
      {
        what: `workspace: bring ${Math.min(CHANGED_INSIDE, files)} changed files`,
        unit: 'ms',
        baselineName: '`git bundle` + `git fetch`',
        target: '≤ 1.5×',
        meets: (ratio) => ratio <= 1.5,
        note: 'The baseline knows that all is committed. Bring has git look in the guest, once, at the time of each file for what is not, which on one processor that is emulated takes most of what is beyond the baseline; and it checks each object here. Where nothing is uncommitted, HEAD itself is bundled: no file is looked at twice, and no index, tree or commit is made.',
      },
      taken.bundle,
      taken.bring,
    ),
  ];
}

export const WORKSPACE: readonly Measurement[] = [
  { name: 'workspace', about: 'a git repository into a sandbox, and back', rows: workspace },
  ...PUBLISHED,
  ...SCP,
];
