// A Dockerfile as instructions: each line parsed once, with its flags; what is wrong is said with its line. Variables
// are replaced later, when their values are known (state.ts).
import { nearest } from '../../domain/nearest.ts';
import { DockerfileError } from './dockerfile-error.ts';
import { DOCKERFILE_BYTES_MAX, type Escape, type Heredoc, type LogicalLine, readLines } from './lines.ts';
import { type Mount, parseMount } from './mounts.ts';
import { splitWords } from './words.ts';

export const INSTRUCTIONS_MAX = 2_000;

/** `exec`: an argument vector. `shell`: a text for the shell of the stage. `script`: the lines of a heredoc. */
export type Command =
  | { readonly form: 'exec'; readonly argv: readonly string[] }
  | { readonly form: 'shell'; readonly text: string }
  | { readonly form: 'script'; readonly text: string };

export type Pair = { readonly key: string; readonly value: string };

export type CopyFlags = {
  readonly from: string | null;
  readonly chown: string | null;
  readonly chmod: string | null;
  readonly link: boolean;
  readonly parents: boolean;
  readonly exclude: readonly string[];
  readonly checksum: string | null;
};

export type Healthcheck = {
  /** Null: NONE. */
  readonly command: Command | null;
  readonly intervalNs: number;
  readonly timeoutNs: number;
  readonly startPeriodNs: number;
  readonly startIntervalNs: number;
  readonly retries: number;
};

type Copy<N> = {
  readonly name: N;
  readonly sources: readonly string[];
  readonly inline: readonly Heredoc[];
  readonly target: string;
  readonly flags: CopyFlags;
};
type Pairs<N> = { readonly name: N; readonly pairs: readonly Pair[] };
type Value<N> = { readonly name: N; readonly value: string };
type Values<N> = { readonly name: N; readonly values: readonly string[] };
type WithCommand<N> = { readonly name: N; readonly command: Command };

type Kinds =
  | { readonly name: 'FROM'; readonly image: string; readonly as: string | null; readonly platform: string | null }
  | { readonly name: 'ARG'; readonly args: readonly { readonly key: string; readonly value: string | null }[] }
  | Pairs<'ENV'>
  | Pairs<'LABEL'>
  | { readonly name: 'RUN'; readonly command: Command; readonly mounts: readonly Mount[]; readonly network: 'default' | 'none' }
  | Copy<'COPY'>
  | Copy<'ADD'>
  | Value<'WORKDIR'>
  | Value<'USER'>
  | Value<'STOPSIGNAL'>
  | Value<'MAINTAINER'>
  | Values<'EXPOSE'>
  | Values<'VOLUME'>
  | WithCommand<'CMD'>
  | WithCommand<'ENTRYPOINT'>
  | { readonly name: 'SHELL'; readonly argv: readonly string[] }
  | ({ readonly name: 'HEALTHCHECK' } & Healthcheck)
  | { readonly name: 'ONBUILD'; readonly trigger: string };

export type Instruction = { readonly line: number; readonly text: string } & Kinds;
export type Of<N extends Instruction['name']> = Extract<Instruction, { readonly name: N }>;

export type Stage = {
  readonly index: number;
  readonly from: Of<'FROM'>;
  readonly steps: readonly Instruction[];
};

export type Dockerfile = {
  readonly escapeChar: Escape;
  readonly directives: Readonly<Record<string, string>>;
  /** Before the first FROM. */
  readonly globals: readonly Of<'ARG'>[];
  readonly stages: readonly Stage[];
};

/** @throws DockerfileError with the line and what to do. */
export function parseDockerfile(text: string): Dockerfile {
  if (text.length > DOCKERFILE_BYTES_MAX) throw new DockerfileError(1, null, `it has more than ${DOCKERFILE_BYTES_MAX} bytes`);
  const { escapeChar, directives, lines } = readLines(text);
  if (lines.length > INSTRUCTIONS_MAX)
    throw new DockerfileError(lines.at(-1)?.line ?? 1, null, `it has more than ${INSTRUCTIONS_MAX} instructions`);
  const globals: Of<'ARG'>[] = [];
  const stages: { index: number; from: Of<'FROM'>; steps: Instruction[] }[] = [];
  const named = new Map<string, number>();
  for (const line of lines) {
    const instruction = parseInstruction(line, escapeChar);
    const stage = stages.at(-1);
    if (instruction.name === 'FROM') {
      const as = instruction.as?.toLowerCase();
      if (as !== undefined && named.has(as)) {
        throw new DockerfileError(
          line.line,
          'FROM',
          `the stage ${instruction.as} is there already, from line ${named.get(as)}: give this one another name`,
        );
      }
      if (as !== undefined) named.set(as, line.line);
      stages.push({ index: stages.length, from: instruction, steps: [] });
    } else if (stage !== undefined) stage.steps.push(instruction);
    else if (instruction.name === 'ARG') globals.push(instruction);
    else throw new DockerfileError(line.line, instruction.name, 'the first instruction must be FROM (only ARG may stand before it)');
  }
  if (stages.length === 0)
    throw new DockerfileError(lines.at(-1)?.line ?? 1, null, 'there is no FROM in it: a build begins with FROM IMAGE, or FROM scratch');
  return { escapeChar, directives, globals, stages };
}

