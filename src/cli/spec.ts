// From the flags of `run` and `create` to the API's request. What is wrong names the flag.
import { readFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { resolve } from 'node:path';
import { parseDuration } from '../domain/duration.ts';
import { type FileSync, parseFileSync } from '../domain/file-sync.ts';
import { parseMount } from '../domain/mount.ts';
import { parsePublish } from '../domain/published-port.ts';
import {
  BACKENDS_HERE,
  IDLE_ACTIONS,
  type IdleAction,
  NETWORK_MODES,
  type NetworkMode,
  RESTART_POLICIES,
  type RestartPolicy,
} from '../domain/sandbox.ts';
import { bytesToMiB, MIB, type ParsedText, parseSize } from '../domain/size.ts';
import type { Input } from '../services/verbs.ts';
import { type Args, usage } from './args.ts';
import type { Context } from './context.ts';
import { checkFits } from './limits.ts';
import { ownVariable, textOf } from './text.ts';

type CreateInput = Input<'sandbox.create'>;

/** The API's bounds, so that a value beyond them is told by its flag. */
const MEMORY_MIB = { min: 128n, max: 262_144n };
const DISK_MIB = { min: 256n, max: 131_072n };
const CPUS_MAX = 64;
const PIDS = { min: 16, max: 1_000_000 };
/** What a variable says without asking for anything. */
const UNSAID: Readonly<Record<string, string>> = { timeout: 'none', backend: 'auto' };
const YEAR_MS = 31_536_000_000;
const ENV_FILE_BYTES_MAX = 8 * 1024 * 1024;

/** What `create` and `run` share; the main process is the verb's own. */
export async function createSpec(context: Context, args: Args): Promise<CreateInput> {
  const [image, cpus, memory, disk, timeout, backend] = (['image', 'cpus', 'memory', 'disk', 'timeout', 'backend'] as const).map((flag) =>
    wanted(context, args, flag),
  );
  const network = networkOf(context, args);
  if (args.has('rm') && (args.value('restart') ?? 'no') !== 'no') throw usage('--rm and --restart exclude each other');
  const env = await environment(context, args);
  const secrets = await secretsOf(args);
  checkFits(args.command, {});
  checkFits([], { ...env, ...secrets });
  const labels = labelsOf(args.values('label'));
  const mounts = args.values('volume').map(mountOf);
  const devices = [...args.values('device')];
  const fileSync = args.values('sync').map(fileSyncOf);
  const publish = args.values('publish').flatMap((text) => parsed(parsePublish(text)));
  return {
    ...plain(args, 'name', 'workdir', 'user', 'from', 'template'),
    ...(args.has('force') ? { force: true } : {}),
    ...(image === undefined ? {} : { image: image.text }),
    ...plain(args, 'kernel'),
    ...(backend === undefined ? {} : { backend: oneOf(backend, BACKENDS_HERE) }),
    ...(cpus === undefined ? {} : { cpus: wholeNumber('cpus', cpus.text, 1, CPUS_MAX, cpus.what) }),
    ...(memory === undefined ? {} : { memoryMiB: sizeMiB('memory', memory.text, MEMORY_MIB, memory.what) }),
    ...(disk === undefined ? {} : { diskMiB: sizeMiB('disk', disk.text, DISK_MIB, disk.what) }),
    ...processes(args),
    ...(timeout === undefined ? {} : { timeoutMs: durationMs('timeout', timeout.text, { minMs: 1_000, maxMs: YEAR_MS }, timeout.what) }),
    ...(Object.keys(env).length === 0 ? {} : { env }),
    ...(Object.keys(secrets).length === 0 ? {} : { secrets }),
    ...(Object.keys(labels).length === 0 ? {} : { labels }),
    ...(publish.length === 0 ? {} : { publish }),
    ...(fileSync.length === 0 ? {} : { fileSync }),
    ...(mounts.length === 0 ? {} : { mounts }),
    ...(devices.length === 0 ? {} : { devices }),
    ...(network === undefined ? {} : { network }),
    ...(args.has('rm') ? { autoRemove: true } : {}),
    ...policies(args),
  };
}

/** Three flags say one thing. */
function networkOf(context: Context, args: Args): NetworkMode | undefined {
  const said = [...(args.value('net') === undefined ? [] : ['net']), ...['no-net', 'allow-lan'].filter((flag) => args.has(flag))];
  if (said.length > 1) throw usage(`--${said[0]} and --${said[1]} exclude each other`);
  if (args.has('no-net')) return 'none';
  if (args.has('allow-lan')) return 'allow-lan';
  const net = args.value('net');
  const mode = net === undefined ? ofVariable(context, args, 'network') : { text: net, what: '--net' };
  return mode === undefined ? undefined : oneOf(mode, NETWORK_MODES);
}

/** A path begins with a dot, a slash or a tilde, and is taken from where we stand; anything else is the name of a volume. */
function mountOf(text: string) {
  const mount = parsed(parseMount(text));
  const { source } = mount;
  if (!/^(?:\.{1,2}$|\.{0,2}\/|~$|~\/)/.test(source)) {
    if (/^[a-z0-9][a-z0-9-]*$/.test(source)) return mount;
    throw usage(`--volume: '${source}' is no name of a volume`, 'a path begins with /, ./ or ../, like ./data:/data');
  }
  return { ...mount, source: resolve(source.replace(/^~(?=$|\/)/, homedir())) };
}

/** A path of ours may be relative; the daemon looks at it. */
function fileSyncOf(text: string): FileSync {
  const at = text.indexOf(':');
  const host = at < 0 ? text : text.slice(0, at);
  const whole = resolve(host.replace(/^~(?=$|\/)/, homedir()));
  return parsed(parseFileSync(host === '' ? text : `${whole}${text.slice(host.length)}`));
}

/** What `set` changes; null is "as if it had not been asked for". */
export function changes(args: Args): Omit<Input<'sandbox.set'>, 'ref'> {
  if (args.has('undo') && args.has('no-undo')) throw usage('--undo and --no-undo exclude each other');
  const [cpus, memory, disk, net, timeout] = (['cpus', 'memory', 'disk', 'net', 'timeout'] as const).map((flag) => args.value(flag));
  const removed = args.values('unlabel').map((key) => [key, null] as const);
  const labels = { ...Object.fromEntries(removed), ...labelsOf(args.values('label')) };
  return {
    ...(cpus === undefined ? {} : { cpus: wholeNumber('cpus', cpus, 1, CPUS_MAX) }),
    ...(memory === undefined ? {} : { memoryMiB: sizeMiB('memory', memory, MEMORY_MIB) }),
    ...(disk === undefined ? {} : { diskMiB: sizeMiB('disk', disk, DISK_MIB) }),
    ...processes(args),
    ...(net === undefined ? {} : { network: oneOf({ text: net, what: '--net' }, NETWORK_MODES) }),
    ...(timeout === undefined
      ? {}
      : { timeoutMs: timeout === UNSAID['timeout'] ? null : durationMs('timeout', timeout, { minMs: 1_000, maxMs: YEAR_MS }) }),
    ...(Object.keys(labels).length === 0 ? {} : { labels }),
    ...policies(args),
    ...(args.value('idle') === 'default' ? { idleMs: null } : {}),
    ...(args.has('no-undo') ? { undo: 0 } : {}),
  };
}

function processes(args: Args): { pids?: number } {
  const text = args.value('pids');
  return text === undefined ? {} : { pids: wholeNumber('pids', text, PIDS.min, PIDS.max) };
}

/** Snapshots that are kept where undo is asked for without a number. */
const UNDO = 10;

function policies(args: Args): { restart?: RestartPolicy; idleMs?: number; idleAction?: IdleAction; undo?: number } {
  const [restart, idle, action] = (['restart', 'idle', 'idle-action'] as const).map((flag) => args.value(flag));
  return {
    ...(restart === undefined ? {} : { restart: oneOf({ text: restart, what: '--restart' }, RESTART_POLICIES) }),
    ...(idle === undefined || idle === 'default'
      ? {}
      : { idleMs: idle === '0' ? 0 : durationMs('idle', idle, { minMs: 1_000, maxMs: YEAR_MS }) }),
    ...(action === undefined ? {} : { idleAction: oneOf({ text: action, what: '--idle-action' }, IDLE_ACTIONS) }),
    ...(args.has('undo') ? { undo: UNDO } : {}),
  };
}

/** The image that is asked for by name; undefined where the daemon's default is meant. */
export function imageAsked(context: Pick<Context, 'env'>, args: Args): string | undefined {
  return wanted(context, args, 'image')?.text;
}

type Wanted = { readonly text: string; readonly what: string };

/** The flag, else our own variable of the configuration: the daemon has read its own when it started, which may be long ago. */
function wanted(context: Pick<Context, 'env'>, args: Args, flag: string): Wanted | undefined {
  const given = args.value(flag);
  return given === undefined ? ofVariable(context, args, flag) : { text: given, what: `--${flag}` };
}

function ofVariable(context: Pick<Context, 'env'>, args: Args, flag: string): Wanted | undefined {
  // A snapshot or a template says all of it itself; what is typed beside it is refused there.
  if (args.value('from') !== undefined || args.value('template') !== undefined) return undefined;
  const variable = `HUTCH_SANDBOX_${flag.toUpperCase()}`;
  const text = context.env[variable];
  return text === undefined || text === '' || text === UNSAID[flag] ? undefined : { text, what: variable };
}

function oneOf<const W extends string>({ text, what }: Wanted, words: readonly W[]): W {
  const found = words.find((word) => word === text);
  if (found === undefined) throw usage(`${what} is one of ${words.join(', ')}, not '${text}'`);
  return found;
}

/** `--env` and `--env-file`; the later one wins, and a flag wins over a file. */
export async function environment(context: Pick<Context, 'env'>, args: Args): Promise<Record<string, string>> {
  const env: Record<string, string> = {};
  for (const path of args.values('env-file')) {
    const text = await readText('env-file', path);
    for (const [at, raw] of text.split('\n').entries()) {
      const line = raw.replace(/\r$/, '');
      if (line.trim() === '' || line.trimStart().startsWith('#')) continue;
      set(env, line, context, `--env-file ${path}:${at + 1}`);
    }
  }
  for (const text of args.values('env')) set(env, text, context, '--env');
  return env;
}

function set(env: Record<string, string>, text: string, context: Pick<Context, 'env'>, where: string): void {
  const at = text.indexOf('=');
  const name = at < 0 ? text.trim() : text.slice(0, at).trimStart();
  if (!/^[A-Za-z_][A-Za-z0-9_]*$/.test(name)) throw usage(`${where}: '${name}' is no name of a variable`, 'write it like NAME=value');
  const value = at < 0 ? ownVariable(context.env, name, where) : text.slice(at + 1);
  if (value !== undefined) env[name] = value;
}

async function secretsOf(args: Args): Promise<Record<string, string>> {
  const secrets: Record<string, string> = {};
  for (const [name, path] of Object.entries(pairs('secret-file', args.values('secret-file')))) {
    // Editors and `echo` end a file with a newline that is not part of the secret.
    secrets[name] = (await readText('secret-file', path)).replace(/\r?\n$/, '');
  }
  return secrets;
}

async function readText(flag: string, path: string): Promise<string> {
  try {
    const content = await readFile(path);
    if (content.byteLength > ENV_FILE_BYTES_MAX) throw usage(`--${flag}: ${path} is larger than ${ENV_FILE_BYTES_MAX} bytes`);
    return textOf(content, `--${flag}: ${path}`);
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (code === 'ENOENT') throw usage(`--${flag}: there is no file ${path}`);
    if (code === 'EACCES' || code === 'EISDIR') throw usage(`--${flag}: ${path} cannot be read`);
    throw cause;
  }
}

/** A label alone has an empty value, as with `docker`. */
function labelsOf(texts: readonly string[]): Record<string, string> {
  return pairs(
    'label',
    texts.map((text) => (text.includes('=') ? text : `${text}=`)),
  );
}

function pairs(flag: string, texts: readonly string[]): Record<string, string> {
  const found: Record<string, string> = {};
  for (const text of texts) {
    const at = text.indexOf('=');
    if (at <= 0) throw usage(`--${flag}: '${text}' is no pair`, `write it like --${flag} name=value`);
    found[text.slice(0, at)] = text.slice(at + 1);
  }
  return found;
}

export function sizeMiB(flag: string, text: string, bounds: { readonly min: bigint; readonly max: bigint }, what = `--${flag}`): number {
  return bytesToMiB(parsed(parseSize(text, { what, min: bounds.min * MIB, max: bounds.max * MIB })));
}

export function durationMs(
  flag: string,
  text: string,
  bounds: { readonly minMs: number; readonly maxMs: number },
  what = `--${flag}`,
): number {
  return parsed(parseDuration(text, { what, ...bounds }));
}

export function wholeNumber(flag: string, text: string, min: number, max: number, what = `--${flag}`): number {
  if (!/^-?\d{1,15}$/.test(text)) throw usage(`${what}: '${text}' is no whole number`);
  const value = Number(text);
  if (value < min || value > max) throw usage(`${what} must be from ${min} to ${max}, not ${text}`);
  return value;
}

function parsed<T>(result: ParsedText<T>): T {
  if (result.ok) return result.value;
  throw usage(result.message, result.hint);
}

function plain<K extends string>(args: Args, ...names: readonly K[]): { [N in K]?: string } {
  const found: { [N in K]?: string } = {};
  for (const name of names) {
    const value = args.value(name);
    if (value !== undefined) found[name] = value;
  }
  return found;
}
