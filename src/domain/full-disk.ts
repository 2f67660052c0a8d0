// What to do where the disk of this machine has no room.

/** The hint of whatever is refused for it. */
export const FULL_DISK_HINT =
  'what takes the room: hutch df; what can go: hutch prune --dry-run, hutch image prune, hutch assets gc --dry-run';
