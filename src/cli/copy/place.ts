// What the places of `hutch cp` mean: `SANDBOX:PATH`, a path of ours, or `-`. Pure, docker's rules.
import { HutchError } from '../../domain/errors.ts';
import { usage } from '../args.ts';

export type Place =
  | { readonly type: 'stream' }
  | { readonly type: 'local'; readonly path: string }
  | { readonly type: 'sandbox'; readonly ref: string; readonly path: string };

export function parsePlace(text: string): Place {
  if (text === '-') return { type: 'stream' };
  const colon = text.indexOf(':');
  // A colon after a slash or in a path that begins with a dot is part of a name.
  if (colon <= 0 || text.startsWith('.') || text.slice(0, colon).includes('/')) {
    if (text === '') throw usage('a place to copy must not be empty');
    return { type: 'local', path: text };
  }
  return { type: 'sandbox', ref: text.slice(0, colon), path: text.slice(colon + 1) === '' ? '.' : text.slice(colon + 1) };
}

export type Kind = 'file' | 'dir' | 'nothing';

/** What the name of a thing becomes where it is copied to; `name` null: its content goes into the directory. */
export type Target = { readonly dir: string; readonly name: string | null };

export type Plan = {
  /** As it was written: a slash or /. at its end means something. */
  readonly source: string;
  readonly sourceIsDir: boolean;
  readonly target: string;
  readonly targetKind: Kind;
};

/** Where a source goes. @throws HutchError as `docker cp` refuses. */
export function targetOf({ source, sourceIsDir, target, targetKind }: Plan): Target {
  if (sourceIsDir) {
    if (targetKind === 'file')
      throw new HutchError({ code: 'conflict', message: `${target} is a file; the directory ${source} cannot be copied onto it` });
    if (targetKind === 'nothing') return { dir: parentOf(target), name: baseOf(target) };
    return { dir: target, name: /(?:^|\/)\.\/?$/.test(source) ? null : baseOf(source) };
  }
  if (targetKind === 'dir') return { dir: target, name: baseOf(source) };
  if (targetKind === 'nothing' && target.endsWith('/'))
    throw new HutchError({ code: 'not_found', message: `there is no directory ${target}` });
  if (targetKind === 'file' && target.endsWith('/')) throw new HutchError({ code: 'conflict', message: `${target} is no directory` });
  return { dir: parentOf(target), name: baseOf(target) };
}

export function baseOf(path: string): string {
  return /([^/]+)\/*$/.exec(path)?.[1] ?? '/';
}

export function parentOf(path: string): string {
  const cut = path.replace(/\/+$/, '');
  const at = cut.lastIndexOf('/');
  if (at < 0) return '.';
  return at === 0 ? '/' : cut.slice(0, at);
}
