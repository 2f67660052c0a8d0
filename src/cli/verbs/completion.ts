// hutch completion: a script for the user's shell, from the table.

import { nearest } from '../../domain/nearest.ts';
import { type Args, usage } from '../args.ts';
import { bashCompletion, fishCompletion, zshCompletion } from '../completions.ts';
import type { Context } from '../context.ts';
import { json } from '../output.ts';

const SHELLS = { bash: bashCompletion, zsh: zshCompletion, fish: fishCompletion } as const;

export async function run(context: Context, args: Args): Promise<number> {
  const shell = args.first();
  if (!Object.hasOwn(SHELLS, shell)) {
    const meant = nearest(shell, Object.keys(SHELLS));
    throw usage(
      `there are completions for ${Object.keys(SHELLS).join(', ')}, not for '${shell}'`,
      meant === null ? undefined : `did you mean ${meant}?`,
    );
  }
  const script = SHELLS[shell as keyof typeof SHELLS]();
  await context.io.out(context.json ? json({ shell, script }) : script);
  return 0;
}
