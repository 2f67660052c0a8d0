// What a command may be given, told in the words of whoever typed it, before anything is asked.
import { ARGUMENTS_MAX, argumentsRefusal, withCommas } from '../domain/arguments.ts';
import { usage } from './args.ts';

/** @throws HutchError `invalid_argument`. */
export function checkFits(command: readonly string[], variables: Readonly<Record<string, string>>): void {
  if (command.length > ARGUMENTS_MAX)
    throw usage(
      `CMD has ${withCommas(command.length - 1)} arguments; at most ${withCommas(ARGUMENTS_MAX - 1)} are possible`,
      'give them in several commands, as xargs does, or in a file',
    );
  const refusal = argumentsRefusal(command, variables);
  if (refusal === null) return;
  const [field, which] = refusal.path;
  const what = field === 'env' ? `the variable ${which}` : which === 0 ? 'CMD' : `CMD argument ${which}`;
  throw usage(`${what} ${refusal.message}`, 'hutch cp copies files into a sandbox');
}
