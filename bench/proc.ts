// What the kernel says of a process.
import { readFileSync } from 'node:fs';

const KIB = 1024;
const MIB = 2 ** 20;
/** USER_HZ: the unit of times in /proc/PID/stat on every architecture that Linux has today. */
const TICKS_PER_SECOND = 100;

export type Memory = { readonly pssMiB: number; readonly privateMiB: number; readonly residentMiB: number };

export function memoryOf(pid: number): Memory {
  const text = readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8');
  const of = (name: string): number => (Number(new RegExp(`^${name}:\\s+(\\d+) kB$`, 'm').exec(text)?.[1] ?? 0) * KIB) / MIB;
  return { pssMiB: of('Pss'), privateMiB: of('Private_Clean') + of('Private_Dirty'), residentMiB: of('Rss') };
}

/** All of its threads, since it began. */
export function cpuMs(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return ((Number(fields[11]) + Number(fields[12])) * 1000) / TICKS_PER_SECOND;
}

/** Of all processors together: milliseconds taken away by the hypervisor that we run under. */
export function stolenMs(): number {
  const [total = ''] = readFileSync('/proc/stat', 'utf8').split('\n', 1);
  return (Number(total.split(/\s+/)[8] ?? 0) * 1000) / TICKS_PER_SECOND;
}
