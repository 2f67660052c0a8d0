// What all commands have in common that are run in a sandbox for its workspace.
import type { Workspace } from '../../domain/sandbox.ts';

/** As it is known before it is kept. */
export type Recorded = Omit<Workspace, 'preparedAtMs'>;

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
