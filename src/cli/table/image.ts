// Verbs about images.
import type { Positional, Verb } from '../verb.ts';

const builds = async () => await import('../verbs/build.ts');
const images = async () => await import('../verbs/image.ts');
const BUILD: Positional = { name: 'BUILD', takes: 'several', completes: 'nothing' };
const IMAGE: Positional = { name: 'IMAGE', takes: 'one', completes: 'image' };
const IMAGES: Positional = { name: 'IMAGE', takes: 'several', completes: 'image' };

/** Flags of `docker build` that are no flags here, and what is done in their place. */
const FROM_DOCKER_BUILD: Readonly<Record<string, string>> = {
  load: 'leave it away: the image is here when the build is done',
  push: 'give it a name with -t; then: hutch image push NAME',
  output: 'the image first; then: hutch image export -o FILE IMAGE',
  o: 'the image first; then: hutch image export -o FILE IMAGE',
  rm: 'leave it away: nothing is left of a RUN',
  'force-rm': 'leave it away: nothing is left of a RUN',
  network: 'leave it away, or write RUN --network=none for the commands that shall have none',
  'add-host': 'write to /etc/hosts in the RUN that needs it',
  ssh: 'lend a key as a secret: --secret id=key,src=FILE and RUN --mount=type=secret,id=key',
  'build-context': 'put it into the context, or build it first: COPY --from=IMAGE takes files of any image',
  'cache-from': 'leave it away: what was built here before is found by its content',
  'cache-to': 'leave it away: what is built is kept here by itself',
  'metadata-file': 'take --iidfile FILE for the digest, or --json for all of it',
  sbom: 'of the image, when it is built: hutch image sbom IMAGE',
};

const NEVER_ASKS = 'leave it away: nobody is asked; what is in use is refused, with who uses it';
const NAMED_STAY = 'an image that has a name goes by that: hutch image rm NAME';

