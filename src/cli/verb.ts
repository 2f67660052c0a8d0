// What a verb of the CLI is: an entry of the table in verbs.ts. Help, completion and docs/cli.md are
// made from it, and the command line is read by it.
import type { Args } from './args.ts';
import type { Context } from './context.ts';

export type Flag = {
  readonly name: string;
  readonly short?: string;
  /** How its value is called in help; a flag without one is a switch. */
  readonly value?: string;
  readonly choices?: readonly string[];
  /** What the shell offers for its value, where neither `choices` nor a FILE says it. */
  readonly completes?: 'sandbox' | 'snapshot' | 'template' | 'image' | readonly string[];
  readonly repeats?: boolean;
  readonly about: string;
};

/** What of the daemon's, or of both file systems, a word may name. */
export type Kind = 'sandbox' | 'snapshot' | 'template' | 'image' | 'operation' | 'key' | 'path' | 'nothing';

/** What stands behind the flags. */
export type Positional = {
  readonly name: string;
  readonly takes: 'none' | 'one' | 'optional' | 'several' | 'any';
  readonly completes?: Kind | readonly string[];
};

export type Example = { readonly line: string; readonly about: string };

export type Group = 'Run' | 'Look' | 'Change' | 'Reach into' | 'Trace' | 'Machine';

/** Runs the verb; the result is the exit code. */
export type Run = (context: Context, args: Args) => Promise<number>;

export type Leaf = {
  readonly name: string;
  /** A word of its own that means it, beside its place in a group. */
  readonly also?: string;
  readonly summary: string;
  readonly examples: readonly Example[];
  readonly flags: readonly Flag[];
  /** Flags of other tools that people type here: what is done in their place. */
  readonly foreign?: Readonly<Record<string, string>>;
  readonly positionals: readonly Positional[];
  /** Everything from here on is a command for the sandbox. */
  readonly command?: 'required' | 'optional';
  /** It makes what has a name, and takes that by --name: a lone word that is not behind `--` is not taken for the command. */
  readonly loneWord?: 'name';
  /** Failures are 125, so that they are not taken for the command's own code. */
  readonly passesExitCode?: boolean;
  /** What stands below the flags in help. */
  readonly notes?: string;
  readonly load: () => Promise<Run>;
};

export type Branch = {
  readonly name: string;
  readonly summary: string;
  readonly subverbs: readonly Leaf[];
  /** The subverb that is meant when none is named. */
  readonly fallback?: string;
  /** Words that are no subverb are the fallback's own. */
  readonly fallbackTakes?: 'words';
};

export type Verb = (Leaf | Branch) & {
  readonly group: Group;
  /** The group whose help lists it, in place of the overview. It is typed with or without that group's name. */
  readonly under?: string;
};

export function isBranch(verb: Verb): verb is Verb & Branch {
  return 'subverbs' in verb;
}

/** What every verb takes. */
export const COMMON_FLAGS: readonly Flag[] = [
  { name: 'json', about: 'JSON in the API’s schema on stdout, errors too' },
  { name: 'help', short: 'h', about: 'Show this' },
];
