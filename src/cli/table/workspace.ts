// Verbs that take a git repository into a sandbox, and bring back what was done there.
import type { Flag, Positional, Verb } from '../verb.ts';

const workspace = async () => await import('../verbs/workspace.ts');
const SANDBOX: Positional = { name: 'SANDBOX', takes: 'one', completes: 'sandbox' };
const USER: Flag = { name: 'user', short: 'u', value: 'USER', about: 'As whom, inside' };
const INTO: Flag = { name: 'into', value: 'DIR', completes: ['.'], about: 'The repository here; default: the one that was copied in' };

/** What `run DIR` takes as well. */
export const WORKSPACE_FLAGS: readonly Flag[] = [
  {
    name: 'mode',
    value: 'MODE',
    choices: ['shallow_overlay', 'full_copy', 'metadata_only'],
    about: 'What travels; default shallow_overlay: the files that git knows, and the last commit',
  },
  { name: 'include-untracked', about: 'Files too that git does not know and does not ignore' },
  { name: 'path', value: 'DIR', about: 'Where it goes in the sandbox; default /work/NAME' },
  { name: 'dry-run', about: 'Only show what would travel' },
];

const NOTHING_IS_OVERWRITTEN = 'no branch is overwritten: choose another one with --branch NAME';

export const workspaceVerbs: readonly Verb[] = [
  {
    name: 'sync',
    group: 'Reach into',
    under: 'workspace',
    summary: 'Keep a directory here and one in a sandbox alike, once or for as long as it runs',
    examples: [
      { line: 'hutch sync dev .:/work/web', about: 'what is new or was changed here goes there' },
      { line: 'hutch sync --watch --two-way dev .:/work/web', about: 'both ways, until Ctrl-C' },
      { line: 'hutch sync --dry-run --exclude node_modules dev .:/work/web', about: 'what would travel' },
    ],
    flags: [
      { name: 'watch', short: 'w', about: 'Go on, and carry each change as it is made' },
      { name: 'two-way', about: 'What is changed in the sandbox comes here too' },
      { name: 'delete', about: 'Remove what was removed on the other side since both were alike' },
      {
        name: 'exclude',
        value: 'PATTERN',
        repeats: true,
        about: 'Leave out, as in .gitignore: a name at any depth, or a path; ! takes one back. .git never travels',
      },
      { name: 'max-size', value: 'SIZE', about: 'Larger files stay in the sandbox; default 1G' },
      { name: 'dry-run', about: 'Only show what would travel' },
      USER,
    ],
    positionals: [SANDBOX, { name: 'DIR:GUEST', takes: 'one', completes: 'path' }],
    notes:
      'What both sides have changed since they were alike is never overwritten: ours keeps the name, the sandbox’s is kept beside it as\nNAME.conflict-TIME. Without --delete nothing is removed. Without --two-way nothing is written here. With it, nothing is ever written\noutside of DIR, and links that lead out of it are not made; but what the sandbox wrote is in your directory then: look before you run it.\n--json gives a line for each file.',
    load: async () => (await import('../verbs/sync.ts')).run,
  },
  {
    name: 'workspace',
    group: 'Reach into',
    summary: 'Take a git repository into a sandbox, and bring back what was done there',
    subverbs: [
      {
        name: 'prepare',
        summary: 'Copy a git repository into a running sandbox, or what has changed here since',
        examples: [
          { line: 'hutch workspace prepare dev', about: 'the one that we are in' },
          { line: 'hutch workspace prepare --dry-run --include-untracked dev ../web', about: 'what would travel' },
        ],
        flags: [...WORKSPACE_FLAGS, USER, { name: 'force', short: 'f', about: 'Overwrite what the sandbox has changed' }],
        positionals: [SANDBOX, { name: 'DIR', takes: 'optional', completes: 'path' }],
        notes:
          'shallow_overlay: the last commit without its history, and the files as they lie here, changed or not. full_copy: the whole\nhistory, and every file, ignored ones too. metadata_only: the last commit without files. Hooks, filters and logins never travel.\nLinks travel as links, submodules as files, files of LFS as they lie here. The second time only what changed here is copied; where\nthe sandbox changed it too, nothing is done and the files are named.',
        load: async () => (await workspace()).prepare,
      },
      {
        name: 'diff',
        also: 'diff',
        summary: 'Show what was changed in a sandbox since its repository was copied in',
        examples: [
          { line: 'hutch diff dev', about: 'as a patch, of what is committed there and of what is not' },
          { line: 'hutch diff --stat dev', about: '' },
        ],
        flags: [
          { name: 'stat', about: 'Only files, and how many lines' },
          { name: 'name-status', about: 'Only files, and what became of them' },
          USER,
          INTO,
        ],
        foreign: { 'name-only': 'with what became of them: --name-status' },
        positionals: [SANDBOX],
        load: async () => (await workspace()).diff,
      },
      {
        name: 'bring',
        also: 'bring',
        summary: 'Bring back what was done in a sandbox, as a branch or a patch',
        examples: [
          { line: 'hutch bring dev', about: 'as branch hutch/dev: its commits, and one for what was not committed' },
          { line: 'hutch bring --patch dev | git apply', about: 'into the files here' },
        ],
        flags: [
          { name: 'branch', short: 'b', value: 'NAME', about: 'The branch; default hutch/NAME' },
          { name: 'patch', about: 'Write a patch to stdout, and make no branch' },
          USER,
          INTO,
        ],
        foreign: { f: NOTHING_IS_OVERWRITTEN, force: NOTHING_IS_OVERWRITTEN },
        positionals: [SANDBOX],
        notes:
          'Nothing here is overwritten: a branch that has other commits, or is checked out, is refused. Nothing from the sandbox is run:\nits hooks, filters and configuration mean nothing here, and git checks each object.',
        load: async () => (await workspace()).bring,
      },
    ],
  },
];
