// `RUN --mount=…`: what a command sees beside the files of its stage, and no layer keeps.
import type { DockerfileError } from './dockerfile-error.ts';

export type Mount = {
  readonly type: 'bind' | 'cache' | 'tmpfs' | 'secret';
  /** Null: of a secret, where they usually are. */
  readonly target: string | null;
  /** Of what kind it is by name: a cache's or a secret's; null: its target's. */
  readonly id: string | null;
  /** A stage or an image; null: the context, of a cache nothing. */
  readonly from: string | null;
  readonly source: string;
  readonly readOnly: boolean;
  readonly required: boolean;
  /** Of a secret: the variable that it is also given as. */
  readonly env: string | null;
  readonly mode: number | null;
  readonly uid: number;
  readonly gid: number;
  readonly sizeBytes: number | null;
};

const KEYS: Readonly<Record<Mount['type'], readonly string[]>> = {
  bind: ['target', 'source', 'from', 'readwrite', 'readonly'],
  cache: ['id', 'target', 'source', 'from', 'readwrite', 'readonly', 'sharing', 'mode', 'uid', 'gid'],
  tmpfs: ['target', 'size'],
  secret: ['id', 'target', 'required', 'mode', 'uid', 'gid', 'env'],
};
/** All of them are kept: a cache is one command's at a time. */
const SHARINGS = ['shared', 'private', 'locked'];
const ALIASES: Readonly<Record<string, string>> = { dst: 'target', destination: 'target', src: 'source', ro: 'readonly', rw: 'readwrite' };

export function parseMount(text: string, fail: (message: string) => DockerfileError): Mount {
  const given = new Map<string, string>();
  for (const part of fieldsOf(text.replace(/^(["'])([\s\S]*)\1$/, '$2'))) {
    const at = part.indexOf('=');
    const word = (at < 0 ? part : part.slice(0, at)).trim().toLowerCase();
    given.set(ALIASES[word] ?? word, at < 0 ? 'true' : part.slice(at + 1));
  }
  const type = given.get('type') ?? 'bind';
  given.delete('type');
  if (type === 'ssh')
    throw fail('--mount=type=ssh is not supported: hand over a key as a secret (--mount=type=secret) and name it in GIT_SSH_COMMAND');
  if (!(type === 'bind' || type === 'cache' || type === 'tmpfs' || type === 'secret')) {
    throw fail(`--mount=type=${type.slice(0, 40)} is not known: bind, cache, secret or tmpfs`);
  }
  for (const key of given.keys()) {
    if (!KEYS[type].includes(key)) throw fail(`--mount=type=${type} has no ${key.slice(0, 40)}; it has ${KEYS[type].join(', ')}`);
  }
  const target = given.get('target') ?? null;
  if (target === null && type !== 'secret') throw fail(`--mount=type=${type} needs target=/PATH`);
  const sharing = given.get('sharing') ?? 'shared';
  if (!SHARINGS.includes(sharing)) throw fail(`--mount: sharing is ${SHARINGS.join(', ')}, not ${sharing.slice(0, 40)}`);
  const id = given.get('id') ?? null;
  if (type === 'secret' && id === null && target === null) throw fail('--mount=type=secret needs id=NAME');
  return {
    type,
    target,
    id,
    from: given.get('from') ?? null,
    source: given.get('source') ?? '/',
    readOnly: isReadOnly(),
    required: truth('required'),
    env: given.get('env') ?? null,
    mode: number('mode', 8),
    uid: number('uid', 10) ?? 0,
    gid: number('gid', 10) ?? 0,
    sizeBytes: sizeOf(given.get('size')),
  };

  function isReadOnly(): boolean {
    const [writes, reads] = [given.get('readwrite'), given.get('readonly')];
    if (writes !== undefined && reads !== undefined) throw fail('--mount: readonly and readwrite exclude each other');
    if (writes !== undefined) return !truth('readwrite');
    return reads === undefined ? type === 'bind' : truth('readonly');
  }

  function number(key: string, radix: 8 | 10): number | null {
    const value = given.get(key);
    if (value === undefined) return null;
    const isOne = radix === 8 ? /^[0-7]{1,5}$/ : /^\d{1,9}$/;
    if (!isOne.test(value)) {
      const like = radix === 8 ? 'an octal number like 0750' : 'a number';
      throw fail(`--mount: ${key} is ${like}, not ${value.slice(0, 40)}`);
    }
    return Number.parseInt(value, radix);
  }

  function truth(key: string): boolean {
    const value = given.get(key);
    if (value === undefined) return false;
    if (!/^(true|t|1|false|f|0)$/i.test(value)) throw fail(`--mount: ${key} is true or false, not ${value.slice(0, 40)}`);
    return /^(true|t|1)$/i.test(value);
  }

  function sizeOf(value: string | undefined): number | null {
    if (value === undefined) return null;
    const [, count = '', unit = ''] = /^(\d{1,12})([kmg]?)b?$/i.exec(value) ?? [];
    if (count === '') throw fail(`--mount: size is like 64m, not ${value.slice(0, 40)}`);
    return Number(count) * { '': 1, k: 1024, m: 1024 ** 2, g: 1024 ** 3 }[unit.toLowerCase() as '' | 'k' | 'm' | 'g'];
  }
}

/** By commas outside of quotes, as in CSV. */
function fieldsOf(text: string): readonly string[] {
  const fields: string[] = [];
  for (const [, quoted, plain] of text.matchAll(/(?:^|,)(?:"((?:[^"]|"")*)"|([^,]*))/g))
    fields.push(quoted?.replaceAll('""', '"') ?? plain ?? '');
  return fields.filter((field) => field !== '');
}
