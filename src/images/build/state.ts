// What a stage knows at a step: variables, and what its image will say of itself. Each instruction that changes no file is one
// function from state to state; the rest asks the state for its variables.

import { isStopSignal } from '../../domain/image.ts';
import type { Command, Healthcheck, Instruction } from './dockerfile.ts';
import { DockerfileError } from './dockerfile-error.ts';
import type { Escape } from './lines.ts';
import { expand, type Variables, WordError } from './words.ts';

/** As in an image's configuration. What is not known here is passed on as it came. */
export type ConfigSection = {
  readonly Env?: readonly string[] | null;
  readonly Cmd?: readonly string[] | null;
  readonly Entrypoint?: readonly string[] | null;
  readonly WorkingDir?: string | null;
  readonly User?: string | null;
  readonly StopSignal?: string | null;
  readonly ExposedPorts?: Readonly<Record<string, object>> | null;
  readonly Volumes?: Readonly<Record<string, object>> | null;
  readonly Labels?: Readonly<Record<string, string>> | null;
  readonly Shell?: readonly string[] | null;
  readonly OnBuild?: readonly string[] | null;
  readonly Healthcheck?: object | null;
};

export type StageState = {
  readonly config: ConfigSection;
  readonly author: string | null;
  /** Of `ARG`, by name; null: declared, and without a value. */
  readonly args: ReadonlyMap<string, string | null>;
  /** Whether CMD was set here: an ENTRYPOINT takes away the base image's. */
  readonly hasOwnCommand: boolean;
};

/** Known without being declared, and part of no image and no key. */
export const PROXY_ARGS = ['HTTP_PROXY', 'HTTPS_PROXY', 'FTP_PROXY', 'NO_PROXY', 'ALL_PROXY'].flatMap((name) => [name, name.toLowerCase()]);

/** Whether a value is given to the builder itself, which no ARG need name. */
export function isKnownArg(name: string): boolean {
  return PROXY_ARGS.includes(name) || name === 'SOURCE_DATE_EPOCH' || name.startsWith('BUILDKIT_');
}

const PLATFORM_ARGS: Readonly<Record<string, string>> = {
  ...{ TARGETPLATFORM: 'linux/amd64', TARGETOS: 'linux', TARGETARCH: 'amd64', TARGETVARIANT: '' },
  ...{ BUILDPLATFORM: 'linux/amd64', BUILDOS: 'linux', BUILDARCH: 'amd64', BUILDVARIANT: '' },
};
export const DEFAULT_SHELL = ['/bin/sh', '-c'];
export const DEFAULT_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

/** `given`: `--build-arg`. */
export type Globals = {
  readonly given: ReadonlyMap<string, string>;
  readonly values: ReadonlyMap<string, string | null>;
};

/** The ARGs before the first FROM. */
export function globalsOf(
  args: readonly Extract<Instruction, { readonly name: 'ARG' }>[],
  given: ReadonlyMap<string, string>,
  target: string | null,
  escapeChar: Escape,
): Globals {
  const values = new Map<string, string | null>(Object.entries({ ...PLATFORM_ARGS, TARGETSTAGE: target ?? 'default' }));
  for (const instruction of args) {
    for (const { key, value } of instruction.args) {
      values.set(
        key,
        given.get(key) ?? (value === null ? null : expandAt(instruction, value, (name) => values.get(name) ?? undefined, escapeChar)),
      );
    }
  }
  return { given, values };
}

export function newState(config: ConfigSection, author: string | null): StageState {
  const { OnBuild: _, ...rest } = config;
  const hasPath = (rest.Env ?? []).some((line) => line.startsWith('PATH='));
  const Env = hasPath ? rest.Env : [`PATH=${DEFAULT_PATH}`, ...(rest.Env ?? [])];
  return { config: { ...rest, Env: Env ?? [] }, author, args: new Map(), hasOwnCommand: false };
}

export function environmentOf({ config }: StageState): ReadonlyMap<string, string> {
  return new Map((config.Env ?? []).map((line) => [line.slice(0, line.indexOf('=')), line.slice(line.indexOf('=') + 1)]));
}

/** ENV before ARG, as Docker has it. */
export function variablesOf(state: StageState): Variables {
  const environment = environmentOf(state);
  return (name) => environment.get(name) ?? state.args.get(name) ?? undefined;
}

/** @throws DockerfileError naming the line. */
export function expandAt(instruction: Pick<Instruction, 'line' | 'name'>, word: string, variables: Variables, escapeChar: Escape): string {
  try {
    return expand(word, variables, escapeChar);
  } catch (error) {
    if (error instanceof WordError) throw new DockerfileError(instruction.line, instruction.name, error.message);
    throw error;
  }
}