export const imageVerbs: readonly Verb[] = [
  {
    name: 'image',
    group: 'Machine',
    summary: 'Pull images from registries, and look after those that are here',
    fallback: 'ls',
    subverbs: [
      {
        name: 'ls',
        summary: 'List images',
        examples: [{ line: 'hutch image ls', about: '' }],
        flags: [{ name: 'quiet', short: 'q', about: 'Only ids' }],
        positionals: [],
        load: async () => (await images()).list,
      },
      {
        name: 'pull',
        summary: 'Pull images; a name that has moved on is pulled anew',
        examples: [
          { line: 'hutch image pull python:3.13-slim', about: 'from Docker Hub' },
          { line: 'hutch image pull registry.example:5000/team/web@sha256:…', about: 'exactly this one' },
        ],
        flags: [],
        positionals: [{ name: 'NAME', takes: 'several', completes: 'nothing' }],
        notes: 'hutch run --image NAME pulls by itself what is not here.',
        foreign: {
          platform: 'leave it away: what is pulled is for linux/amd64, which runs here',
          ...{ q: 'leave it away: only the digest is on stdout', quiet: 'leave it away: only the digest is on stdout' },
        },
        load: async () => (await images()).pull,
      },
      {
        name: 'push',
        summary: 'Push an image to its registry, or to another',
        examples: [
          { line: 'hutch image push registry.example:5000/team/web:1', about: 'to where its name says' },
          { line: 'hutch image push web:1 ghcr.io/owner/web:1', about: 'under another name' },
        ],
        flags: [],
        positionals: [IMAGE, { name: 'NAME', takes: 'optional', completes: 'nothing' }],
        notes: 'Layers that are there already are not sent again. Prints the digest by which it can be pulled.',
        load: async () => (await images()).push,
      },
      {
        name: 'import',
        summary: 'Import images from a file: docker save, an OCI layout, a root file system, or a disk image',
        examples: [
          { line: 'hutch image import web.tar.gz', about: 'under the names that are in it' },
          { line: 'docker save web:1 | hutch image import -', about: '' },
          { line: 'hutch image import --name base:1 rootfs.tar.zst', about: 'a root file system has no name of its own' },
          {
            line: 'hutch image import --name debian:vm debian-12-generic.qcow2',
            about: 'the ext4 file system on a disk, raw or qcow2; nothing is mounted',
          },
        ],
        flags: [{ name: 'name', value: 'NAME', about: 'How the image is called, instead of what the file says' }],
        positionals: [{ name: 'FILE', takes: 'one', completes: 'path' }],
        load: async () => (await images()).importFile,
      },
      {
        name: 'export',
        summary: 'Write images to a file that docker load takes, and kernels with them',
        examples: [
          { line: 'hutch image export -o web.tar web:1', about: '' },
          { line: 'hutch image export web:1 > web.tar', about: '' },
          {
            line: 'hutch image export -o all.tar --kernel 6.1 web:1 db:2',
            about: 'for a machine without a network: hutch image import all.tar',
          },
        ],
        flags: [
          { name: 'output', short: 'o', value: 'FILE', about: 'Write to this file, whole or not at all; otherwise to stdout' },
          { name: 'kernel', value: 'KERNEL', repeats: true, about: 'A kernel of hutch kernel ls, which goes with them' },
        ],
        positionals: [{ name: 'IMAGE', takes: 'any', completes: 'image' }],
        load: async () => (await images()).exportFile,
      },
      {
        name: 'register',
        summary: 'Make an image of files that lie on this machine already, and leave them there',
        examples: [
          { line: 'hutch image register base:1 /srv/images/base.squashfs', about: 'used where it lies; others are packed once' },
          { line: 'hutch image register --kernel-ref 6.1 base:1 /srv/rootfs', about: 'a directory, with a kernel of hutch kernel ls' },
          {
            line: 'hutch image register --kernel bzImage --modules lib/modules/6.9.1 --initrd initrd.img dev:1 rootfs.ext4',
            about: 'with a kernel of its own; then: hutch run --image dev:1 -- sh',
          },
        ],
        flags: [
          { name: 'kernel', value: 'FILE', about: 'What its virtual machines boot: a bzImage or vmlinux' },
          { name: 'modules', value: 'DIR', about: 'Where the modules.order of that kernel lies' },
          { name: 'initrd', value: 'FILE', about: 'Is unpacked before Hutch’s own, whose files win' },
          { name: 'kernel-ref', value: 'KERNEL', about: 'A kernel that is here, instead of --kernel' },
        ],
        positionals: [
          { name: 'NAME', takes: 'one', completes: 'nothing' },
          { name: 'ROOTFS', takes: 'one', completes: 'path' },
        ],
        notes:
          'ROOTFS is a directory, a squashfs or ext2/3/4 file system, a disk image (raw or qcow2) or a tar archive. The files stay yours; a start is refused once they are not what they were. hutch image promote makes copies that are Hutch’s.',
        load: async () => (await images()).register,
      },
      {
        name: 'promote',
        summary: 'Copy what registered images are made of, so that they are Hutch’s own',
        examples: [{ line: 'hutch image promote dev:1', about: 'the same image, also for sandboxes that have it; your files may go' }],
        flags: [],
        positionals: [IMAGES],
        load: async () => (await images()).promote,
      },
      {
        name: 'build',
        also: 'build',
        summary: 'Build an image from a Dockerfile, each RUN in a sandbox',
        examples: [
          { line: 'hutch build -t web:1 .', about: 'the Dockerfile in this directory; then: hutch run --image web:1' },
          { line: 'hutch build --target test --build-arg VERSION=2 .', about: 'only that stage, with that value' },
          { line: 'hutch build --secret id=token,src=token.txt .', about: 'for RUN --mount=type=secret,id=token; in no layer' },
          {
            line: 'hutch build -t web:1 https://github.com/owner/web.git#main:docker',
            about: 'a branch and a directory of a git repository; DIR#BRANCH is one here',
          },
          { line: 'cat Dockerfile | hutch build -t web:1 -', about: 'without a context; a tar archive on stdin is one' },
          { line: 'hutch image build-logs -f $(hutch build -d -t web:1 .)', about: 'a build that goes on without you, and back to it' },
        ],
        flags: [
          { name: 'file', short: 'f', value: 'FILE', about: 'The Dockerfile; - is stdin. Default: Dockerfile in the context' },
          { name: 'tag', short: 't', value: 'NAME', repeats: true, about: 'A name for the image, like web:1' },
          { name: 'build-arg', value: 'K=V', repeats: true, about: 'The value of an ARG; K alone takes our own variable' },
          { name: 'target', value: 'STAGE', about: 'Build this stage; default the last one' },
          {
            name: 'secret',
            value: 'id=ID,src=FILE',
            repeats: true,
            about: 'A secret for RUN --mount=type=secret; env=NAME takes a variable',
          },
          { name: 'label', value: 'K=V', repeats: true, about: 'A label of the image, as LABEL after the last step' },
          { name: 'platform', value: 'PLATFORM', about: 'What it is to run on: linux/amd64 alone is built' },
          { name: 'pull', about: 'Ask registries anew for the images of FROM and --from' },
          { name: 'no-cache', about: 'Do every step' },
          { name: 'no-package-settings', about: 'RUN does not see this machine’s proxies, mirrors and certificates' },
          { name: 'progress', value: 'HOW', choices: ['plain', 'tty', 'json'], about: 'plain, tty or json (a line for each that is said)' },
          { name: 'quiet', short: 'q', about: 'Only the digest of the image' },
          { name: 'iidfile', value: 'FILE', about: 'Write the digest of the image to this file' },
          { name: 'detach', short: 'd', about: 'Print the id of the build once the context is sent, and leave it to itself' },
          { name: 'backend', value: 'NAME', choices: ['gvisor', 'qemu'], about: 'What runs RUN: gvisor or qemu' },
          { name: 'cpus', value: 'N', about: 'Virtual CPUs of RUN' },
          { name: 'memory', short: 'm', value: 'SIZE', about: 'Memory of RUN, like 512M or 2G' },
          { name: 'disk', value: 'SIZE', about: 'Disk of RUN, like 8G' },
        ],
        positionals: [{ name: 'CONTEXT', takes: 'one', completes: 'path' }],
        notes:
          'An interrupt cancels the build and cleans up. What was built is cached: the next build begins at the first step that changed.',
        foreign: FROM_DOCKER_BUILD,
        load: async () => (await builds()).build,
      },
      {
        name: 'builds',
        summary: 'List builds',
        examples: [{ line: 'hutch image builds', about: '' }],
        flags: [{ name: 'quiet', short: 'q', about: 'Only ids' }],
        positionals: [],
        load: async () => (await builds()).builds,
      },
      {
        name: 'build-logs',
        summary: 'Show what a build said',
        examples: [
          { line: 'hutch image build-logs -f bld7k', about: 'until it ends, and with the exit code that hutch build would have' },
          { line: 'hutch image build-logs -f --after 120 bld7k', about: 'go on after line 120: the cursor that --json gives' },
        ],
        flags: [
          { name: 'follow', short: 'f', about: 'Go on until it ends' },
          { name: 'after', value: 'N', about: 'Only what was said after this line' },
        ],
        positionals: [{ ...BUILD, takes: 'one' }],
        load: async () => (await builds()).buildLogs,
      },
      {
        name: 'build-inspect',
        summary: 'Show everything about builds: what they do now, how far they are, or why they failed',
        examples: [{ line: 'hutch image build-inspect bld7k', about: '' }],
        flags: [],
        positionals: [BUILD],
        load: async () => (await builds()).buildInspect,
      },
      {
        name: 'build-cancel',
        summary: 'End builds that run, and clean up after them',
        examples: [{ line: 'hutch image build-cancel bld7k', about: '' }],
        flags: [],
        positionals: [BUILD],
        load: async () => (await builds()).buildCancel,
      },
      {
        name: 'build-rm',
        summary: 'Forget builds and their logs; their images stay',
        examples: [{ line: 'hutch image build-rm bld7k', about: '' }],
        flags: [],
        positionals: [BUILD],
        load: async () => (await builds()).buildRemove,
      },
      {
        name: 'inspect',
        summary: 'Show everything about images',
        examples: [{ line: 'hutch image inspect python:3.13-slim', about: '' }],
        flags: [],
        positionals: [IMAGES],
        load: async () => (await images()).inspect,
      },
      {
        name: 'history',
        summary: 'Show how an image was made, as it says itself',
        examples: [{ line: 'hutch image history python:3.13-slim', about: '' }],
        flags: [],
        positionals: [IMAGE],
        load: async () => (await images()).history,
      },
      {
        name: 'sbom',
        summary: 'Print what an image is made of, as SPDX: the packages that dpkg, apk, pip and npm name in it',
        examples: [{ line: 'hutch image sbom python:3.13-slim > python.spdx.json', about: '' }],
        flags: [],
        positionals: [IMAGE],
        notes:
          'Read from the image’s own databases; nothing of it is run. Of rpm that is the database in SQLite\n(since 2020); an older one is named, and not read.',
        load: async () => (await images()).sbom,
      },
      {
        name: 'commit',
        summary: 'Keep the disk of a sandbox as an image, where its backend can: on Docker',
        examples: [{ line: 'hutch image commit dev base:2', about: 'then: hutch run --backend docker --image base:2' }],
        flags: [{ name: 'with-files', about: 'Also where files of yours were put into it (file_sync, --sync): the image has them then' }],
        positionals: [
          { name: 'SANDBOX', takes: 'one', completes: 'sandbox' },
          { name: 'NAME', takes: 'any', completes: 'nothing' },
        ],
        load: async () => (await images()).commit,
      },
      {
        name: 'tag',
        summary: 'Give an image one more name',
        examples: [{ line: 'hutch image tag python:3.13-slim base:1', about: 'another image named base:1 loses that name' }],
        flags: [],
        positionals: [IMAGE, { name: 'NAME', takes: 'one', completes: 'nothing' }],
        load: async () => (await images()).tag,
      },
      {
        name: 'rm',
        summary: 'Remove images; by one of several names, only that name',
        examples: [{ line: 'hutch image rm python:3.13-slim', about: 'refused, with their names, while sandboxes use it' }],
        flags: [],
        foreign: { f: NEVER_ASKS, force: NEVER_ASKS },
        positionals: [IMAGES],
        load: async () => (await images()).remove,
      },
      {
        name: 'df',
        summary: 'Show what images and layers take of the disk',
        examples: [{ line: 'hutch image df', about: '' }],
        flags: [],
        positionals: [],
        load: async () => (await images()).usage,
      },
      {
        name: 'prune',
        summary: 'Remove images without a name and a user, and layers of no image',
        examples: [
          { line: 'hutch image prune --dry-run', about: 'only say what would go' },
          { line: 'hutch image prune --stale --dry-run', about: 'what the daemon is about to remove by itself, and why' },
          { line: 'hutch image prune --layers', about: 'all layers: they are pulled again where they are wanted' },
        ],
        flags: [
          { name: 'dry-run', about: 'Remove nothing' },
          { name: 'layers', about: 'All layers, those of images that stay too' },
          {
            name: 'stale',
            about:
              'Only what the daemon removes by itself: what nothing has used for retention.cache, or is more than retention.cache_size',
          },
        ],
        foreign: { ...{ f: NEVER_ASKS, force: NEVER_ASKS }, ...{ a: NAMED_STAY, all: NAMED_STAY } },
        positionals: [],
        load: async () => (await images()).prune,
      },
      {
        name: 'verify',
        summary: 'Compare images on disk with their digests',
        examples: [{ line: 'hutch image verify python:3.13-slim', about: '' }],
        flags: [],
        positionals: [IMAGES],
        load: async () => (await images()).verify,
      },
      {
        name: 'login',
        also: 'login',
        summary: 'Log in to a registry; docker login is the same login',
        examples: [
          { line: 'hutch login ghcr.io -u me --password-stdin', about: 'from a file or a pipe' },
          { line: 'hutch login -u me', about: 'to Docker Hub; asks for the password' },
        ],
        flags: [
          { name: 'username', short: 'u', value: 'NAME', about: 'Who you are there' },
          { name: 'password-stdin', about: 'Read the password from stdin' },
        ],
        positionals: [{ name: 'REGISTRY', takes: 'optional', completes: 'nothing' }],
        notes: 'Kept by the daemon’s user where Docker keeps it: a credential helper, else ~/.docker/config.json.',
        foreign: {
          p: 'write it to --password-stdin: all of this machine may read what stands in a command',
          password: 'write it to --password-stdin: all of this machine may read what stands in a command',
        },
        load: async () => (await images()).login,
      },
      {
        name: 'logout',
        also: 'logout',
        summary: 'Forget the login for a registry',
        examples: [{ line: 'hutch logout ghcr.io', about: '' }],
        flags: [],
        positionals: [{ name: 'REGISTRY', takes: 'optional', completes: 'nothing' }],
        load: async () => (await images()).logout,
      },
    ],
  },
];
