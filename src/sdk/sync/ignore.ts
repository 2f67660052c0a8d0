// What is on neither side: `.git`, which would let a sandbox run programs here, what is excluded, and half-written files of ours.
import { Ignored } from '../../domain/dockerignore.ts';

/** Of Hutch's own, beside the file that they become. */
export const TEMP_PREFIX = '.hutch-';

/** A pattern without a slash fits at any depth, others from the top: as in `.gitignore`, with Docker's wildcards. */
export function newIgnore(patterns: readonly string[]): (path: string) => boolean {
  const ignored = new Ignored(
    patterns.map((pattern) => {
      const [back, plain] = pattern.startsWith('!') ? ['!', pattern.slice(1)] : ['', pattern];
      const trimmed = plain.replace(/\/+$/, '');
      return trimmed.includes('/') ? `${back}${trimmed.replace(/^\/+/, '')}` : `${back}**/${trimmed}`;
    }),
  );
  // Some file systems do not tell .GIT from .git.
  return (path) => path.split('/').some((name) => name.toLowerCase() === '.git' || name.startsWith(TEMP_PREFIX)) || ignored.has(path);
}