/** After an instruction that changes no file; null for one that does. */
export function applied(state: StageState, instruction: Instruction, globals: Globals, escapeChar: Escape): StageState | null {
  const variables = variablesOf(state);
  const text = (word: string) => expandAt(instruction, word, variables, escapeChar);
  const withConfig = (config: Partial<ConfigSection>): StageState => ({ ...state, config: { ...state.config, ...config } });
  switch (instruction.name) {
    case 'ARG': {
      const args = new Map(state.args);
      for (const { key, value } of instruction.args) {
        const own = value === null ? (globals.values.get(key) ?? null) : expandAt(instruction, value, variables, escapeChar);
        args.set(key, globals.given.get(key) ?? own);
      }
      return { ...state, args };
    }
    case 'ENV': {
      const environment = new Map(environmentOf(state));
      for (const { key, value } of instruction.pairs) environment.set(text(key), text(value));
      return withConfig({ Env: [...environment].map(([key, value]) => `${key}=${value}`) });
    }
    case 'LABEL':
      return withConfig({
        Labels: { ...state.config.Labels, ...Object.fromEntries(instruction.pairs.map(({ key, value }) => [text(key), text(value)])) },
      });
    case 'USER':
      return withConfig({ User: text(instruction.value) });
    case 'STOPSIGNAL':
      return withConfig({ StopSignal: stopSignal(instruction, text(instruction.value)) });
    case 'EXPOSE': {
      const ports = instruction.values.flatMap((value) => text(value).split(/\s+/)).flatMap((value) => portsOf(instruction, value));
      return withConfig({ ExposedPorts: { ...state.config.ExposedPorts, ...Object.fromEntries(ports.map((port) => [port, {}])) } });
    }
    case 'VOLUME':
      return withConfig({
        Volumes: { ...state.config.Volumes, ...Object.fromEntries(instruction.values.map((value) => [text(value), {}])) },
      });
    case 'SHELL':
      return withConfig({ Shell: instruction.argv });
    case 'CMD':
      return { ...withConfig({ Cmd: argvOrNone(state, instruction.command) }), hasOwnCommand: true };
    case 'ENTRYPOINT':
      return withConfig({ Entrypoint: argvOrNone(state, instruction.command), ...(state.hasOwnCommand ? {} : { Cmd: null }) });
    case 'HEALTHCHECK':
      return withConfig({ Healthcheck: healthcheckOf(instruction) });
    case 'ONBUILD':
      return withConfig({ OnBuild: [...(state.config.OnBuild ?? []), instruction.trigger] });
    case 'MAINTAINER':
      return { ...state, author: text(instruction.value) };
    case 'FROM':
    case 'RUN':
    case 'COPY':
    case 'ADD':
    case 'WORKDIR':
      return null;
  }
}

function stopSignal(instruction: Pick<Instruction, 'line' | 'name'>, value: string): string {
  if (isStopSignal(value)) return value;
  const said = JSON.stringify(value.slice(0, 40));
  throw new DockerfileError(instruction.line, instruction.name, `${said} is no signal: write it like SIGTERM, 15 or SIGRTMIN+3`);
}

/** `80`, `80/udp`, `8000-8010`. */
function portsOf(instruction: Pick<Instruction, 'line' | 'name'>, value: string): readonly string[] {
  if (value === '') return [];
  const [, first = '', last, protocol = 'tcp'] = /^(\d{1,5})(?:-(\d{1,5}))?(?:\/(tcp|udp|sctp))?$/i.exec(value) ?? [];
  const [from, to] = [Number(first), Number(last ?? first)];
  if (first === '' || from > to || to > 65_535)
    throw new DockerfileError(
      instruction.line,
      instruction.name,
      `${JSON.stringify(value.slice(0, 40))} is no port: write it like 80 or 53/udp`,
    );
  return Array.from({ length: to - from + 1 }, (_, at) => `${from + at}/${protocol.toLowerCase()}`);
}

export function shellOf({ config }: StageState): readonly string[] {
  return config.Shell == null || config.Shell.length === 0 ? DEFAULT_SHELL : config.Shell;
}

export function argvOf(state: StageState, command: Command): readonly string[] {
  return command.form === 'exec' ? command.argv : [...shellOf(state), command.text];
}

/** `[]` takes away what the base image says. */
function argvOrNone(state: StageState, command: Command): readonly string[] | null {
  const argv = argvOf(state, command);
  return argv.length === 0 ? null : argv;
}

function healthcheckOf(check: Healthcheck): object {
  const { command, intervalNs, timeoutNs, startPeriodNs, startIntervalNs, retries } = check;
  const Test = command === null ? ['NONE'] : command.form === 'exec' ? ['CMD', ...command.argv] : ['CMD-SHELL', command.text];
  return {
    Test,
    ...(intervalNs === 0 ? {} : { Interval: intervalNs }),
    ...(timeoutNs === 0 ? {} : { Timeout: timeoutNs }),
    ...(startPeriodNs === 0 ? {} : { StartPeriod: startPeriodNs }),
    ...(startIntervalNs === 0 ? {} : { StartInterval: startIntervalNs }),
    ...(retries === 0 ? {} : { Retries: retries }),
  };
}