export function parseInstruction(logical: LogicalLine, escapeChar: Escape): Instruction {
  const { line, text } = logical;
  const [, word = '', rest = ''] = /^(\S+)(?:\s+([\s\S]*))?$/.exec(text) ?? [];
  const name = word.toUpperCase();
  const parse = Object.hasOwn(PARSERS, name) ? PARSERS[name as Instruction['name']] : undefined;
  if (parse === undefined) {
    const meant = nearest(word, Object.keys(PARSERS));
    const perhaps = meant === null ? `was a line before it to be continued with ${escapeChar}?` : `did you mean ${meant}?`;
    throw new DockerfileError(line, null, `${JSON.stringify(word.slice(0, 40))} is no instruction; ${perhaps}`);
  }
  const fail = (message: string) => new DockerfileError(line, name, message);
  return { line, text, ...parse({ name: name as Instruction['name'], rest: rest.trim(), heredocs: logical.heredocs, escapeChar, fail }) };
}

type Given = {
  readonly name: Instruction['name'];
  readonly rest: string;
  readonly heredocs: readonly Heredoc[];
  readonly escapeChar: Escape;
  readonly fail: (message: string) => DockerfileError;
};

const PARSERS: { readonly [N in Instruction['name']]: (given: Given) => Extract<Kinds, { readonly name: N }> } = {
  FROM: (given) => {
    const { flags, rest } = flagsOf(given, ['platform']);
    const words = rest.split(/\s+/).filter((word) => word !== '');
    const [image, as, stage] = words;
    const isNamed = words.length === 3 && as?.toUpperCase() === 'AS';
    if (image === undefined || (words.length !== 1 && !isNamed)) throw given.fail('write it like FROM IMAGE or FROM IMAGE AS NAME');
    if (isNamed && !/^[a-z][a-z0-9._-]*$/i.test(stage ?? ''))
      throw given.fail(`${stage} is no name for a stage: a letter, then letters, digits, '.', '_' and '-'`);
    return { name: 'FROM', image, as: stage ?? null, platform: flags.get('platform')?.at(-1) ?? null };
  },
  ARG: (given) => {
    const words = splitWords(given.rest, given.escapeChar);
    if (words.length === 0) throw given.fail('a name is missing: ARG NAME or ARG NAME=DEFAULT');
    const args = words.map((word) => {
      const at = word.indexOf('=');
      const key = at < 0 ? word : word.slice(0, at);
      if (!/^[A-Za-z_][A-Za-z0-9_]*$/.test(key)) throw given.fail(`${JSON.stringify(key.slice(0, 40))} is no name of a variable`);
      return { key, value: at < 0 ? null : word.slice(at + 1) };
    });
    return { name: 'ARG', args };
  },
  ENV: (given) => ({ name: 'ENV', pairs: pairsOf(given) }),
  LABEL: (given) => ({ name: 'LABEL', pairs: pairsOf(given) }),
  RUN: (given) => {
    const { flags, rest } = flagsOf(given, ['mount', 'network', 'security', 'device']);
    const network = flags.get('network')?.at(-1) ?? 'default';
    if (network === 'host')
      throw given.fail("--network=host would be this machine's own network, which no sandbox gets: leave it out, or take --network=none");
    if (network !== 'default' && network !== 'none') throw given.fail(`--network=${network.slice(0, 40)} is not known: default or none`);
    if (flags.has('device')) throw given.fail('--device is not supported: a build gets no device of this machine');
    if ((flags.get('security')?.at(-1) ?? 'sandbox') !== 'sandbox')
      throw given.fail('--security=insecure is not needed: what runs here is root in a sandbox of its own');
    const mounts = (flags.get('mount') ?? []).map((text) => parseMount(text, given.fail));
    const [only] = given.heredocs;
    const command: Command =
      only !== undefined && given.heredocs.length === 1 && rest === only.marker
        ? { form: 'script', text: only.content }
        : commandOf({ ...given, rest }, 'may be shell');
    return { name: 'RUN', command, mounts, network };
  },
  COPY: (given) => copyOf(given, 'COPY'),
  ADD: (given) => copyOf(given, 'ADD'),
  WORKDIR: (given) => ({ name: 'WORKDIR', value: one(given, 'WORKDIR /path') }),
  USER: (given) => ({ name: 'USER', value: one(given, 'USER name, or USER uid:gid') }),
  STOPSIGNAL: (given) => ({ name: 'STOPSIGNAL', value: one(given, 'STOPSIGNAL SIGTERM') }),
  MAINTAINER: (given) => ({ name: 'MAINTAINER', value: one(given, 'LABEL org.opencontainers.image.authors="…"') }),
  EXPOSE: (given) => ({ name: 'EXPOSE', values: several(given, 'EXPOSE 80/tcp') }),
  VOLUME: (given) => ({ name: 'VOLUME', values: jsonOf(given.rest) ?? several(given, 'VOLUME /data') }),
  CMD: (given) => ({ name: 'CMD', command: commandOf(given, 'may be empty') }),
  ENTRYPOINT: (given) => ({ name: 'ENTRYPOINT', command: commandOf(given, 'may be empty') }),
  SHELL: (given) => {
    const argv = jsonOf(given.rest);
    if (argv === null || argv.length === 0) throw given.fail('write it as JSON: SHELL ["/bin/bash", "-c"]');
    return { name: 'SHELL', argv };
  },
  HEALTHCHECK: (given) => ({ name: 'HEALTHCHECK', ...healthcheckOf(given) }),
  ONBUILD: (given) => {
    const word = /^\S+/.exec(given.rest)?.[0].toUpperCase() ?? '';
    if (word === '') throw given.fail('an instruction is missing: ONBUILD RUN …');
    if (['ONBUILD', 'FROM', 'MAINTAINER'].includes(word)) throw given.fail(`ONBUILD ${word} is not allowed`);
    const trigger = `${given.rest}${given.heredocs.map(({ name, content }) => `\n${content}${name}`).join('')}`;
    parseInstruction({ line: 1, text: given.rest, heredocs: given.heredocs }, given.escapeChar);
    return { name: 'ONBUILD', trigger };
  },
};

