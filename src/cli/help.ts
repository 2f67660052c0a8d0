// Help, from the table: what a verb is for, an example, and only then the flags; with --json the same as one document.
import { json } from './output.ts';
import { type Branch, COMMON_FLAGS, type Flag, type Group, isBranch, type Leaf, type Verb } from './verb.ts';
import { LISTED, listedUnder, VERBS } from './verbs.ts';

const GROUPS: readonly Group[] = ['Run', 'Look', 'Change', 'Reach into', 'Trace', 'Machine'];

export function overview(): string {
  const width = Math.max(...LISTED.map(({ name }) => name.length));
  const groups = GROUPS.map((group) => {
    const lines = LISTED.filter((verb) => verb.group === group).map(({ name, summary }) => `  ${name.padEnd(width)}  ${summary}`);
    return [group, ...lines, ...alsoLines(group, width)].join('\n');
  });
  return [
    'Hutch gives you sandboxes: computers of their own, in a fraction of a second.',
    '',
    "  hutch run --rm -- python3 -c 'print(2**100)'",
    '  hutch demo',
    '',
    groups.join('\n\n'),
    '',
    'hutch VERB --help tells more. A sandbox is named by its id, its name, or a unique beginning of either.',
    '',
  ].join('\n');
}

/** Columns of a terminal that nobody has made wider. */
const COLUMNS = 80;

/** The words that mean something in a group of verbs: enough to know that they are there. */
function alsoLines(group: Group, width: number): readonly string[] {
  const lines: string[] = [];
  for (const word of alsoWords(group)) {
    const longer = `${lines.at(-1) ?? ''}, ${word}`;
    if (lines.length > 0 && width + 4 + longer.length < COLUMNS) lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  return lines.map((line, index) => `  ${(index === 0 ? 'also' : '').padEnd(width)}  ${line}${index < lines.length - 1 ? ',' : ''}`);
}

/** What may be typed first, belongs to that group of the overview, and has no line of its own there. */
function alsoWords(group: Group): readonly string[] {
  const within = VERBS.filter((verb) => verb.group === group);
  const listed = within.flatMap(({ name, under }) => (under === undefined ? [] : [name]));
  return [...listed, ...within.flatMap((verb) => (isBranch(verb) ? verb.subverbs.flatMap(({ also }) => also ?? []) : []))].sort();
}

export function usageLine(path: string, leaf: Leaf): string {
  const positionals = leaf.positionals.map(({ name, takes }) => {
    if (takes === 'optional') return `[${name}]`;
    if (takes === 'any') return `[${name}…]`;
    return takes === 'several' && !name.includes('…') ? `${name}…` : name;
  });
  const command = leaf.command === undefined ? [] : leaf.command === 'required' ? ['[--] CMD [ARG…]'] : ['[-- CMD [ARG…]]'];
  return ['hutch', leaf.also ?? path, ...(leaf.flags.length > 0 ? ['[FLAGS]'] : []), ...positionals, ...command].join(' ');
}

export function leafHelp(path: string, leaf: Leaf): string {
  const examples = leaf.examples.map(({ line, about }) => `  ${line}${about === '' ? '' : `\n      ${about}`}`);
  const sections = [leaf.summary, '', ...examples, '', `Usage: ${usageLine(path, leaf)}`, ''];
  if (leaf.notes !== undefined) sections.push(leaf.notes, '');
  sections.push('Flags', ...flagLines([...leaf.flags, ...COMMON_FLAGS]), '');
  return sections.join('\n');
}

export function branchHelp(branch: Branch): string {
  const listed = listedUnder(branch.name);
  const width = Math.max(...[...branch.subverbs, ...listed].map(({ name }) => name.length));
  const lines = branch.subverbs.map(
    ({ name, also, summary }) => `  ${name.padEnd(width)}  ${summary}${also === undefined ? '' : ` (also: hutch ${also})`}`,
  );
  const groups = listed.map(({ name, summary }) => `  ${name.padEnd(width)}  ${summary} (also: hutch ${name})`);
  const leaves = [...branch.subverbs, ...listed.flatMap((verb) => (isBranch(verb) ? verb.subverbs.slice(0, 1) : [verb]))];
  const examples = leaves.flatMap((leaf) => leaf.examples.slice(0, 1)).map(({ line }) => `  ${line}`);
  return [
    branch.summary,
    '',
    ...examples,
    '',
    `Usage: hutch ${branch.name} VERB`,
    '',
    ...lines,
    ...groups,
    '',
    `hutch ${branch.name} VERB --help tells more.`,
    '',
  ].join('\n');
}

/** What `overview` tells. */
export function overviewJson(): string {
  const verbs = LISTED.map(({ name, group, summary }) => ({ name, group, summary }));
  return json({ verbs, also: GROUPS.flatMap((group) => alsoWords(group).map((name) => ({ name, group }))) });
}

/** What `leafHelp` tells. */
export function leafJson(path: string, leaf: Leaf): string {
  const { summary, notes = null, examples } = leaf;
  const flags = [...leaf.flags, ...COMMON_FLAGS].map(({ name, short = null, value = null, choices = null, repeats = false, about }) => ({
    name,
    short,
    value,
    choices,
    repeats,
    about,
  }));
  return json({ name: leaf.also ?? path, summary, usage: usageLine(path, leaf), notes, flags, examples });
}

/** What `branchHelp` tells. */
export function branchJson({ name, summary, subverbs }: Branch): string {
  const verbs = [...subverbs, ...listedUnder(name)].map((verb: Leaf | Verb) => ({ name: verb.name, summary: verb.summary }));
  return json({ name, summary, verbs });
}

export function flagText({ name, short, value }: Flag): string {
  return `${short === undefined ? '' : `-${short}, `}--${name}${value === undefined ? '' : ` ${value}`}`;
}

function flagLines(flags: readonly Flag[]): string[] {
  const width = Math.max(...flags.map((flag) => indented(flag).length));
  return flags.map((flag) => `  ${indented(flag).padEnd(width)}  ${flag.about}`);
}

function indented(flag: Flag): string {
  return `${flag.short === undefined ? '    ' : ''}${flagText(flag)}`;
}

/** Every path with its leaf: `ops cancel`. */
export function allLeaves(): readonly { readonly path: string; readonly leaf: Leaf }[] {
  return VERBS.flatMap((verb) =>
    isBranch(verb) ? verb.subverbs.map((leaf) => ({ path: `${verb.name} ${leaf.name}`, leaf })) : [{ path: verb.name, leaf: verb }],
  );
}
