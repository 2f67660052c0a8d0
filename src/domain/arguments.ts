// How large arguments and environment of a command may be. Pure. The bounds are Linux's own, which each
// command meets in the end: 128 KiB for one text, and a quarter of the stack (8 MiB as a rule) for all.

/** One argument, or one variable with its name, in bytes: 128 KiB with the NUL that ends it. */
export const ARGUMENT_BYTES_MAX = 131_071;
/** Entries of argv. */
export const ARGUMENTS_MAX = 65_536;
/** All of it, in bytes. The rest of the kernel's 2 MiB is for what the sandbox adds. */
export const ARGUMENTS_BYTES_MAX = 2_064_384;
/** What each takes beside its text: a NUL and a pointer. */
const ENTRY_BYTES = 9;

export type Refusal = {
  /** From the fields `argv` and `env`. */
  readonly path: readonly [field: 'argv', index: number] | readonly [field: 'env', name: string];
  readonly message: string;
};

const OTHER_WAYS = 'give it by stdin or as a file';

/** Not `Intl`: it takes longer to load than all of the CLI's verb. */
export const withCommas = (count: number): string => String(count).replace(/\B(?=(?:\d{3})+$)/g, ',');

/** Why the kernel would not start a command with them, told of the entry that is to blame; null when it would. */
export function argumentsRefusal(argv: readonly string[], env: Readonly<Record<string, string>>): Refusal | null {
  let largest: Refusal['path'] = ['argv', 0];
  let largestBytes = 0;
  let all = 0;
  const entries = function* (): Generator<readonly [Refusal['path'], number]> {
    for (const [index, text] of argv.entries()) yield [['argv', index], Buffer.byteLength(text)];
    for (const [name, value] of Object.entries(env)) yield [['env', name], name.length + 1 + Buffer.byteLength(value)];
  };
  for (const [path, bytes] of entries()) {
    if (bytes > ARGUMENT_BYTES_MAX) {
      return {
        path,
        message: `has ${withCommas(bytes)} bytes; at most ${withCommas(ARGUMENT_BYTES_MAX)} are possible: ${OTHER_WAYS}`,
      };
    }
    if (bytes > largestBytes) [largest, largestBytes] = [path, bytes];
    all += bytes + ENTRY_BYTES;
  }
  if (all <= ARGUMENTS_BYTES_MAX) return null;
  const limit = withCommas(ARGUMENTS_BYTES_MAX);
  return {
    path: largest,
    message: `is the largest of arguments and variables, which take ${withCommas(all)} bytes together; at most ${limit} are possible: ${OTHER_WAYS}`,
  };
}
