// Verbs about volumes.
import type { Positional, Verb } from '../verb.ts';

const volumes = async () => await import('../verbs/volume.ts');
const VOLUMES: Positional = { name: 'VOLUME', takes: 'several', completes: 'nothing' };

const NEVER_FORCED = 'leave it away: nobody is asked; what is mounted is refused, with who mounts it';

export const volumeVerbs: readonly Verb[] = [
  {
    name: 'volume',
    group: 'Change',
    summary: 'Named disks that outlive sandboxes',
    fallback: 'ls',
    subverbs: [
      {
        name: 'create',
        summary: 'Make a volume: an empty disk of its own size',
        examples: [{ line: 'hutch volume create --size 20G data', about: 'then: hutch run -v data:/data -- df -h /data' }],
        flags: [
          {
            name: 'size',
            value: 'SIZE',
            about: 'Like 20G; default: that of a sandbox’s disk. Takes on the host only what is written to it',
          },
        ],
        positionals: [{ name: 'NAME', takes: 'one', completes: 'nothing' }],
        notes: 'Its file system is ext4.',
        load: async () => (await volumes()).create,
      },
      {
        name: 'ls',
        summary: 'List volumes, and who mounts them',
        examples: [{ line: 'hutch volume ls', about: '' }],
        flags: [{ name: 'quiet', short: 'q', about: 'Only ids' }],
        positionals: [],
        load: async () => (await volumes()).list,
      },
      {
        name: 'inspect',
        summary: 'Show everything about volumes',
        examples: [{ line: 'hutch volume inspect data', about: '' }],
        flags: [],
        positionals: [VOLUMES],
        load: async () => (await volumes()).inspect,
      },
      {
        name: 'grow',
        summary: 'Make a volume larger that nobody uses now',
        examples: [{ line: 'hutch volume grow --size 40G data', about: 'its file system follows when it is mounted next' }],
        flags: [{ name: 'size', value: 'SIZE', about: 'Its new size: volumes only grow' }],
        positionals: [{ name: 'VOLUME', takes: 'one', completes: 'nothing' }],
        load: async () => (await volumes()).grow,
      },
      {
        name: 'df',
        summary: 'Tell what volumes take of the disk',
        examples: [{ line: 'hutch volume df', about: '' }],
        flags: [],
        positionals: [],
        load: async () => (await volumes()).df,
      },
      {
        name: 'rm',
        summary: 'Remove volumes and all that is on them; refused while sandboxes mount them',
        examples: [{ line: 'hutch volume rm data', about: '' }],
        flags: [],
        foreign: { f: NEVER_FORCED, force: NEVER_FORCED },
        positionals: [VOLUMES],
        load: async () => (await volumes()).remove,
      },
    ],
  },
];
