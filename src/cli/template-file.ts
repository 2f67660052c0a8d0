// The file of a template: TOML, from which the API's recipe is made. What is wrong names the file, the line and the key.
import { dirname } from 'node:path';
import { type FileValue, readToml } from '../config/toml.ts';
import { parseDuration } from '../domain/duration.ts';
import { nearest } from '../domain/nearest.ts';
import { BACKENDS_HERE, NETWORK_MODES } from '../domain/sandbox.ts';
import { bytesToMiB, MIB, parseSize } from '../domain/size.ts';
import type { Input } from '../services/verbs.ts';
import { usage } from './args.ts';

export type Recipe = Input<'template.build'>;

const KEYS = [
  ...['name', 'image', 'kernel', 'backend', 'cpus', 'memory', 'disk', 'pids', 'network', 'user', 'workdir', 'steps', 'start', 'scrub'],
  ...['env', 'ready.command', 'ready.port', 'ready.path', 'ready.wait', 'ready.timeout'],
];
const SIZE_MIB_MAX = 262_144n;
const READY_MS = { minMs: 1, maxMs: 30 * 60_000 };

/** `given`: what flags say, which comes before the file. @throws HutchError `invalid_argument`. */
export function readTemplateFile(text: string, file: string, given: { readonly name?: string } = {}): Recipe {
  const values = new Map(readToml(text, file).map((value) => [value.path, value]));
  for (const { path, where, value } of values.values()) {
    if (KEYS.includes(path) || path.startsWith('env.')) continue;
    const near = nearest(path, KEYS);
    const isTable = typeof value === 'object' && value !== null && !Array.isArray(value);
    throw usage(
      `${where}: there is no ${isTable ? 'table' : 'key'} ${path} in a template`,
      near === null ? `there is: ${KEYS.join(', ')}` : `did you mean ${near}?`,
    );
  }
  const read = new Reader(values);
  const name = given.name ?? read.text('name');
  if (name === undefined)
    throw usage(
      `${file}: name is missing`,
      `name = "web" in it, or: hutch template build --name web ${dirname(file) === '.' ? file : '…'}`,
    );
  const ready = readyOf(read);
  const start = read.command('start');
  return {
    name,
    ...present('image', read.text('image')),
    ...present('kernel', read.text('kernel')),
    ...present('backend', read.word('backend', BACKENDS_HERE)),
    ...present('cpus', read.whole('cpus')),
    ...present('memoryMiB', read.size('memory')),
    ...present('diskMiB', read.size('disk')),
    ...present('pids', read.whole('pids')),
    ...present('network', read.word('network', NETWORK_MODES)),
    ...present('user', read.text('user')),
    ...present('workdir', read.text('workdir')),
    ...present('steps', read.texts('steps')),
    ...present('start', start),
    ...present('scrub', read.flag('scrub')),
    ...present('env', envOf(values)),
    ...present('ready', ready),
  };
}

function present<K extends string, V>(key: K, value: V | undefined): { [P in K]?: V } {
  return (value === undefined ? {} : { [key]: value }) as { [P in K]?: V };
}

function envOf(values: ReadonlyMap<string, FileValue>): Record<string, string> | undefined {
  const whole = values.get('env');
  if (whole !== undefined) throw usage(`${whole.where}: env is a table`, '[env], and below it NAME = "value"');
  const entries = [...values.values()].filter(({ path }) => path.startsWith('env.'));
  for (const { path, value, where } of entries) if (typeof value !== 'string') throw usage(`${where}: ${path} must be a text in quotes`);
  return entries.length === 0
    ? undefined
    : Object.fromEntries(entries.map(({ path, value }) => [path.slice('env.'.length), value as string]));
}

function readyOf(read: Reader): Recipe['ready'] {
  const [command, port, path, waitMs] = [
    read.command('ready.command'),
    read.whole('ready.port'),
    read.text('ready.path'),
    read.time('ready.wait'),
  ];
  const timeoutMs = read.time('ready.timeout');
  const checks = { ...present('command', command), ...present('port', port), ...present('path', path), ...present('waitMs', waitMs) };
  const count = Object.keys(checks).length;
  if (count === 0 && timeoutMs === undefined) return undefined;
  if (count !== 1) throw usage(`${read.whereOf('ready')}: one of command, port, path and wait stands in [ready]`, 'like port = 8000');
  return { ...checks, ...present('timeoutMs', timeoutMs) };
}

class Reader {
  readonly #values: ReadonlyMap<string, FileValue>;

  constructor(values: ReadonlyMap<string, FileValue>) {
    this.#values = values;
  }

  whereOf(section: string): string {
    return [...this.#values.values()].find(({ path }) => path.startsWith(`${section}.`))?.where ?? section;
  }

  text(path: string): string | undefined {
    return this.#read(path, 'a text in quotes', (value) => (typeof value === 'string' && value !== '' ? value : undefined));
  }

  texts(path: string): string[] | undefined {
    return this.#read(path, 'a list of texts, like ["make", "make install"]', (value) => (isTexts(value) ? value : undefined));
  }

  /** A text is a script of the shell. */
  command(path: string): string[] | undefined {
    return this.#read(path, 'a text, or a list of texts that is not empty', (value) => {
      if (typeof value === 'string' && value.trim() !== '') return ['sh', '-c', value];
      return isTexts(value) && value.length > 0 ? value : undefined;
    });
  }

  whole(path: string): number | undefined {
    return this.#read(path, 'a whole number above 0', (value) => {
      const number = typeof value === 'bigint' ? Number(value) : value;
      return typeof number === 'number' && Number.isSafeInteger(number) && number > 0 ? number : undefined;
    });
  }

  flag(path: string): boolean | undefined {
    return this.#read(path, 'true or false', (value) => (typeof value === 'boolean' ? value : undefined));
  }

  word<const W extends string>(path: string, words: readonly W[]): W | undefined {
    return this.#read(path, `one of ${words.join(', ')}`, (value) => words.find((word) => word === value));
  }

  size(path: string): number | undefined {
    const text = this.#read(path, 'a size in quotes, like "512M"', (value) => (typeof value === 'string' ? value : undefined));
    if (text === undefined) return undefined;
    const parsed = parseSize(text, { what: `${this.#values.get(path)?.where}: ${path}`, min: MIB, max: SIZE_MIB_MAX * MIB });
    if (!parsed.ok) throw usage(parsed.message, parsed.hint);
    return bytesToMiB(parsed.value);
  }

  time(path: string): number | undefined {
    const text = this.#read(path, 'a time in quotes, like "30s"', (value) => (typeof value === 'string' ? value : undefined));
    if (text === undefined) return undefined;
    const parsed = parseDuration(text, { what: `${this.#values.get(path)?.where}: ${path}`, ...READY_MS });
    if (!parsed.ok) throw usage(parsed.message, parsed.hint);
    return parsed.value;
  }

  #read<T>(path: string, what: string, take: (value: unknown) => T | undefined): T | undefined {
    const found = this.#values.get(path);
    if (found === undefined) return undefined;
    const taken = take(found.value);
    if (taken === undefined) throw usage(`${found.where}: ${path} must be ${what}`);
    return taken;
  }
}

function isTexts(value: unknown): value is string[] {
  return Array.isArray(value) && value.every((each) => typeof each === 'string' && each !== '');
}
