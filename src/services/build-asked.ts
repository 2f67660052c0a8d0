// What whoever starts a build gives in words, read: values of ARGs, labels, a platform.
import type { Operation } from '../host/operation.ts';
import { isOwnPlatform, refusalOfPlatform } from '../images/build/platform.ts';

/** A query has one value as a word. */
export function several(value: string | readonly string[] | undefined): readonly string[] {
  return value === undefined ? [] : typeof value === 'string' ? [value] : value;
}

/** @throws HutchError `invalid_argument` for what is no NAME=VALUE. */
export function argsOf(op: Operation, pairs: readonly string[]): ReadonlyMap<string, string> {
  return new Map(
    pairs.map((pair) => {
      const at = pair.indexOf('=');
      if (at < 1) throw op.error('invalid_argument', `arg: ${JSON.stringify(pair.slice(0, 40))} is no NAME=VALUE`);
      return [pair.slice(0, at), pair.slice(at + 1)];
    }),
  );
}

/** One without a value is empty, as Docker has it. @throws HutchError `invalid_argument` for one without a name. */
export function labelsOf(op: Operation, pairs: readonly string[]): Readonly<Record<string, string>> {
  return Object.fromEntries(
    pairs.map((pair) => {
      const [key = '', ...value] = pair.split('=');
      if (key.trim() === '') throw op.error('invalid_argument', `label: ${JSON.stringify(pair.slice(0, 40))} is no KEY=VALUE`);
      return [key, value.join('=')];
    }),
  );
}

/** @throws HutchError `invalid_argument` for another than this machine's. */
export function requirePlatform(op: Operation, platform: string | undefined): void {
  if (platform === undefined || isOwnPlatform(platform)) return;
  const { message, hint } = refusalOfPlatform(platform);
  throw op.error('invalid_argument', `platform: ${message}`, { hint });
}
