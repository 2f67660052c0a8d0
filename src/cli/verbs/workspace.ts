// hutch workspace: a git repository into a sandbox, and back.
import { Sandbox } from '../../sdk/sandbox.ts';
import { bringWorkspace, diffWorkspace } from '../../sdk/workspace/bring.ts';
import { type Plan, type Prepared, type PrepareOptions, planWorkspace, prepareWorkspace } from '../../sdk/workspace/prepare.ts';
import { split } from '../../sdk/workspace/source.ts';
import { type Args, usage } from '../args.ts';
import { ask, type Context } from '../context.ts';
import { json, roughSize, safe, safePatch } from '../output.ts';

export async function prepare(context: Context, args: Args): Promise<number> {
  const [ref = '', dir = '.'] = args.positionals;
  const options = prepareOptions(context, args);
  if (args.has('dry-run')) return await dryRun(context, await planWorkspace(dir, options));
  const sandbox = await sandboxOf(context, ref);
  const prepared = await prepareWorkspace(sandbox, dir, { ...options, ...userOf(args), force: args.has('force') });
  await tell(context, prepared);
  const { workspace, files, bytes, incremental, warnings } = prepared;
  if (context.json) await context.io.out(json({ workspace, files, bytes, incremental, warnings }));
  else await context.io.out(`${sandbox.name}:${workspace.guestPath}\n`);
  return 0;
}

export async function diff(context: Context, args: Args): Promise<number> {
  if (args.has('stat') && args.has('name-status')) throw usage('--stat and --name-status exclude each other');
  const format = context.json ? 'entries' : args.has('stat') ? 'stat' : args.has('name-status') ? 'names' : 'patch';
  const color = context.io.isTerminal.stdout && !context.json;
  const sandbox = await sandboxOf(context, args.first());
  const warnings: string[] = [];
  const text = await diffWorkspace(sandbox, { ...bringOptions(context, args), format, color, onWarning: (one) => warnings.push(one) });
  await tell(context, { warnings });
  if (!context.json) await showPatch(context, text);
  else await context.io.out(json({ files: filesOf(split({ stdout: text })), warnings }));
  return 0;
}

/** Byte for byte, unless it is for eyes. */
async function showPatch({ io }: Context, patch: Buffer): Promise<void> {
  await io.out(io.isTerminal.stdout ? safePatch(patch.toString('utf8')) : patch);
}

export async function bring(context: Context, args: Args): Promise<number> {
  const sandbox = await sandboxOf(context, args.first());
  const options = bringOptions(context, args);
  if (args.has('patch')) {
    if (args.value('branch') !== undefined) throw usage('--patch and --branch exclude each other');
    if (context.json) throw usage('the patch goes to stdout, and so would --json', 'leave out --json');
    const warnings: string[] = [];
    const patch = await diffWorkspace(sandbox, { ...options, onWarning: (one) => warnings.push(one) });
    await tell(context, { warnings });
    await showPatch(context, patch);
    return 0;
  }
  const branch = args.value('branch');
  const brought = await bringWorkspace(sandbox, { ...options, ...(branch === undefined ? {} : { branch }) });
  await tell(context, brought);
  if (context.json) await context.io.out(json(brought));
  else if (brought.branch === null && brought.otherBranches.length === 0) await context.io.err(`nothing was changed in ${sandbox.name}\n`);
  else {
    const parts = [
      `${brought.commits} ${brought.commits === 1 ? 'commit' : 'commits'}`,
      `${brought.filesChanged} ${brought.filesChanged === 1 ? 'file' : 'files'} changed`,
    ];
    if (brought.hasUncommitted) parts.push('what was not committed is in a commit of its own');
    if (brought.branch !== null) await context.io.out(`${brought.branch}\n`);
    for (const other of brought.otherBranches) await context.io.out(`${other}\n`);
    await context.io.err(`${parts.join('; ')}; look at it with: git log -p ${brought.branch ?? brought.otherBranches[0]}\n`);
  }
  return 0;
}

export function prepareOptions(context: Context, args: Args): PrepareOptions {
  const mode = args.value('mode');
  const path = args.value('path');
  return {
    ...(mode === undefined ? {} : { mode: mode as NonNullable<PrepareOptions['mode']> }),
    ...(path === undefined ? {} : { guestPath: path }),
    ...(args.has('include-untracked') ? { includeUntracked: true } : {}),
    signal: context.interrupts.signal,
    onProgress: progressOf(context),
  };
}

export function progressOf({ progress }: Context): NonNullable<PrepareOptions['onProgress']> {
  return ({ step, bytes }) => progress.show({ step, ...(bytes === undefined ? {} : { detail: roughSize(bytes) }) });
}

/** What was left out is told whoever looks: it is not there later. */
export async function tell(context: Context, { warnings }: Pick<Prepared, 'warnings'>): Promise<void> {
  context.progress.clear();
  if (!context.json) for (const warning of warnings) await context.io.err(`warning: ${safe(warning)}\n`);
}

export async function dryRun(context: Context, plan: Plan): Promise<number> {
  const { repository, mode, includeUntracked, contents, bytes, warnings } = plan;
  context.progress.clear();
  if (context.json) {
    const files = contents.files.map(({ path, sizeBytes }) => ({ path: path.toString('utf8'), sizeBytes }));
    const { sourcePath, root: repoRoot, name: repoName, headCommit, branch } = repository;
    await context.io.out(json({ sourcePath, repoRoot, repoName, headCommit, branch, mode, includeUntracked, files, bytes, warnings }));
    return 0;
  }
  for (const { path } of contents.files) await context.io.out(`${safe(path.toString('utf8'))}\n`);
  await tell(context, plan);
  await context.io.err(
    `${contents.files.length === 1 ? '1 file' : `${contents.files.length} files`}, ${roughSize(bytes)}, of ${repository.root} at ${repository.headCommit?.slice(0, 12) ?? 'no commit'}\n`,
  );
  return 0;
}

function bringOptions(context: Context, args: Args) {
  const into = args.value('into');
  return {
    ...userOf(args),
    ...(into === undefined ? {} : { into }),
    signal: context.interrupts.signal,
    onProgress: progressOf(context),
  };
}

async function sandboxOf(context: Context, ref: string): Promise<Sandbox> {
  return new Sandbox(context.client, await ask(context, 'sandbox.get', { ref }), async () => {});
}

function userOf(args: Args): { user?: string } {
  const user = args.value('user');
  return user === undefined ? {} : { user };
}

type Changed = { readonly status: string; readonly path: string; readonly from?: string };

function filesOf(fields: readonly Buffer[]): Changed[] {
  const rest = fields.map((field) => field.toString('utf8'));
  const files: Changed[] = [];
  for (let status = rest.shift(); status !== undefined; status = rest.shift()) {
    // Renamed, or copied: what it was comes first.
    const from = /^[RC]/.test(status) ? rest.shift() : undefined;
    files.push({ status, path: rest.shift() ?? '', ...(from === undefined ? {} : { from }) });
  }
  return files;
}
