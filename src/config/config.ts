// The configuration: defaults, then the file, then the environment, then flags; the later one wins.
// Every value knows where it came from, and whatever is unknown or cannot be read is an error that
// names the place: a misspelt limit must not be ignored. Pure: files are read through what is passed in.
import { HutchError } from '../domain/errors.ts';
import { nearest } from '../domain/nearest.ts';
import type { Environment } from './places.ts';
import { type AnyLeaf, type Config, environmentName, type KeyPath, LEAVES, projectLeaf } from './schema.ts';
import { readToml } from './toml.ts';
import { refuseUnknownVariables } from './variables.ts';

export type Flag = {
  /** As it was typed, for complaints: `--memory`. */
  readonly flag: string;
  readonly key: KeyPath;
  readonly value: string;
};

export type ConfigSources = {
  /** The first that exists is read. */
  readonly paths: readonly string[];
  /** Null when there is no such file. Anything else that fails, fails. */
  readonly readFile: (path: string) => Promise<string | null>;
  readonly env: Environment;
  readonly flags?: readonly Flag[];
};

/** One line of `config show`. */
export type ConfigValue = {
  readonly key: string;
  /** As one would write it: `512M`. */
  readonly value: string | number | boolean;
  /** `default`, `/etc/hutch/config.toml:3`, `HUTCH_SANDBOX_MEMORY` or `--memory`. */
  readonly source: string;
  readonly about: string;
};

export type LoadedConfig = { readonly config: Config; readonly values: readonly ConfigValue[]; readonly file: string | null };

type Given = { readonly path: string; readonly value: unknown; readonly where: string };

/** @throws HutchError `invalid_argument` naming file and line, variable or flag. */
export async function loadConfig({ paths, readFile, env, flags = [] }: ConfigSources): Promise<LoadedConfig> {
  const file = await firstFile(paths, readFile);
  const given = [
    ...(file === null ? [] : readToml(file.text, file.path)),
    ...fromEnvironment(env),
    ...flags.map(({ flag, key, value }): Given => ({ path: key, value, where: flag })),
  ];
  // Each one, also what a stronger one replaces: it would be wrong on the day when that is taken away.
  for (const one of given) readValue(LEAVES.get(one.path) ?? projectLeaf(one.path)?.leaf, one);
  const strongest = new Map(given.map((one) => [one.path, one]));
  const parsed = [...LEAVES].map(([path, leaf]) => {
    const one = strongest.get(path) ?? { path, value: leaf.fallback, where: 'default' };
    const value = readValue(leaf, one);
    return { path, value, shown: { key: path, value: leaf.show(value), source: one.where, about: leaf.about } };
  });
  const ofProjects = [...strongest.values()].flatMap((one) => {
    const found = projectLeaf(one.path);
    if (found === null) return [];
    const { project, key, leaf } = found;
    const value = readValue(leaf, one);
    return [{ project, key, value, shown: { key: one.path, value: leaf.show(value), source: one.where, about: leaf.about } }];
  });
  const config = { ...nested(parsed), projects: byProject(ofProjects) };
  checkTogether(config, strongest);
  return { config, values: [...parsed, ...ofProjects].map(({ shown }) => shown), file: file?.path ?? null };
}

function byProject(given: readonly { readonly project: string; readonly key: string; readonly value: unknown }[]): Config['projects'] {
  const found = new Map<string, Record<string, unknown>>();
  for (const { project, key, value } of given) found.set(project, { ...found.get(project), [key]: value });
  return found as Config['projects']; // each parsed by the leaf of its name
}

function readValue(leaf: AnyLeaf | undefined, { path, value, where }: Given): unknown {
  if (leaf === undefined) throw unknownKey(path, where);
  const result = leaf.schema.safeParse(value);
  if (!result.success) throw wrongValue(path, where, result.error.issues[0]?.message ?? 'is wrong');
  return result.data;
}

async function firstFile(paths: readonly string[], readFile: ConfigSources['readFile']): Promise<{ path: string; text: string } | null> {
  for (const path of paths) {
    const text = await readFile(path);
    if (text !== null) return { path, text };
  }
  return null;
}

function fromEnvironment(env: Environment): readonly Given[] {
  refuseUnknownVariables(env);
  return [...LEAVES.keys()].flatMap((path): readonly Given[] => {
    const name = environmentName(path);
    const value = env[name];
    return value === undefined ? [] : [{ path, value, where: name }];
  });
}

/** The table's types promise this shape: each path is in it, parsed by its own leaf. */
function nested(parsed: readonly { readonly path: string; readonly value: unknown }[]): Omit<Config, 'projects'> {
  const sections: Record<string, Record<string, unknown>> = {};
  for (const { path, value } of parsed) {
    const [section = '', key = ''] = path.split('.');
    sections[section] = { ...sections[section], [key]: value };
  }
  return sections as Omit<Config, 'projects'>;
}

/** What can be wrong only of two values together. */
function checkTogether({ sandbox, limits }: Pick<Config, 'sandbox' | 'limits'>, given: ReadonlyMap<string, Given>): void {
  for (const key of ['cpus', 'memory', 'disk'] as const) {
    if (sandbox[key] <= limits[key]) continue;
    const path = given.has(`limits.${key}`) ? `limits.${key}` : `sandbox.${key}`;
    throw wrongValue(
      path,
      given.get(path)?.where ?? 'default',
      `the default of a sandbox, sandbox.${key}, must not be more than limits.${key}`,
    );
  }
}

function wrongValue(path: string, where: string, problem: string): HutchError {
  return new HutchError({
    code: 'invalid_argument',
    message: `${where}: ${path}: ${problem}`,
    hint: 'see all settings: hutch config show',
  });
}

function unknownKey(path: string, where: string): HutchError {
  if (/^projects\b/.test(path)) {
    return new HutchError({
      code: 'invalid_argument',
      message: `${where}: ${path}: there is no such setting of a project`,
      hint: 'in [projects.NAME.images] may stand allow, require_digest and signed; NAME as hutch keys create --project takes it',
    });
  }
  const known = [...LEAVES.keys()];
  const key = path.slice(path.indexOf('.') + 1);
  const meant = nearest(path, known) ?? known.find((other) => other.endsWith(`.${key}`));
  return new HutchError({
    code: 'invalid_argument',
    message: `${where}: ${path}: there is no such setting`,
    hint: meant === undefined ? 'see all settings: hutch config show' : `did you mean ${meant}?`,
  });
}
