// Examples in the documentation that tests type in: fenced blocks marked `console`. A line that
// begins with "$ " is a command, what follows is its output. In the output "…" stands for anything
// within a line, and a line that is only "…" for any number of lines.

export type Example = { readonly command: string; readonly output: readonly string[] };

/** The blocks of one page, each a list of commands that run in order in one directory. */
export function examples(markdown: string): Example[][] {
  return [...markdown.matchAll(/^```console\n([\s\S]*?)^```$/gm)].map((block) => {
    const found: { command: string; output: string[] }[] = [];
    for (const line of (block[1] ?? '').split('\n').slice(0, -1)) {
      if (line.startsWith('$ ')) found.push({ command: line.slice(2), output: [] });
      else if (line.startsWith('> ') && found.at(-1)?.output.length === 0)
        (found.at(-1) as { command: string }).command += `\n${line.slice(2)}`;
      else found.at(-1)?.output.push(line);
    }
    return found;
  });
}

/** Whether real output is what the page shows. Runs of spaces count as one: columns have any width. */
export function matches(expected: readonly string[], actual: string): boolean {
  const pattern = expected
    .map((line) => (line.trim() === '…' ? '(?:.*\n)*?' : `${line.trim().split(/\s+/).map(wildcards).join('\\s+')}[ \\t]*\n`))
    .join('');
  const trimmed = actual.replace(/\n*$/, '\n').replace(/^[ \t]+/gm, '');
  return new RegExp(`^${pattern}$`).test(expected.length === 0 ? actual.trim() : trimmed);
}

function wildcards(word: string): string {
  return word
    .split('…')
    .map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'))
    .join('.*');
}
