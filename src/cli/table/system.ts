// Verbs that install Hutch on this machine, and keep what it must not lose.
import type { Flag, Verb } from '../verb.ts';

const load = async () => await import('../verbs/install.ts');

const USER: Flag = { name: 'user', about: 'For this user alone, also as root; without root it is always so' };
const ROOT: Flag = { name: 'root', value: 'DIR', about: 'Below another root, for packages: files only, nothing is started' };
const DRY_RUN: Flag = { name: 'dry-run', about: 'Only tell what would be done' };
const WITHIN: Flag = { name: 'within', value: 'TIME', about: 'How long a daemon may take until it is well; default 1m' };

export const systemVerbs: readonly Verb[] = [
  {
    name: 'system',
    group: 'Machine',
    under: 'daemon',
    summary: 'Install Hutch on this machine, upgrade it, and take it away again',
    subverbs: [
      {
        name: 'install',
        summary: 'Install this Hutch as a service: release, command, completions, unit',
        examples: [
          { line: 'hutch system install', about: 'as root for the machine, else for you alone; from a checkout: ./hutch system install' },
          { line: 'hutch system install --dry-run', about: 'every file that it would make' },
        ],
        flags: [
          DRY_RUN,
          USER,
          { name: 'linger', about: 'Let a user’s daemon live without a login (loginctl enable-linger)' },
          { name: 'no-service', about: 'Without a unit: a command starts the daemon when it is needed' },
          { name: 'replace', about: 'Write over files in its place that no installation has made' },
          WITHIN,
          ROOT,
        ],
        positionals: [{ name: 'FROM', takes: 'optional', completes: 'path' }],
        notes:
          'FROM is a checkout that is built, or a release; by default the Hutch that is asked. It may be run again, and makes what is missing.',
        load: async () => (await load()).install,
      },
      {
        name: 'status',
        summary: 'Tell what is installed, whether it is well, and what an upgrade would do; exit 3 when nothing is, 7 when it is not well',
        examples: [{ line: 'hutch system status', about: '' }],
        flags: [USER, WITHIN, ROOT],
        positionals: [{ name: 'FROM', takes: 'optional', completes: 'path' }],
        notes: 'An upgrade that was cut short is finished or taken back first.',
        load: async () => (await load()).status,
      },
      {
        name: 'upgrade',
        summary: 'Put another release in the place of the installed one; sandboxes go on',
        examples: [
          { line: 'hutch system upgrade --dry-run', about: 'to the checkout whose command it is' },
          { line: 'hutch system upgrade ~/hutch', about: '' },
        ],
        flags: [DRY_RUN, USER, WITHIN, ROOT],
        positionals: [{ name: 'FROM', takes: 'optional', completes: 'path' }],
        notes:
          'FROM is a checkout that is built, or a release; by default the Hutch that is asked. When the new daemon is not well in time, the old release comes back by itself.',
        load: async () => (await load()).upgrade,
      },
      {
        name: 'uninstall',
        summary: 'Take away what was installed; what sandboxes have is kept',
        examples: [
          { line: 'hutch system uninstall --dry-run', about: '' },
          { line: 'hutch system uninstall --purge', about: 'sandboxes, images and the ledger too' },
        ],
        flags: [
          DRY_RUN,
          { name: 'purge', about: 'Delete what sandboxes have, too: disks, images, the ledger, settings' },
          { name: 'force', short: 'f', about: 'Stop sandboxes that run' },
          USER,
          ROOT,
        ],
        positionals: [],
        load: async () => (await load()).uninstall,
      },
      {
        name: 'backup',
        summary: 'Copy the store to a file while it is in use, and check the copy',
        examples: [
          { line: 'hutch system backup -o hutch.backup', about: '' },
          { line: 'hutch system backup | zstd > hutch.backup.zst', about: '' },
        ],
        flags: [{ name: 'output', short: 'o', value: 'FILE', about: 'Where to; -: stdout, which is the default' }],
        positionals: [],
        notes:
          'What sandboxes have on disks is not in it, nor images, kernels, snapshots, volumes and settings: records, keys and the ledger are.',
        load: async () => (await import('../verbs/backup.ts')).backup,
      },
      {
        name: 'restore',
        summary: 'Put a backup in the place of the store, once it is checked; the daemon must not run',
        examples: [{ line: 'hutch system restore hutch.backup', about: 'the store of before is kept beside' }],
        flags: [],
        positionals: [{ name: 'FILE', takes: 'one', completes: 'path' }],
        load: async () => (await import('../verbs/backup.ts')).restore,
      },
    ],
  },
];
