// Verbs about templates.
import type { Positional, Verb } from '../verb.ts';

const templates = async () => await import('../verbs/template.ts');
const TEMPLATES: Positional = { name: 'TEMPLATE', takes: 'several', completes: 'template' };

export const templateVerbs: readonly Verb[] = [
  {
    name: 'template',
    group: 'Change',
    under: 'snapshot',
    summary: 'Recipes for sandboxes that start with their work done and their processes running',
    fallback: 'ls',
    subverbs: [
      {
        name: 'build',
        summary: 'Build a template from a TOML file; the one before serves until it is ready',
        examples: [
          { line: 'hutch template build web.toml', about: 'then: hutch run --template web -- curl localhost:8000' },
          { line: 'hutch template build --name web -', about: 'the file on stdin' },
        ],
        flags: [
          { name: 'name', value: 'NAME', about: 'How it is called, instead of what the file says' },
          { name: 'scrub', about: 'Run /etc/hutch/scrub.d/* in it before it is written down' },
          { name: 'no-cache', about: 'Do every step' },
          { name: 'progress', value: 'HOW', choices: ['plain', 'tty', 'json'], about: 'plain, tty or json (a line for each that is said)' },
          { name: 'quiet', short: 'q', about: 'Only its name and digest' },
        ],
        positionals: [{ name: 'FILE', takes: 'one', completes: 'path' }],
        notes:
          'An interrupt cancels it and cleans up. Its log is kept: hutch image builds, hutch image build-logs. The file: docs/templates.md.\nIt is built anew by itself when the kernel, the agent, the emulator or the processor are others.',
        load: async () => (await templates()).build,
      },
      {
        name: 'ls',
        summary: 'List templates',
        examples: [{ line: 'hutch template ls', about: '' }],
        flags: [{ name: 'quiet', short: 'q', about: 'Only ids' }],
        positionals: [],
        load: async () => (await templates()).list,
      },
      {
        name: 'inspect',
        summary: 'Show everything about templates',
        examples: [{ line: 'hutch template inspect web', about: '' }],
        flags: [],
        positionals: [TEMPLATES],
        load: async () => (await templates()).inspect,
      },
      {
        name: 'set',
        summary: 'Say how many sandboxes of templates are kept ready',
        examples: [
          { line: 'hutch template set --warm 4..16 web', about: 'four always, up to sixteen while they are asked for' },
          { line: 'hutch template set --warm 0 web', about: 'none: those that wait go' },
        ],
        flags: [{ name: 'warm', value: 'MIN..MAX', about: 'How many; one number is both' }],
        positionals: [TEMPLATES],
        notes: 'They are nobody’s, and cost nothing, until they are handed out. They are made when this machine has room for them.',
        load: async () => (await templates()).set,
      },
      {
        name: 'rm',
        summary: 'Remove templates; refused while sandboxes or snapshots were made from them',
        examples: [
          { line: 'hutch template rm web', about: '' },
          { line: 'hutch template rm --force web', about: 'what was made from it stays' },
        ],
        flags: [{ name: 'force', short: 'f', about: 'Though sandboxes or snapshots were made from them: they stay' }],
        positionals: [TEMPLATES],
        load: async () => (await templates()).remove,
      },
    ],
  },
];
