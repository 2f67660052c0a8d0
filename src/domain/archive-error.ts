// An archive, a layer or a registry's answer that cannot be used. Pure code throws it; whoever has the
// operation makes a HutchError of it that says of what image it is.

export class ArchiveError extends Error {}

/** It ends before its end: whoever sent it may have hung up. */
export class CutOffError extends ArchiveError {
  constructor(message = 'the archive is cut off') {
    super(message);
  }
}

/** A name out of an archive, as it may be shown: no control characters, and not a page of it. */
export function shown(name: string): string {
  const plain = name.replace(/[^\x20-\x7e]/g, '?');
  return plain.length > 100 ? `'${plain.slice(0, 100)}…'` : `'${plain}'`;
}
