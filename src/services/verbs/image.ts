// Images: those that were pulled or imported, and the one that Hutch makes.
import { z } from 'zod';
import * as view from '../views.ts';
import { flag, none, ref } from './fields.ts';
import type { Verb } from './verb.ts';

const REFERENCE_CHARS_MAX = 512;
const image = z.string().min(1).max(REFERENCE_CHARS_MAX).describe('an id, a digest, a name, or a unique prefix of an id');
const name = z
  .string()
  .min(1)
  .max(REFERENCE_CHARS_MAX)
  .describe('like web:1 or registry.example/team/web:1; without a tag latest is meant');
const registry = z.string().min(1).max(261).describe('like ghcr.io or registry.example:5000; docker.io is Docker Hub');
const path = z.string().min(1).max(4_096).describe('on the machine of the daemon, absolute; a link is followed once, now');
const imageTarget = z.strictObject({ image });

export const imageVerbs = {
  'image.list': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/images',
    summary: 'List images',
    input: none,
    output: z.object({ images: z.array(view.image) }),
    errors: [],
    idempotent: true,
    reads: true,
  },
  'image.get': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/images/{image}',
    summary: 'Show an image',
    input: imageTarget,
    output: view.imageDetail,
    errors: ['not_found', 'conflict', 'failed_precondition'],
    idempotent: true,
    reads: true,
  },
  'image.pull': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/images/pull',
    summary: 'Pull an image from its registry; one that is there is looked for anew',
    input: z.strictObject({ name }),
    output: view.image,
    errors: ['not_found', 'permission_denied', 'failed_precondition', 'resource_exhausted'],
    idempotent: true,
    reads: false,
  },
  'image.push': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/images/{image}/push',
    summary: 'Push an image to a registry; what is there already is not sent again',
    input: imageTarget.extend({ name: name.optional().describe('where to; without one, the name that it was called by') }),
    output: z.object({
      name: z.string(),
      digest: z.string().describe('of the manifest: what it can be pulled by from now on'),
      blobs: z.array(
        z.object({
          digest: z.string(),
          sizeBytes: z.number(),
          how: z.enum(['existed', 'mounted', 'uploaded']).describe('mounted: taken from another repository of the registry'),
        }),
      ),
    }),
    errors: ['not_found', 'conflict', 'permission_denied', 'failed_precondition', 'resource_exhausted', 'unavailable'],
    idempotent: true,
    reads: false,
  },
  'image.import': {
    kind: 'upload',
    method: 'PUT',
    path: '/v1/images',
    summary:
      'Import images: an archive of docker save, an OCI layout, a root file system as tar, or a disk image with ext4 on it (raw or qcow2), packed or not',
    input: z.strictObject({ name: name.optional() }),
    output: z.object({
      images: z.array(view.image),
      kernels: z
        .array(z.object({ id: z.string(), digest: z.string(), version: z.string() }))
        .describe('those that image.bundle put beside'),
    }),
    errors: ['failed_precondition', 'resource_exhausted'],
    idempotent: true,
    reads: false,
  },
  'image.register': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/images/register',
    summary: 'Make an image of files that lie on this machine; they stay the user’s, and each start looks whether they have changed',
    input: z.strictObject({
      name,
      rootfs: path.describe('a directory, a squashfs or ext2/3/4 file system, a disk image (raw or qcow2), or a tar archive'),
      kernel: path.optional().describe('a bzImage or vmlinux that its virtual machines boot'),
      modules: path.optional().describe('where the modules.order of that kernel lies'),
      initrd: path.optional().describe('is unpacked before Hutch’s own, whose files win; goes with that kernel only'),
      kernelRef: z.string().min(1).max(128).optional().describe('instead of kernel: one that is here'),
    }),
    output: view.image,
    errors: ['invalid_argument', 'not_found', 'conflict', 'permission_denied', 'failed_precondition', 'resource_exhausted'],
    idempotent: true,
    reads: false,
  },
  'image.promote': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/images/{image}/promote',
    summary: 'Copy what a registered image is made of: from then on it is Hutch’s own, and the same image',
    input: imageTarget,
    output: view.image,
    errors: ['not_found', 'conflict', 'permission_denied', 'failed_precondition', 'resource_exhausted'],
    idempotent: true,
    reads: false,
  },
  'image.export': {
    kind: 'download',
    method: 'GET',
    path: '/v1/images/{image}/export',
    summary: 'An image as a tar archive that docker load takes, and that is an OCI layout',
    input: imageTarget,
    output: z.any(),
    errors: ['not_found', 'conflict', 'failed_precondition'],
    idempotent: true,
    reads: true,
  },
  'image.bundle': {
    kind: 'download',
    method: 'GET',
    path: '/v1/image-bundle',
    summary: 'Images and kernels as one tar archive, for a machine without a network; image.import takes it',
    input: z.strictObject({
      image: z
        .union([image, z.array(image).max(64)])
        .optional()
        .describe('several are said several times'),
      kernel: z.union([z.string().min(1).max(128), z.array(z.string().min(1).max(128)).max(16)]).optional(),
    }),
    output: z.any(),
    errors: ['invalid_argument', 'not_found', 'conflict', 'failed_precondition'],
    idempotent: true,
    reads: true,
  },
  'image.history': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/images/{image}/history',
    summary: 'How an image was made, as it says itself, the newest step first',
    input: imageTarget,
    output: z.object({
      steps: z.array(
        z.object({
          created: z.string().nullable(),
          createdBy: z.string(),
          comment: z.string().nullable(),
          sizeBytes: z.number().describe('of its layer, as it came; 0: the step changed no file'),
        }),
      ),
    }),
    errors: ['not_found', 'conflict', 'failed_precondition'],
    idempotent: true,
    reads: true,
  },
  'image.sbom': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/images/{image}/sbom',
    summary: 'What an image is made of: the packages of dpkg, apk, pip and npm in it, as SPDX 2.3',
    input: imageTarget,
    output: z.record(z.string(), z.unknown()),
    errors: ['not_found', 'conflict', 'failed_precondition', 'resource_exhausted'],
    idempotent: true,
    reads: true,
  },
  'image.commit': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/images/commit',
    summary: 'Keep the disk of a sandbox as an image, where its backend can; the sandbox goes on',
    input: z.strictObject({
      ref,
      name: name.optional(),
      withFiles: z.boolean().optional().describe('Also where files of its owner were put into the sandbox, which the image then has'),
    }),
    output: view.image,
    errors: ['not_found', 'conflict', 'failed_precondition', 'resource_exhausted'],
    idempotent: false,
    reads: false,
  },
  'image.tag': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/images/{image}/tag',
    summary: 'Give an image one more name; another image that has it loses it',
    input: imageTarget.extend({ name }),
    output: view.image,
    errors: ['not_found', 'conflict'],
    idempotent: true,
    reads: false,
  },
  'image.remove': {
    kind: 'unary',
    method: 'DELETE',
    path: '/v1/images/{image}',
    summary: 'Remove an image; by one of several names, only that name',
    input: imageTarget,
    output: z.object({ id: z.string(), removed: z.boolean().describe('false: it has other names, and stays'), names: z.array(z.string()) }),
    errors: ['not_found', 'conflict', 'failed_precondition'],
    idempotent: false,
    reads: false,
  },
  'image.usage': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/image-usage',
    summary: 'What images and layers take of the disk',
    input: none,
    output: z.object({
      images: view.diskUse.describe('file systems that sandboxes boot; reclaimable: those of images that have no name and no user'),
      layers: view.diskUse.describe('as they came, kept for later pulls and for export; reclaimable: those of no image and no build'),
      buildCache: view.diskUse.describe('layers that only later builds need: their steps are done again without them'),
      unpacked: view.diskUse.describe(
        'what gVisor has unpacked of images, and a Docker Engine was given; reclaimable: of those that are no more',
      ),
    }),
    errors: [],
    idempotent: true,
    reads: true,
  },
  'image.prune': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/images/prune',
    summary: 'Remove images that have neither a name nor a user, and layers that belong to no image',
    input: z.strictObject({
      dryRun: flag.optional().describe('only say what would go'),
      layers: flag.optional().describe('all layers: they are pulled again where they are wanted'),
      stale: flag.optional().describe('only what the daemon removes by itself: what nothing has used for long, or is more than the bound'),
    }),
    output: z.object({
      images: z.array(z.object({ id: z.string(), digest: z.string(), sizeBytes: z.number(), why: z.string() })),
      layers: z.array(z.object({ digest: z.string(), sizeBytes: z.number(), why: z.string() })),
      unpacked: z
        .array(z.object({ digest: z.string(), sizeBytes: z.number(), why: z.string() }))
        .describe('by gVisor, or given to a Docker Engine, of images that are no more'),
      mounts: z.array(z.object({ name: z.string(), sizeBytes: z.number(), why: z.string() })).describe('cache mounts of builds'),
      bytes: z.number(),
    }),
    errors: [],
    idempotent: true,
    reads: false,
  },
  'image.verify': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/images/{image}/verify',
    summary: 'Read an image and its layers, and compare them with their digests',
    input: imageTarget,
    output: z.object({ id: z.string(), digest: z.string(), files: z.int() }),
    errors: ['not_found', 'conflict', 'failed_precondition'],
    idempotent: true,
    reads: true,
  },
  'image.login': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/registries/login',
    summary: 'Try a login for a registry, and keep it where Docker keeps it',
    input: z.strictObject({ registry, username: z.string().min(1).max(256), password: z.string().min(1).max(65_536) }),
    output: z.object({ registry: z.string(), keptIn: z.string() }),
    errors: ['permission_denied', 'failed_precondition'],
    idempotent: true,
    reads: false,
  },
  'image.logout': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/registries/logout',
    summary: 'Forget the login for a registry',
    input: z.strictObject({ registry }),
    output: z.object({ registry: z.string(), wasKept: z.boolean() }),
    errors: ['failed_precondition'],
    idempotent: true,
    reads: false,
  },
} as const satisfies Record<string, Verb>;
