// hutch run DIR -- CMD: the sandbox is made, the git repository is copied in, and only then does its main process begin.
import { posix } from 'node:path';
import { deleteQuietly, Sandbox } from '../../sdk/sandbox.ts';
import { defaultGuestPath, planWorkspace, prepareWorkspace } from '../../sdk/workspace/prepare.ts';
import { lookAtRepository, travellingPart } from '../../sdk/workspace/source.ts';
import type { Input, Output } from '../../services/verbs.ts';
import type { Args } from '../args.ts';
import { type Context, change } from '../context.ts';
import * as workspace from './workspace.ts';

export async function dryRun(context: Context, args: Args, source: string): Promise<number> {
  return await workspace.dryRun(context, await planWorkspace(source, workspace.prepareOptions(context, args)));
}

/** On failure, and when it is interrupted, no sandbox is left. */
export async function createWithWorkspace(
  context: Context,
  args: Args,
  source: string,
  spec: Input<'sandbox.create'>,
  main: Input<'main.begin'>['main'],
): Promise<Output<'sandbox.create'>> {
  const options = workspace.prepareOptions(context, args);
  // Before anything is made: most mistakes are about the repository.
  const repository = await lookAtRepository(source, options.signal);
  const guestPath = options.guestPath ?? defaultGuestPath(repository);
  const { mode = 'shallow_overlay', includeUntracked = false, signal } = options;
  const workdir = posix.join(guestPath, await travellingPart(repository, { mode, includeUntracked }, signal));
  const made = await change(context, 'sandbox.create', { workdir, ...spec });
  const sandbox = new Sandbox(context.client, made, async () => {});
  try {
    await workspace.tell(context, await prepareWorkspace(sandbox, source, { ...options, guestPath }));
    return await sandbox.begin(main, { signal: context.interrupts.signal });
  } catch (error) {
    context.progress.clear();
    await deleteQuietly(context.client, sandbox.id);
    throw error;
  }
}
