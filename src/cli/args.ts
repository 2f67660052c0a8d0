// Reads a command line by a verb's entry in the table. Pure. Flags may stand anywhere before the
// command; what is unknown is refused with the word that was probably meant.
import { parseArgs } from 'node:util';
import { HutchError } from '../domain/errors.ts';
import { nearest } from '../domain/nearest.ts';
import { COMMON_FLAGS, type Flag, type Leaf } from './verb.ts';

export class Args {
  readonly positionals: readonly string[];
  /** What is to be run in the sandbox. */
  readonly command: readonly string[];
  /** A flag of ours in a command that no `--` precedes: it is the command's, and may not have been meant for it. */
  readonly swallowed: string | null;
  /** Whether a `--` precedes the command, so that nothing else can be meant by it. */
  readonly isPlainly: boolean;
  readonly #known: ReadonlySet<string>;
  readonly #values: ReadonlyMap<string, readonly string[]>;

  constructor(
    known: ReadonlySet<string>,
    values: ReadonlyMap<string, readonly string[]>,
    positionals: readonly string[],
    command: readonly string[],
    { swallowed = null, isPlainly = false }: { readonly swallowed?: string | null; readonly isPlainly?: boolean } = {},
  ) {
    this.#known = known;
    this.#values = values;
    this.positionals = positionals;
    this.command = command;
    this.swallowed = swallowed;
    this.isPlainly = isPlainly;
  }

  /** Whether a switch is on. */
  has(name: string): boolean {
    return this.#of(name).at(-1) !== undefined && this.#of(name).at(-1) !== 'false';
  }

  /** The last value, as it was typed. */
  value(name: string): string | undefined {
    return this.#of(name).at(-1);
  }

  values(name: string): readonly string[] {
    return this.#of(name);
  }

  /** The positional that the verb's entry says is there. */
  first(): string {
    const [first] = this.positionals;
    if (first === undefined) throw new Error('the verb’s entry promises a positional');
    return first;
  }

  #of(name: string): readonly string[] {
    if (!this.#known.has(name)) throw new Error(`the verb’s entry has no flag --${name}`);
    return this.#values.get(name) ?? [];
  }
}

/** @throws HutchError `invalid_argument` that names what is wrong. */
export function readArgs(place: string, leaf: Leaf, argv: readonly string[]): Args {
  // The shorter of two names is the one that people type.
  const path = leaf.also ?? place;
  const flags = [...leaf.flags, ...COMMON_FLAGS];
  const { tokens, end } = tokenize(flags, argv, leaf);
  const values = new Map<string, string[]>();
  const positionals: string[] = [];
  for (const token of tokens) {
    if (token.kind === 'positional') positionals.push(token.value);
    if (token.kind !== 'option') continue;
    const flag = flags.find(({ name }) => name === token.name);
    if (flag === undefined) throw unknownFlag(path, token.rawName, flags, leaf.foreign ?? {});
    const value = checkedValue(flag, token);
    values.set(flag.name, flag.repeats ? [...(values.get(flag.name) ?? []), value] : [value]);
  }
  const known = new Set(flags.map(({ name }) => name));
  if (values.has('help')) return new Args(known, values, positionals, []);
  const command = argv.slice(end);
  const isOwn = (typed: string): boolean =>
    flags.some(
      ({ name, short }) => typed === `--${name}` || typed.startsWith(`--${name}=`) || (short !== undefined && typed === `-${short}`),
    );
  const isBare = argv[end - 1] !== '--';
  if (leaf.loneWord === 'name' && isBare) checkNoName(path, isOwn, argv.slice(0, end), command);
  checkCounts(path, leaf, positionals, command);
  const swallowed = isBare ? (command.slice(1).find(isOwn) ?? null) : null;
  return new Args(known, values, positionals, command, { swallowed, isPlainly: !isBare });
}

type Tokens = ReturnType<typeof tokensOf>;

