// Every key of the configuration: its kind, bounds, default, and what it is for. Environment names,
// `config show`, the documentation and the error for a misspelt key are all made from this table.
import type * as z from 'zod';
import { isName } from '../domain/ids.ts';
import { BACKENDS_HERE } from '../domain/sandbox.ts';
import { fileSyncLeaf } from './file-sync.ts';
import { countLeaf, durationLeaf, flagLeaf, type Leaf, listLeaf, mebibytesLeaf, orWord, textLeaf, wordLeaf } from './leaf.ts';

const ADDRESSES_MAX = 64;
const RULES_MAX = 256;
// What no image's name can fit is refused: a rule that never holds is none. A registry has a dot, a port or a *, as in a name.
const REGISTRY = String.raw`(?:\*\*|[A-Za-z0-9-]*[.:*][A-Za-z0-9.:*-]*|localhost|\[[0-9a-fA-F:.]+\](?::\d+)?)`;
const REPOSITORIES_OF = String.raw`(?:\*\*|(?=[^=]{1,512}(?:=|$))${REGISTRY}(?:/[a-z0-9._*-]+)+)`;
const REPOSITORIES = new RegExp(`^${REPOSITORIES_OF}$`);
const SIGNED = new RegExp(String.raw`^${REPOSITORIES_OF}=/[^\0,]{1,1023}$`);
const REPOSITORIES_MUST = 'a registry and a path in lower case, like docker.io/library/* or ghcr.io/owner/**';
const DAY_MS = 86_400_000;
const YEAR_MS = 365 * DAY_MS;

