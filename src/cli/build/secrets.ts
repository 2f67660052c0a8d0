// `--secret` of `hutch build`: what each is and where it comes from, by the rules of `docker build`.
import { usage } from '../args.ts';
import { safe } from '../output.ts';
import { contentOrNull } from './context.ts';

const HOW = 'write it like --secret id=token,src=FILE or --secret id=token,env=NAME';
const KEYS: Readonly<Record<string, string>> = { id: 'id', type: 'type', src: 'src', source: 'src', env: 'env' };

/**
 * The value of each, by id. One that says neither file nor variable is the variable named like it, else the file; with `type=env`, `src`
 * names a variable. @throws HutchError for one that is not there: a build would go on without it, and fail somewhere else.
 */
export function secretsOf(env: NodeJS.ProcessEnv, given: readonly string[]): ReadonlyMap<string, Buffer> {
  return new Map(given.map((text) => secretOf(env, text)));
}

function secretOf(env: NodeJS.ProcessEnv, text: string): readonly [string, Buffer] {
  const fail = (why: string) => usage(`--secret ${safe(text.slice(0, 60))}: ${why}`, HOW);
  const fields = fieldsOf(text, fail);
  const id = fields.get('id') ?? '';
  if (!/^[A-Za-z0-9._-]{1,128}$/.test(id)) throw fail(id === '' ? 'id is missing' : 'an id has letters, digits, ".", "_" and "-"');
  const type = fields.get('type');
  if (type !== undefined && type !== 'file' && type !== 'env') throw fail(`type is file or env, not ${safe(type.slice(0, 40))}`);
  let variable = fields.get('env') ?? null;
  let file = fields.get('src') ?? null;
  if (type === 'env' && variable === null) [variable, file] = [file, null];
  if (variable === null && file === null) {
    if (type !== 'file' && env[id] !== undefined) variable = id;
    else if (type === 'env') throw usage(`--secret id=${id}: the variable ${id} is not set`, HOW);
    else file = id;
  }
  // As there, a variable comes before a file.
  if (variable !== null) {
    const value = env[variable];
    if (value === undefined) throw usage(`--secret id=${id}: the variable ${safe(variable)} is not set`);
    return [id, Buffer.from(value)];
  }
  const content = contentOrNull(file ?? id);
  if (content !== null) return [id, content];
  const isNamed = fields.has('src');
  if (isNamed) throw usage(`--secret id=${id}: ${safe(file ?? id)} cannot be read`);
  throw usage(`--secret id=${id}: there is ${type === 'file' ? 'no' : `neither a variable ${id} nor a`} file ${id} here`, HOW);
}

/** `key=value`, by commas; one with a comma in it stands in quotes, as in CSV. */
function fieldsOf(text: string, fail: (why: string) => Error): ReadonlyMap<string, string> {
  const fields = new Map<string, string>();
  for (const [, quoted, plain] of text.matchAll(/(?:^|,)(?:"((?:[^"]|"")*)"(?=,|$)|([^,]*))/g)) {
    const part = quoted?.replaceAll('""', '"') ?? plain ?? '';
    const at = part.indexOf('=');
    const key = KEYS[part.slice(0, Math.max(at, 0)).trim().toLowerCase()];
    if (at < 0 || key === undefined) throw fail(`${JSON.stringify(safe(part.slice(0, 40)))} is none of id=, type=, src=, env=`);
    fields.set(key, part.slice(at + 1));
  }
  return fields;
}