/** Tokens up to where the command begins, and where that is. */
function tokenize(flags: readonly Flag[], argv: readonly string[], leaf: Leaf): { tokens: Tokens; end: number } {
  const tokens = tokensOf(flags, argv);
  if (leaf.command === undefined) return { tokens, end: argv.length };
  const before = leaf.positionals.length;
  let seen = 0;
  for (const token of tokens) {
    if (token.kind === 'option-terminator') {
      // `exec -- SBX CMD` and `exec SBX -- CMD` are both meant.
      if (seen < before) continue;
      return { tokens: tokensOf(flags, argv.slice(0, token.index)), end: token.index + 1 };
    }
    if (token.kind !== 'positional') continue;
    seen += 1;
    if (seen <= before) {
      if (seen < before) continue;
      // Docker's way: what comes after the sandbox is the command, whatever it looks like.
      const next = token.index + 1;
      return { tokens: tokensOf(flags, argv.slice(0, next)), end: argv[next] === '--' ? next + 1 : next };
    }
    return { tokens: tokensOf(flags, argv.slice(0, token.index)), end: token.index };
  }
  return { tokens, end: argv.length };
}

function tokensOf(flags: readonly Flag[], argv: readonly string[]) {
  const options = Object.fromEntries(
    flags.map(({ name, short, value }) => [
      name,
      { type: value === undefined ? ('boolean' as const) : ('string' as const), multiple: true, ...(short === undefined ? {} : { short }) },
    ]),
  );
  return parseArgs({ args: [...argv], options, strict: false, allowPositionals: true, tokens: true }).tokens;
}

function checkedValue(flag: Flag, token: { readonly rawName: string; readonly value: string | undefined }): string {
  if (flag.value === undefined) {
    if (token.value === undefined || token.value === 'true' || token.value === 'false') return token.value ?? 'true';
    throw usage(`${token.rawName} takes no value`);
  }
  if (token.value === undefined) throw usage(`${token.rawName} needs a value: ${token.rawName} ${flag.value}`);
  if (flag.choices !== undefined && !flag.choices.includes(token.value)) {
    const meant = nearest(token.value, flag.choices);
    throw usage(
      `${token.rawName} is one of ${flag.choices.join(', ')}, not '${token.value}'`,
      meant === null ? undefined : `did you mean ${meant}?`,
    );
  }
  return token.value;
}

function unknownFlag(path: string, rawName: string, flags: readonly Flag[], foreign: Readonly<Record<string, string>>): HutchError {
  const name = rawName.replace(/^-+/, '');
  if (Object.hasOwn(foreign, name)) return usage(`hutch ${path} has no flag ${rawName}`, foreign[name]);
  const meant = rawName.startsWith('--')
    ? nearest(
        rawName.slice(2),
        flags.map(({ name }) => name),
      )
    : null;
  const hint = meant === null ? `see: hutch ${path} --help` : `did you mean --${meant}?`;
  return usage(`hutch ${path} has no flag ${rawName}`, hint);
}

/** `create dev` and `create dev --memory 2G`: not a command `dev`, which would end at once, with nobody there to be told. */
function checkNoName(path: string, isOwn: (typed: string) => boolean, before: readonly string[], [word, ...rest]: readonly string[]): void {
  if (word === undefined || word.includes('/')) return;
  if (rest[0] !== undefined && rest[0] !== '--' && !isOwn(rest[0])) return;
  const all = [...before, ...rest].join(' ');
  const named = `hutch ${path} --name ${word}${all === '' ? '' : ` ${all}`}`;
  throw usage(
    `hutch ${path} takes no name without --name`,
    `like: ${named}; to run it: hutch ${[path, ...before, '--', word, ...rest].join(' ')}`,
  );
}

function checkCounts(path: string, leaf: Leaf, given: readonly string[], command: readonly string[]): void {
  const help = `see: hutch ${path} --help`;
  const least = leaf.positionals.filter(({ takes }) => takes === 'one' || takes === 'several').length;
  const missing = leaf.positionals.filter(({ takes }) => takes === 'one' || takes === 'several')[given.length];
  if (given.length < least && missing !== undefined) throw usage(`hutch ${path} needs ${missing.name}`, help);
  const endless = leaf.positionals.some(({ takes }) => takes === 'several' || takes === 'any');
  if (!endless && given.length > leaf.positionals.length)
    throw usage(`hutch ${path} does not take '${given[leaf.positionals.length]}'`, help);
  if (leaf.command === 'required' && command.length === 0)
    throw usage(`hutch ${path} needs a command to run`, `like: ${leaf.examples[0]?.line ?? help}`);
}

export function usage(message: string, hint?: string): HutchError {
  return new HutchError({ code: 'invalid_argument', message, ...(hint === undefined ? {} : { hint }) });
}
