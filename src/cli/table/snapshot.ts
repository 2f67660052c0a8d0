// Verbs about snapshots.
import type { Flag, Positional, Verb } from '../verb.ts';

const snapshots = async () => await import('../verbs/snapshot.ts');
const SNAPSHOT: Positional = { name: 'SNAPSHOT', takes: 'one', completes: 'snapshot' };
const SNAPSHOTS: Positional = { ...SNAPSHOT, takes: 'several' };
const CARRY: readonly Flag[] = [
  { name: 'with-image', about: 'With its image, also one of a registry' },
  { name: 'without-image', about: 'Without image and kernel: for where both are' },
];

export const snapshotVerbs: readonly Verb[] = [
  {
    name: 'snapshot',
    group: 'Change',
    summary: 'Keep sandboxes as they are, memory and all, and begin there again',
    fallback: 'ls',
    subverbs: [
      {
        name: 'create',
        summary: 'Keep a sandbox as it is now; it goes on',
        examples: [
          { line: 'hutch snapshot create --name ready web', about: 'then: hutch run --from ready -- make test' },
          { line: 'hutch snapshot create --disk-only web', about: 'without its memory: what is made from it boots' },
        ],
        flags: [
          { name: 'name', value: 'NAME', about: 'How the snapshot is called' },
          { name: 'disk-only', about: 'Without memory' },
          { name: 'scrub', about: 'Run the executables in /etc/hutch/scrub.d of the sandbox first, as root' },
        ],
        positionals: [{ name: 'SANDBOX', takes: 'one', completes: 'sandbox' }],
        notes:
          'Only what differs from its image, its template and the snapshot that it stands on is stored. Values of secrets are not kept with it,\nbut programs that run have theirs in their memory.',
        load: async () => (await snapshots()).create,
      },
      {
        name: 'restore',
        also: 'restore',
        summary: 'Let a sandbox go back to a snapshot, in place',
        examples: [{ line: 'hutch restore web ready', about: 'memory, processes and disk; name, labels, env and ports stay its own' }],
        flags: [
          { name: 'foreign', about: 'Also a snapshot of another sandbox: it replaces all that this one has' },
          { name: 'force', about: 'Also one whose memory was written down on another kind of machine' },
        ],
        positionals: [{ name: 'SANDBOX', takes: 'one', completes: 'sandbox' }, SNAPSHOT],
        notes:
          'The snapshot is checked, and its disk laid out, before what runs is ended: one that is damaged or does not fit leaves the sandbox running.\nWhat the sandbox did since then is lost, unless a snapshot of it is taken first.',
        load: async () => (await snapshots()).restore,
      },
      {
        name: 'undo',
        also: 'undo',
        summary: 'Let a sandbox go back to before its last exec; once more: to before the one before',
        examples: [{ line: 'hutch undo web', about: 'of one that was made with --undo, or since: hutch set --undo web' }],
        flags: [],
        positionals: [{ name: 'SANDBOX', takes: 'one', completes: 'sandbox' }],
        notes: 'Memory, processes and disk, as with hutch restore. What it does itself between two execs is undone with the first of them.',
        load: async () => (await snapshots()).undo,
      },
      {
        name: 'ls',
        summary: 'List snapshots, each under the one that it stands on',
        examples: [{ line: 'hutch snapshot ls', about: '' }],
        flags: [
          { name: 'sandbox', value: 'SANDBOX', completes: 'sandbox', about: 'Only of this one' },
          { name: 'all', short: 'a', about: 'Also those that are kept to undo an exec' },
          { name: 'quiet', short: 'q', about: 'Only ids' },
        ],
        positionals: [],
        load: async () => (await snapshots()).list,
      },
      {
        name: 'inspect',
        summary: 'Show everything about snapshots',
        examples: [{ line: 'hutch snapshot inspect ready', about: '' }],
        flags: [],
        positionals: [SNAPSHOTS],
        load: async () => (await snapshots()).inspect,
      },
      {
        name: 'verify',
        summary: 'Compare every file of snapshots with what was written',
        examples: [{ line: 'hutch snapshot verify ready', about: '' }],
        flags: [],
        positionals: [SNAPSHOTS],
        load: async () => (await snapshots()).verify,
      },
      {
        name: 'diff',
        summary: 'List the files that differ between two snapshots, or a snapshot and a sandbox',
        examples: [
          {
            line: 'hutch snapshot diff before after',
            about: 'A is added, D is gone, M is changed: content, mode, owner, type, or where a link leads',
          },
          { line: 'hutch snapshot diff before web', about: 'what the sandbox web has changed since' },
          { line: 'hutch snapshot diff --stat before after', about: '' },
        ],
        flags: [{ name: 'stat', about: 'Only how many' }],
        positionals: [
          { ...SNAPSHOT, name: 'BEFORE' },
          { ...SNAPSHOT, name: 'AFTER' },
        ],
        notes:
          'Both are of one image, from one sandbox or two. Their disks are compared: what a program had written and its kernel not yet put there is in\nthe memory of the snapshot, and not seen. A running sandbox does that first, and stands still while its changed blocks are copied. A name that\nboth have is the snapshot; say the sandbox by its id. Nothing is mounted.',
        load: async () => (await snapshots()).diff,
      },
      {
        name: 'export',
        summary: 'Write a snapshot to a file that needs no other snapshot',
        examples: [
          { line: 'hutch snapshot export -o ready.tar ready', about: 'elsewhere: hutch snapshot import ready.tar' },
          { line: 'hutch snapshot export -o - ready | ssh other hutch snapshot import -', about: '' },
        ],
        flags: [
          { name: 'output', short: 'o', value: 'FILE', about: 'Write to this file, whole or not at all; otherwise, and for -, to stdout' },
          ...CARRY,
        ],
        positionals: [SNAPSHOT],
        notes:
          'An image that Hutch made goes along, and the kernel: where they are already they are not taken up. One of a registry is pulled or imported where\nit is missing, unless --with-image takes it along. Memory has all that programs held in it, secrets too: keep the file as you would keep\nthem, or take the snapshot with --disk-only.',
        load: async () => (await snapshots()).exportFile,
      },
      {
        name: 'import',
        summary: 'Take up a snapshot from a file that export wrote',
        examples: [{ line: 'hutch snapshot import --name ready ready.tar', about: 'then: hutch run --from ready -- make test' }],
        flags: [{ name: 'name', value: 'NAME', about: 'How the snapshot is called, instead of what the file says' }],
        positionals: [{ name: 'FILE', takes: 'one', completes: 'path' }],
        notes:
          'Every part is compared with its digest; what is not whole leaves nothing. The state of a machine’s devices is given to QEMU as it is: import\nmemory only from whom you would let run a program on this machine as the user of a sandbox.',
        load: async () => (await snapshots()).importFile,
      },
      {
        name: 'push',
        summary: 'Push a snapshot to a registry, with all that it stands on',
        examples: [{ line: 'hutch snapshot push ready registry.example/team/ready:1', about: 'elsewhere: hutch snapshot pull' }],
        flags: [...CARRY],
        positionals: [SNAPSHOT, { name: 'NAME', takes: 'one', completes: 'nothing' }],
        notes:
          'Layers that the registry has are not sent again. Logins and certificates are those of hutch image push. Memory has all that programs held\nin it, secrets too.',
        load: async () => (await snapshots()).push,
      },
      {
        name: 'pull',
        summary: 'Take up a snapshot from a registry',
        examples: [{ line: 'hutch snapshot pull registry.example/team/ready:1', about: 'then: hutch run --from ready -- make test' }],
        flags: [{ name: 'name', value: 'NAME', about: 'How the snapshot is called, instead of what it says' }],
        positionals: [{ name: 'NAME', takes: 'one', completes: 'nothing' }],
        notes: 'What may be pulled: images.allow, images.require_digest and images.signed, as for images.',
        load: async () => (await snapshots()).pull,
      },
      {
        name: 'prune',
        summary: 'Remove snapshots by a policy; what something stands on stays',
        examples: [
          { line: 'hutch snapshot prune --keep 5 --older-than 30d --dry-run', about: 'what would go, and why' },
          { line: 'hutch snapshot prune --max-size 20G', about: 'the oldest go first' },
        ],
        flags: [
          { name: 'keep', value: 'N', about: 'Of each sandbox the newest so many stay' },
          { name: 'older-than', value: 'TIME', about: 'What is older goes' },
          { name: 'max-size', value: 'SIZE', about: 'What they may take together' },
          { name: 'sandbox', value: 'SANDBOX', completes: 'sandbox', about: 'Only of this one' },
          { name: 'dry-run', about: 'Only tell what would go' },
        ],
        positionals: [],
        notes: 'What is kept to undo an exec is no part of it: that goes by itself.',
        load: async () => (await snapshots()).prune,
      },
      {
        name: 'rm',
        summary: 'Remove snapshots; refused while snapshots or sandboxes stand on them',
        examples: [
          { line: 'hutch snapshot rm ready', about: '' },
          { line: 'hutch snapshot rm --cascade base', about: 'and all snapshots that stand on it; sandboxes stay' },
        ],
        flags: [{ name: 'cascade', about: 'With all snapshots that stand on them; sandboxes made from them stay' }],
        positionals: [SNAPSHOTS],
        load: async () => (await snapshots()).remove,
      },
    ],
  },
];
