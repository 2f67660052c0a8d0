// What fits into one call to a sandbox's agent, told in the words of whoever typed it, before anything is asked.
import { usage } from './args.ts';

/** A call has 64 KiB in all; the rest is for what Hutch adds to it. */
export const CALL_BYTES_MAX = 61_440;
export const ARGUMENTS_MAX = 4_096;

/** Not `Intl`: it takes longer to load than all of this verb. */
const withCommas = (count: number): string => String(count).replace(/\B(?=(?:\d{3})+$)/g, ',');
const bytesOf = (text: string): number => Buffer.byteLength(text) + 3; // with what says its length

/** @throws HutchError `invalid_argument`. */
export function checkFits(command: readonly string[], variables: Readonly<Record<string, string>>): void {
  if (command.length > ARGUMENTS_MAX)
    throw usage(
      `CMD has ${withCommas(command.length - 1)} arguments; at most ${withCommas(ARGUMENTS_MAX - 1)} are possible`,
      'give them in several commands, as xargs does, or in a file',
    );
  const all = Object.entries(variables);
  const bytes = [...command, ...all.flat()].reduce((sum, text) => sum + bytesOf(text), 0);
  if (bytes <= CALL_BYTES_MAX) return;
  const named = [
    ...command.map((text, at) => ({ what: at === 0 ? 'CMD' : `CMD argument ${at}`, bytes: bytesOf(text) })),
    ...all.map(([name, value]) => ({ what: `the variable ${name}`, bytes: bytesOf(value) })),
  ];
  const largest = named.reduce((most, one) => (one.bytes > most.bytes ? one : most));
  throw usage(
    `CMD and its variables have ${withCommas(bytes)} bytes; at most ${withCommas(CALL_BYTES_MAX)} are possible (the largest is ${largest.what}, with ${withCommas(largest.bytes)})`,
    'what is larger goes by stdin, or as a file with hutch cp',
  );
}
