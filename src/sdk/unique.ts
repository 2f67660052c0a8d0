// Ids that no other client makes up. They keep nothing secret, so Math.random will do, which each process
// seeds from the system's entropy: node:crypto takes longer to load than a whole call.

/** 128 bits, in hex. */
export function uniqueId(): string {
  return Array.from({ length: 4 }, () =>
    Math.floor(Math.random() * 2 ** 32)
      .toString(16)
      .padStart(8, '0'),
  ).join('');
}
