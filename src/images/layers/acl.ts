// POSIX access control lists, which squashfs has no room for. A file that has one shows its mask where its group's rights
// would stand; without the list that would give the group what only others had, so it gets what the list gives it.

const VERSION = 2;
const HEAD_BYTES = 4;
const ENTRY_BYTES = 8;
const GROUP_OBJECT = 0x04;
const MASK = 0x10;
const RIGHTS = 0o7;

export const ACCESS_ACL = 'system.posix_acl_access';

/** The mode of a file whose list (acl(5), as the kernel has it in an attribute) is not kept. A list that is damaged changes nothing. */
export function modeWithoutAcl(mode: number, acl: Buffer | undefined): number {
  if (acl === undefined || acl.byteLength < HEAD_BYTES || acl.readUInt32LE(0) !== VERSION) return mode;
  let [group, mask]: [number | null, number | null] = [null, null];
  for (let at = HEAD_BYTES; at + ENTRY_BYTES <= acl.byteLength; at += ENTRY_BYTES) {
    const [tag, rights] = [acl.readUInt16LE(at), acl.readUInt16LE(at + 2) & RIGHTS];
    if (tag === GROUP_OBJECT) group = rights;
    if (tag === MASK) mask = rights;
  }
  if (group === null || mask === null) return mode;
  return mode & ~((~(group & mask) & RIGHTS) << 3);
}