export const KEYS = {
  daemon: {
    listen: orWord(
      'off',
      textLeaf({
        fallback: '127.0.0.1:4880',
        about: 'Address and port of the API; off: only the unix socket',
        charsMax: 261,
        pattern: /^(\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9.-]{1,253}):(\d{1,4}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d{2}|655[0-2]\d|6553[0-5])$/,
        must: 'an address and a port, like 127.0.0.1:4880 or [::1]:4880',
      }),
    ),
    socket: orWord(
      'default',
      textLeaf({
        fallback: 'default',
        about: 'Path of the unix socket of the API; default: hutch.sock in the directory for sockets',
        charsMax: 107,
        pattern: /^\/[^\0]*$/,
        must: 'an absolute path of at most 107 characters',
      }),
    ),
    allowed_hosts: listLeaf({
      about: 'Names, beside those of loopback, by which clients may address the API: what stands in Host, without a port',
      pattern: /^(\[[0-9a-f:.]{2,45}\]|[a-z0-9.-]{1,253})$/,
      must: 'a name or address in lower case, like box.example.com or [fd00::1]',
      max: ADDRESSES_MAX,
    }),
    allowed_origins: listLeaf({
      about: 'Origins whose web pages may call the API',
      pattern: /^https?:\/\/(\[[0-9a-f:.]{2,45}\]|[a-z0-9.-]{1,253})(:\d{1,5})?$/,
      must: 'an origin, like https://dash.example.com',
      max: ADDRESSES_MAX,
    }),
    preview_domain: textLeaf({
      fallback: 'hutch.localhost',
      about: 'Shared ports answer at PORT-NAME below this domain, which must lead to this machine with all below it',
      charsMax: 180,
      pattern: /^[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63})+$/,
      must: 'a domain in lower case, like preview.example.com',
    }),
    log_level: wordLeaf({
      fallback: 'info',
      about: 'What the daemon logs: this and what is more important',
      words: ['debug', 'info', 'warn', 'error'],
    }),
  },
  sandbox: {
    image: textLeaf({
      fallback: 'debian',
      about: 'Image of a sandbox that names none',
      charsMax: 512,
      pattern: /^[A-Za-z0-9][A-Za-z0-9._\-/:@]*$/,
      must: 'the name of an image',
    }),
    cpus: countLeaf({ fallback: 1, about: 'Virtual CPUs', min: 1, max: 64 }),
    memory: mebibytesLeaf({ fallback: '512M', about: 'Memory', min: 128, max: 262_144 }),
    disk: mebibytesLeaf({ fallback: '8G', about: 'Disk; takes on the host only what is written to it', min: 256, max: 131_072 }),
    timeout: orWord(
      'none',
      durationLeaf({ fallback: 'none', about: 'A sandbox is stopped this long after each start', minMs: 1_000, maxMs: YEAR_MS }),
    ),
    idle: orWord(
      '0',
      durationLeaf({
        fallback: '0',
        about: 'A sandbox that nobody has touched for so long is stopped; 0: never',
        minMs: 1_000,
        maxMs: YEAR_MS,
      }),
    ),
    stop_grace: durationLeaf({
      fallback: '10s',
      about: 'From asking its processes to end until they are killed',
      minMs: 0,
      maxMs: 3_600_000,
    }),
    network: wordLeaf({
      fallback: 'allow',
      about: 'allow: the internet; allow-lan: private ranges too; none',
      words: ['allow', 'allow-lan', 'none'],
    }),
    file_sync: fileSyncLeaf({ about: 'Files of the home of the daemon’s user that each sandbox gets when it is made: [[file_sync]]' }),
    warm: countLeaf({
      fallback: 1,
      about:
        'Sandboxes of the default image and shape that are started before anybody asks for them, and one for the next build; each takes some 35 MiB of memory. 0: none',
      min: 0,
      max: 16,
    }),
    backend: wordLeaf({
      fallback: 'auto',
      about: 'What runs sandboxes; auto: the best that works here',
      words: ['auto', ...BACKENDS_HERE],
    }),
  },
  images: {
    insecure_registries: listLeaf({
      about: 'Registries that may be asked without TLS, or whatever certificate they show. One on loopback always may',
      pattern: /^(\[[0-9a-f:.]{2,45}\]|[a-z0-9.-]{1,253})(:\d{1,5})?$/,
      must: 'a name in lower case with its port, like registry.example:5000',
      max: ADDRESSES_MAX,
    }),
    ca: orWord(
      'none',
      textLeaf({
        fallback: 'none',
        about: 'File of certificates (PEM) that registries are trusted by, beside the well-known ones',
        charsMax: 1_024,
        pattern: /^\/[^\0]*$/,
        must: 'an absolute path',
      }),
    ),
    registry_ca: listLeaf({
      about: 'Files of certificates that one registry alone is trusted by. Then it is looked at on the loopback too',
      pattern: /^(\[[0-9a-f:.]{2,45}\]|[a-z0-9.-]{1,253})(:\d{1,5})?=\/[^\0,]{1,1023}$/,
      must: 'a registry and a file, like registry.example:5000=/etc/ssl/own.pem',
      max: ADDRESSES_MAX,
    }),
    mirrors: listLeaf({
      about: 'Registries that are asked before another one; what they do not have, or not now, comes from that one',
      pattern: /^[a-z0-9.-]{1,253}(:\d{1,5})?=(\[[0-9a-f:.]{2,45}\]|[a-z0-9.-]{1,253})(:\d{1,5})?(\/[a-z0-9._/-]{1,200})?$/,
      must: 'a registry and its mirror, like docker.io=mirror.example:5000',
      max: ADDRESSES_MAX,
    }),
    allow: listLeaf({
      about: 'Repositories whose images may be pulled, all others may not; * is a part of a path, ** any number of them; none: all may',
      pattern: REPOSITORIES,
      must: REPOSITORIES_MUST,
      max: RULES_MAX,
    }),
    require_digest: listLeaf({
      about: 'Repositories whose images may be pulled by their digest alone: a tag can move',
      pattern: REPOSITORIES,
      must: REPOSITORIES_MUST,
      max: RULES_MAX,
    }),
    signed: listLeaf({
      about:
        'Repositories whose images must be signed by a key, as cosign signs: its public key, in PEM. Of several for one image one is enough',
      pattern: SIGNED,
      must: 'repositories, by registry and path, and a file, like ghcr.io/owner/**=/etc/hutch/cosign.pub',
      max: RULES_MAX,
    }),
  },
  volumes: {
    allow: orWord('own', {
      ...listLeaf({
        about:
          'Directories of this machine that sandboxes may have, with all below; prj…=DIRECTORY: those of another project. own: the home of the daemon’s user, and what lies where the client stands that is that user',
        pattern: /^(prj[0-9a-hjkmnp-tv-z]{17}=)?\/[^\0,]{0,4095}$/,
        must: 'an absolute path, like /srv/data, or a project and a path',
        max: RULES_MAX,
      }),
      fallback: 'own',
    }),
  },
  devices: {
    allow: listLeaf({
      about: 'Devices of this machine that containers may have where one is asked for by its name. Who has a disk has the machine',
      pattern: /^\/dev\/[\w./-]{1,250}$/,
      must: 'a path below /dev, like /dev/fuse',
      max: RULES_MAX,
    }),
  },
  builds: {
    package_settings: flagLeaf({
      fallback: true,
      about: 'RUN of a build sees the proxies, package mirrors and certificates of the machine on which it was asked for',
    }),
  },
  network: {
    allow_qemu_user_network: flagLeaf({
      fallback: false,
      about: 'Use QEMU’s own user network where passt is missing. Sandboxes then reach servers on this machine',
    }),
  },
  roles: {
    vm: orWord(
      'here',
      textLeaf({
        fallback: 'here',
        about: 'The daemon that has the sandboxes: here, or the address of another on this machine',
        charsMax: 256,
        pattern: /^(unix:\/[^\0]{1,107}|http:\/\/(127\.0\.0\.1|localhost|\[::1\]):\d{1,5})$/,
        must: 'unix:/PATH or http://127.0.0.1:PORT',
      }),
    ),
    vm_key: orWord(
      'none',
      textLeaf({
        fallback: 'none',
        about: 'File with the API key for that daemon',
        charsMax: 1_024,
        pattern: /^\/[^\0]*$/,
        must: 'an absolute path',
      }),
    ),
  },
  limits: {
    sandboxes: countLeaf({ fallback: 1_000, about: 'Sandboxes that run at one time', min: 1, max: 65_536 }),
    cpus: countLeaf({ fallback: 64, about: 'Virtual CPUs of one sandbox', min: 1, max: 64 }),
    memory: mebibytesLeaf({ fallback: '256G', about: 'Memory of one sandbox', min: 128, max: 262_144 }),
    disk: mebibytesLeaf({ fallback: '128G', about: 'Disk of one sandbox', min: 256, max: 131_072 }),
    free: orWord(
      'off',
      mebibytesLeaf({
        fallback: '1G',
        about: 'With less than this free where data lies no sandbox is made or started; off: until nothing is left',
        min: 1,
        max: 1_048_576,
      }),
    ),
  },
  retention: {
    events: durationLeaf({ fallback: '90d', about: 'How long events are kept', minMs: 3_600_000, maxMs: 10 * YEAR_MS }),
    operations: durationLeaf({ fallback: '30d', about: 'How long operations are kept', minMs: 3_600_000, maxMs: 10 * YEAR_MS }),
    deleted: durationLeaf({
      fallback: '30d',
      about: 'How long deleted sandboxes can be asked about',
      minMs: 3_600_000,
      maxMs: 10 * YEAR_MS,
    }),
    templates: durationLeaf({
      fallback: '14d',
      about: 'How long a template stays that no start has used; it is made anew when it is wanted again',
      minMs: 3_600_000,
      maxMs: 10 * YEAR_MS,
    }),
    cache: durationLeaf({
      fallback: '30d',
      about:
        'How long images whose name went to a newer one, layers of no image, steps and cache mounts of builds stay that nothing has used',
      minMs: 3_600_000,
      maxMs: 10 * YEAR_MS,
    }),
    cache_size: mebibytesLeaf({
      fallback: '20G',
      about: 'What those take at most; what was not used for longest goes first',
      min: 64,
      max: 134_217_728,
    }),
  },
} as const satisfies Record<string, Record<string, Leaf<never> | Leaf<unknown>>>;

