// The known word that somebody who mistyped one probably meant.

/** Words further apart than a third of their letters are different words. */
const DISTANCE_MAX = 3;
/** Longer words are not compared: the work grows with the square. */
const WORD_CHARS_MAX = 64;

/** Null when none is near. `words` are compared without regard to case, hyphens and underscores. */
export function nearest(word: string, words: readonly string[]): string | null {
  if (word.length > WORD_CHARS_MAX) return null;
  const plain = plainOf(word);
  const allowed = Math.min(DISTANCE_MAX, Math.floor(plain.length / 3));
  let best: { readonly word: string; readonly apart: number } | null = null;
  for (const candidate of words) {
    const other = plainOf(candidate);
    const apart = distance(plain, other);
    if (apart <= allowed && apart < (best?.apart ?? Number.POSITIVE_INFINITY)) best = { word: candidate, apart };
  }
  return best?.word ?? null;
}

function plainOf(word: string): string {
  return word.toLowerCase().replaceAll(/[-_]/g, '');
}

/** Insertions, removals, replacements, and swaps of neighbours (optimal string alignment). */
function distance(a: string, b: string): number {
  let beforeLast: readonly number[] = [];
  let last: readonly number[] = Array.from({ length: b.length + 1 }, (_, column) => column);
  for (let row = 1; row <= a.length; row += 1) {
    const now: number[] = [row];
    for (let column = 1; column <= b.length; column += 1) {
      const same = a[row - 1] === b[column - 1];
      const edits = Math.min((last[column] ?? 0) + 1, (now[column - 1] ?? 0) + 1, (last[column - 1] ?? 0) + (same ? 0 : 1));
      const swapped = row > 1 && column > 1 && a[row - 1] === b[column - 2] && a[row - 2] === b[column - 1];
      now.push(swapped ? Math.min(edits, (beforeLast[column - 2] ?? 0) + 1) : edits);
    }
    beforeLast = last;
    last = now;
  }
  return last[b.length] ?? 0;
}