/** `--name=value` before the rest; one that is not in the list is refused. */
function flagsOf({ rest, escapeChar, fail, name }: Given, known: readonly string[]): { flags: Map<string, string[]>; rest: string } {
  const flags = new Map<string, string[]>();
  let left = rest;
  for (;;) {
    const match = /^--([a-zA-Z-]*)/.exec(left);
    if (match === null) return { flags, rest: left };
    const [word = ''] = splitWords(left, escapeChar);
    if (word === '--') return { flags, rest: left.slice(2).trim() };
    const at = word.indexOf('=');
    const key = word.slice(2, at < 0 ? undefined : at);
    if (!known.includes(key)) {
      throw fail(
        `the flag --${key.slice(0, 40)} is not known; ${known.length === 0 ? `${name} has none` : `there is ${known.map((each) => `--${each}`).join(', ')}`}`,
      );
    }
    flags.set(key, [...(flags.get(key) ?? []), at < 0 ? 'true' : word.slice(at + 1)]);
    left = left.slice(word.length).trim();
  }
}

/** An array of strings; null for anything else, which is then a text. */
export function jsonOf(text: string): readonly string[] | null {
  if (!text.startsWith('[')) return null;
  try {
    const value: unknown = JSON.parse(text);
    return Array.isArray(value) && value.every((each) => typeof each === 'string') ? value : null;
  } catch {
    return null; // a shell's own `[`
  }
}

function commandOf({ rest, heredocs, fail }: Given, empty: 'may be shell' | 'may be empty'): Command {
  const argv = heredocs.length > 0 ? null : jsonOf(rest);
  if (argv !== null) {
    if (argv.length === 0 && empty !== 'may be empty') throw fail('its list is empty: say what to run');
    return { form: 'exec', argv };
  }
  if (rest === '') throw fail('a command is missing');
  return { form: 'shell', text: rest + heredocs.map(({ name, content }) => `\n${content}${name}`).join('') };
}

function pairsOf({ rest, escapeChar, fail, name }: Given): readonly Pair[] {
  const words = splitWords(rest, escapeChar);
  const [first] = words;
  if (first === undefined) throw fail(`write it like ${name} NAME=VALUE`);
  if (!first.includes('=')) {
    // The older form: the rest of the line is the value.
    const value = rest.slice(first.length).trim();
    if (value === '') throw fail(`${first.slice(0, 40)} has no value: write ${name} ${first.slice(0, 40)}=VALUE`);
    return [{ key: first, value }];
  }
  return words.map((word) => {
    const at = word.indexOf('=');
    if (at < 1) throw fail(`${JSON.stringify(word.slice(0, 40))} is no NAME=VALUE; a value with spaces needs quotes`);
    return { key: word.slice(0, at), value: word.slice(at + 1) };
  });
}

