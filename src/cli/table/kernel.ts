// Verbs about the kernels that virtual machines boot.
import type { Positional, Verb } from '../verb.ts';

const kernels = async () => await import('../verbs/kernel.ts');
const KERNELS: Positional = { name: 'KERNEL', takes: 'several', completes: 'nothing' };

export const kernelVerbs: readonly Verb[] = [
  {
    name: 'kernel',
    group: 'Machine',
    under: 'admin',
    summary: 'Kernels that virtual machines boot: get them, choose one, look after them',
    fallback: 'ls',
    subverbs: [
      {
        name: 'ls',
        summary: 'List kernels',
        examples: [
          { line: 'hutch kernel ls', about: '* is what sandboxes boot that name none' },
          { line: 'hutch kernel ls --available', about: 'what the distribution offers' },
        ],
        flags: [
          { name: 'available', about: 'What the distribution’s packages offer' },
          { name: 'quiet', short: 'q', about: 'Only ids' },
        ],
        positionals: [],
        load: async () => (await kernels()).list,
      },
      {
        name: 'pull',
        summary: 'Take kernels from the distribution’s packages',
        examples: [
          { line: 'hutch kernel pull 6.12', about: 'the newest that begins so, made for virtual machines where there is one' },
          { line: 'hutch kernel pull rt', about: 'a flavour' },
          { line: 'hutch kernel pull', about: 'what Hutch takes by itself, in its newest version' },
        ],
        flags: [{ name: 'default', about: 'Sandboxes boot it from now on' }],
        positionals: [{ name: 'VERSION', takes: 'any', completes: 'nothing' }],
        notes: 'Nothing is installed on this machine. apt checks the packages’ signatures.',
        load: async () => (await kernels()).pull,
      },
      {
        name: 'import',
        summary: 'Take a kernel out of a file: a package, an archive, or a bzImage with its modules',
        examples: [
          { line: 'hutch kernel import linux-image-6.1.0-50-cloud-amd64_6.1.178-1_amd64.deb', about: '' },
          { line: 'hutch kernel import arch/x86/boot/bzImage --modules /lib/modules/6.9.1', about: 'one that you built' },
        ],
        flags: [{ name: 'modules', value: 'DIR', about: 'Where its modules.order lies' }],
        positionals: [{ name: 'FILE', takes: 'one', completes: 'path' }],
        notes:
          'It is checked that guests can boot it: a PVH entry, and virtio, squashfs, ext4 and overlay built in or as modules. An archive holds vmlinuz and lib/modules; a bzImage alone needs CONFIG_IKCONFIG and all of it built in.',
        load: async () => (await kernels()).importFile,
      },
      {
        name: 'default',
        summary: 'Choose what sandboxes boot that name no kernel',
        examples: [
          { line: 'hutch kernel default 6.12.117+deb12-cloud-amd64', about: 'sandboxes that exist keep theirs' },
          { line: 'hutch kernel default --reset', about: 'what Hutch chose' },
        ],
        flags: [{ name: 'reset', about: 'Back to the one that Hutch chose' }],
        positionals: [{ name: 'KERNEL', takes: 'optional', completes: 'nothing' }],
        load: async () => (await kernels()).setDefault,
      },
      {
        name: 'inspect',
        summary: 'Show everything about kernels, also what is built in',
        examples: [{ line: 'hutch kernel inspect 6.1.0-56-cloud-amd64', about: '' }],
        flags: [],
        positionals: [KERNELS],
        load: async () => (await kernels()).inspect,
      },
      {
        name: 'rm',
        summary: 'Remove kernels',
        examples: [{ line: 'hutch kernel rm 6.1.0-50-cloud-amd64', about: 'refused, with their names, while sandboxes boot it' }],
        flags: [],
        positionals: [KERNELS],
        load: async () => (await kernels()).remove,
      },
      {
        name: 'verify',
        summary: 'Compare kernels on disk with their digests',
        examples: [{ line: 'hutch kernel verify 6.1.0-56-cloud-amd64', about: '' }],
        flags: [],
        positionals: [KERNELS],
        load: async () => (await kernels()).verify,
      },
    ],
  },
];
