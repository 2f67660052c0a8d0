// What an image of a user's files says of itself: its digest is over these bytes, and so over what it is made of.
import * as z from 'zod';

export type Described = {
  /** Of the file system that guests mount. */
  readonly rootSha256: string;
  /** Of what it was packed from; the same where it is mounted as it was given. */
  readonly givenSha256: string;
  /** `sha256:…` of the kernel that it boots. */
  readonly kernel: string | null;
  readonly initrdSha256: string | null;
};

const hex64 = z.string().regex(/^[0-9a-f]{64}$/);
const digest = z.string().regex(/^sha256:[0-9a-f]{64}$/);
const schema = z.object({
  rootfs: z.object({ diff_ids: z.tuple([digest]) }),
  hutch: z.object({ kernel: digest.nullable(), initrd: hex64.nullable(), root: hex64.optional() }),
});

export function describe({ rootSha256, givenSha256, kernel, initrdSha256 }: Described): Buffer {
  return Buffer.from(
    JSON.stringify({
      architecture: 'amd64',
      os: 'linux',
      config: {},
      rootfs: { type: 'layers', diff_ids: [`sha256:${givenSha256}`] },
      history: [{ created_by: 'hutch image register' }],
      hutch: { kernel, initrd: initrdSha256, ...(rootSha256 === givenSha256 ? {} : { root: rootSha256 }) },
    }),
  );
}

/** `rootSha256` is that of what was given where an older release packed it and did not say into what. Null: it is none of these. */
export function parseDescription(bytes: Uint8Array): Described | null {
  const parsed = schema.safeParse(jsonOf(bytes));
  if (!parsed.success) return null;
  const { rootfs, hutch } = parsed.data;
  const givenSha256 = rootfs.diff_ids[0].slice('sha256:'.length);
  return { rootSha256: hutch.root ?? givenSha256, givenSha256, kernel: hutch.kernel, initrdSha256: hutch.initrd };
}

function jsonOf(bytes: Uint8Array): unknown {
  try {
    return JSON.parse(Buffer.from(bytes).toString());
  } catch {
    return null;
  }
}
