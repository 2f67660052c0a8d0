// Verbs about images.
import type { Positional, Verb } from '../verb.ts';

const images = async () => await import('../verbs/image.ts');
const IMAGE: Positional = { name: 'IMAGE', takes: 'one', completes: 'image' };
const IMAGES: Positional = { name: 'IMAGE', takes: 'several', completes: 'image' };

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
        summary: 'Write an image to a file that docker load takes',
        examples: [
          { line: 'hutch image export -o web.tar web:1', about: '' },
          { line: 'hutch image export web:1 > web.tar', about: '' },
        ],
        flags: [{ name: 'output', short: 'o', value: 'FILE', about: 'Write to this file, whole or not at all; otherwise to stdout' }],
        positionals: [IMAGE],
        load: async () => (await images()).exportFile,
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
        notes: 'Read from the image’s own databases; nothing of it is run. A database of rpm is named, and not read.',
        load: async () => (await images()).sbom,
      },
      {
        name: 'commit',
        summary: 'Keep the disk of a sandbox as an image, where its backend can: on Docker',
        examples: [{ line: 'hutch image commit dev base:2', about: 'then: hutch run --backend docker --image base:2' }],
        flags: [],
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
          { line: 'hutch image prune --layers', about: 'all layers: they are pulled again where they are wanted' },
        ],
        flags: [
          { name: 'dry-run', about: 'Remove nothing' },
          { name: 'layers', about: 'All layers, those of images that stay too' },
        ],
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
        summary: 'Log in to a registry; docker login is the same login',
        examples: [
          { line: 'hutch image login ghcr.io -u me --password-stdin', about: 'from a file or a pipe' },
          { line: 'hutch image login -u me', about: 'to Docker Hub; asks for the password' },
        ],
        flags: [
          { name: 'username', short: 'u', value: 'NAME', about: 'Who you are there' },
          { name: 'password-stdin', about: 'Read the password from stdin' },
        ],
        positionals: [{ name: 'REGISTRY', takes: 'optional', completes: 'nothing' }],
        notes: 'Kept by the daemon’s user where Docker keeps it: a credential helper, else ~/.docker/config.json.',
        load: async () => (await images()).login,
      },
      {
        name: 'logout',
        summary: 'Forget the login for a registry',
        examples: [{ line: 'hutch image logout ghcr.io', about: '' }],
        flags: [],
        positionals: [{ name: 'REGISTRY', takes: 'optional', completes: 'nothing' }],
        load: async () => (await images()).logout,
      },
    ],
  },
];
