// What all commands have in common that are run in a sandbox for its workspace.
import type { Workspace } from '../../domain/sandbox.ts';

/** As it is known before it is kept. */
export type Recorded = Omit<Workspace, 'preparedAtMs'>;

/**
 * For a script's use of the sandbox's git: neither settings of the user's, nor programs that its own settings name for what goes on
 * beside, which would change what is looked at. Filters stay: what a file is to git they say.
 */
export const BARE_GIT =
  "export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_PARAMETERS=\"'core.fsmonitor=false' 'core.hooksPath=/dev/null'\"";

/** Where nothing is said, as the sandbox's user and from the root: the workspace may be its working directory, and not there yet. */
export function inSandbox({ user, signal }: { readonly user?: string | undefined; readonly signal?: AbortSignal | undefined }) {
  return { cwd: '/', ...(user === undefined ? {} : { user }), ...(signal === undefined ? {} : { signal }) };
}

export function lastLine(text: string): string {
  return text.trim().split('\n').at(-1)?.slice(0, 500) ?? '';
}

/** Both have ended when this does, however: one of them writes where the other's failure would clean up. */
export async function bothOrFail<A, B>(a: Promise<A>, b: Promise<B>): Promise<[A, B]> {
  await Promise.allSettled([a, b]);
  return await Promise.all([a, b]);
}