function copyOf<N extends 'COPY' | 'ADD'>(given: Given, name: N): Copy<N> {
  const known = ['chown', 'chmod', 'link', 'exclude', ...(name === 'COPY' ? ['from', 'parents'] : ['checksum', 'keep-git-dir'])];
  const { flags, rest } = flagsOf(given, known);
  const last = (flag: string) => flags.get(flag)?.at(-1) ?? null;
  const truth = (flag: string): boolean => {
    const value = last(flag);
    if (value === null || /^(true|1|false|0)$/i.test(value)) return value !== null && /^(true|1)$/i.test(value);
    throw given.fail(`--${flag} is true or false, not ${value.slice(0, 40)}`);
  };
  const words = (given.heredocs.length > 0 ? null : jsonOf(rest)) ?? splitWords(rest, given.escapeChar);
  const target = words.at(-1);
  const markers = new Set(given.heredocs.map(({ marker }) => marker));
  const sources = words.slice(0, -1).filter((word) => !markers.has(word));
  if (target === undefined || sources.length + given.heredocs.length === 0) throw given.fail(`write it like ${name} SOURCE… TARGET`);
  if (sources.length + given.heredocs.length > 1 && !target.endsWith('/') && !/^["']?.*\/["']?$/.test(target) && !target.endsWith('.')) {
    throw given.fail(`several sources go into a directory: end ${target.slice(0, 80)} with a /`);
  }
  const url = sources.find((source) => /^(https?|ftp):\/\/|^git@|\.git(#|$)/.test(source));
  if (name === 'ADD' && url !== undefined) {
    if (!/^https?:\/\//.test(url) || /\.git(#|$)/.test(url))
      throw given.fail('git repositories are not fetched by a build: clone it and build that directory');
    if (sources.length + given.heredocs.length > 1) throw given.fail('it is fetched alone: give each URL an ADD of its own');
    const checksum = last('checksum');
    if (checksum !== null && !/^sha256:[0-9a-f]{64}$/.test(checksum) && !checksum.includes('$'))
      throw given.fail('--checksum is like sha256: and 64 digits');
  } else if (last('checksum') !== null) {
    throw given.fail('--checksum is for a URL: what comes with the context needs none');
  }
  return {
    name,
    sources,
    inline: given.heredocs,
    target,
    flags: {
      from: last('from'),
      chown: last('chown'),
      chmod: last('chmod'),
      link: truth('link'),
      parents: truth('parents'),
      exclude: flags.get('exclude') ?? [],
      checksum: last('checksum'),
    },
  };
}

function one({ rest, fail }: Given, example: string): string {
  if (rest === '') throw fail(`a value is missing: ${example}`);
  return rest;
}

function several(given: Given, example: string): readonly string[] {
  const words = splitWords(given.rest, given.escapeChar);
  if (words.length === 0) throw given.fail(`a value is missing: ${example}`);
  return words;
}

const DURATION: Readonly<Record<string, number>> = { ns: 1, us: 1e3, µs: 1e3, ms: 1e6, s: 1e9, m: 60e9, h: 3600e9 };

function healthcheckOf(given: Given): Healthcheck {
  const { flags, rest } = flagsOf(given, ['interval', 'timeout', 'start-period', 'start-interval', 'retries']);
  const duration = (flag: string): number => {
    const text = flags.get(flag)?.at(-1);
    if (text === undefined) return 0;
    const parts = [...text.matchAll(/(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)/g)];
    if (parts.length === 0 || parts.map(([part]) => part).join('') !== text)
      throw given.fail(`--${flag} is a time like 30s or 1m30s, not ${text.slice(0, 40)}`);
    return Math.round(parts.reduce((sum, [, count, unit]) => sum + Number(count) * (DURATION[unit ?? ''] ?? 0), 0));
  };
  const retries = flags.get('retries')?.at(-1) ?? '0';
  if (!/^\d{1,6}$/.test(retries)) throw given.fail(`--retries is a number, not ${retries.slice(0, 40)}`);
  const times = {
    intervalNs: duration('interval'),
    timeoutNs: duration('timeout'),
    startPeriodNs: duration('start-period'),
    startIntervalNs: duration('start-interval'),
    retries: Number(retries),
  };
  if (/^none$/i.test(rest)) return { command: null, ...times };
  const [, word = '', command = ''] = /^(\S+)\s*([\s\S]*)$/.exec(rest) ?? [];
  if (word.toUpperCase() !== 'CMD') throw given.fail('write it like HEALTHCHECK CMD COMMAND, or HEALTHCHECK NONE');
  return { command: commandOf({ ...given, rest: command }, 'may be shell'), ...times };
}
