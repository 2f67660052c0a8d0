// Directories of this machine and volumes that are seen inside a sandbox, and how people write them down: as with `docker -v`.
import type { VolumeId } from './ids.ts';
import type { ParsedText } from './size.ts';

/** A directory of this machine, or a volume. */
export type Mount = {
  /** Absolute, and no part of it is a symlink; of a volume its name. */
  readonly source: string;
  readonly volumeId?: VolumeId;
  /** Absolute, in the sandbox. */
  readonly target: string;
  readonly readOnly: boolean;
};

/** As it is asked for: a source that begins with a slash is a directory and may go through symlinks, any other a volume. */
export type WantedMount = Omit<Mount, 'volumeId'>;

/** Of one sandbox. */
export const MOUNTS_MAX = 32;

const TEXT_CHARS_MAX = 8_192;
const FORM = /^(?<source>[^\0]+?):(?<target>\/[^:\0]*)(?::(?<mode>[a-z]+))?$/;

/** What is the sandbox's own, and what its agent writes to. */
const OWN = ['/proc', '/sys', '/dev', '/run/hutch', '/.hutch'];
const OWN_ITSELF = ['/', '/etc', '/run'];

/** `SOURCE:TARGET[:ro|rw]`; what the source is, is the caller's to say. */
export function parseMount(text: string): ParsedText<WantedMount> {
  const hint = 'write it HOST:GUEST, like ./data:/data, or VOLUME:GUEST; with :ro behind it nothing can be written there';
  const found = text.length > TEXT_CHARS_MAX ? undefined : FORM.exec(text)?.groups;
  const shown = text.slice(0, 200);
  if (found === undefined) return { ok: false, message: `'${shown}' is nothing to mount`, hint };
  const { source = '', target = '', mode = 'rw' } = found;
  if (mode !== 'ro' && mode !== 'rw') return { ok: false, message: `'${shown}': behind the second colon stands ro or rw`, hint };
  return { ok: true, value: { source, target: trimmed(target), readOnly: mode === 'ro' } };
}

/** Why nothing can be mounted there; null: it can. */
export function targetRefusal(target: string): string | null {
  if (!target.startsWith('/')) return 'must be an absolute path';
  if (target.split('/').some((part, at) => at > 0 && (part === '.' || part === '..' || part === '')) && target !== '/')
    return 'must be a plain path, without . or .. or a slash at its end';
  const own = OWN_ITSELF.includes(target) ? target : OWN.find((path) => isWithin(target, path));
  return own === undefined ? null : `must not be ${target === own ? own : `in ${own}`}, which is the sandbox's own`;
}

/** Why the targets cannot be mounted together; null: they can. */
export function targetsRefusal(targets: readonly string[]): string | null {
  for (const [at, target] of targets.entries()) {
    const other = targets.slice(0, at).find((earlier) => isWithin(target, earlier) || isWithin(earlier, target));
    if (other === target) return `${target} is mounted twice`;
    if (other !== undefined) return `${target} and ${other} lie in one another`;
  }
  return null;
}

/** Whether the path is that directory, or something in it. */
export function isWithin(path: string, dir: string): boolean {
  return path === dir || path.startsWith(dir === '/' ? '/' : `${dir}/`);
}

/** `./data:/data:ro`, as people write it. */
export function showMount({ source, target, readOnly }: Mount): string {
  return `${source}:${target}${readOnly ? ':ro' : ''}`;
}

function trimmed(path: string): string {
  return path.replace(/\/+$/, '') || '/';
}