type Keys = typeof KEYS;
export type SectionName = keyof Keys;

/** What `[projects.NAME.images]` may say: each counts for that project in place of the same in `[images]`. */
const OF_PROJECTS = ['allow', 'require_digest', 'signed'] as const satisfies readonly (keyof Keys['images'])[];

type Sections = {
  readonly [S in SectionName]: { readonly [K in keyof Keys[S]]: Keys[S][K] extends Leaf<infer T> ? T : never };
};

/** Parsed: sizes in MiB, durations in milliseconds, null for `off`, `default` and `none`. */
export type Config = Sections & {
  /** By the name of a project, what it has of its own. */
  readonly projects: ReadonlyMap<string, Partial<Pick<Sections['images'], (typeof OF_PROJECTS)[number]>>>;
};

/** `sandbox.memory`. */
export type KeyPath = { [S in SectionName]: `${S}.${keyof Keys[S] & string}` }[SectionName];

export type AnyLeaf = {
  readonly schema: z.ZodType;
  readonly fallback: Leaf<unknown>['fallback'];
  readonly about: string;
  show(value: unknown): Leaf<unknown>['fallback'];
};

/** All leaves by their path, in the order of the table. */
export const LEAVES: ReadonlyMap<string, AnyLeaf> = new Map(
  Object.entries(KEYS).flatMap(([section, leaves]) =>
    Object.entries(leaves).map(([key, leaf]): [string, AnyLeaf] => [`${section}.${key}`, leaf as AnyLeaf]),
  ),
);

/** `projects.ci.images.allow` is what images.allow is for all. */
export function projectLeaf(path: string): { readonly project: string; readonly key: string; readonly leaf: AnyLeaf } | null {
  const [section, project = '', table, key, more] = path.split('.');
  const known = OF_PROJECTS.find((name) => name === key);
  if (section !== 'projects' || table !== 'images' || known === undefined || more !== undefined || !isName(project)) return null;
  const leaf: AnyLeaf = KEYS.images[known];
  return { project, key: known, leaf };
}

/** `sandbox.stop_grace` is HUTCH_SANDBOX_STOP_GRACE. */
export function environmentName(path: string): string {
  return `HUTCH_${path.replace('.', '_').toUpperCase()}`;
}
