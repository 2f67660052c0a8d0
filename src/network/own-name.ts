// What is one daemon's alone on a machine that may run others is named after its data directory.
import { createHash } from 'node:crypto';
import type { Bridges } from './bridge.ts';

const USUAL = '/var/lib/hutch';

export function ownName(dataDir: string, separator: '-' | '_'): string {
  if (dataDir === USUAL) return 'hutch';
  return `hutch${separator}${createHash('sha256').update(dataDir).digest('hex').slice(0, 8)}`;
}

/** Of rules for containers; and the bridges that they judge. */
export function bridgeTableOf(dataDir: string): string {
  return `${ownName(dataDir, '_')}_bridge`;
}

export function bridgesOf(dataDir: string): Bridges {
  return bridgesOfTable(bridgeTableOf(dataDir)) as Bridges;
}

/** Null for a table that is none of these. */
export function bridgesOfTable(table: string): Bridges | null {
  const found = /^hutch(?:_([0-9a-f]{8}))?_bridge$/.exec(table);
  if (found === null) return null;
  const [, hash = ''] = found;
  return { internet: `hutch${hash}n`, lan: `hutch${hash}l` };
}
