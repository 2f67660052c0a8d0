// What the kernel says of a process.
import { readdirSync, readFileSync } from 'node:fs';

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

/** Its private pages: those of files below a directory, as a guest's memory is, and all others. */
export function privateMiBOf(pid: number, dir: string): { readonly below: number; readonly others: number } {
  const sums = { below: 0, others: 0 };
  let part: keyof typeof sums = 'others';
  for (const line of readFileSync(`/proc/${pid}/smaps`, 'utf8').split('\n')) {
    if (/^[0-9a-f]+-[0-9a-f]+ /.test(line)) part = line.includes(` ${dir}/`) ? 'below' : 'others';
    const kib = /^Private_(?:Clean|Dirty):\s+(\d+) kB$/.exec(line)?.[1];
    if (kib !== undefined) sums[part] += (Number(kib) * KIB) / MIB;
  }
  return sums;
}

/** Of the threads that it has now, since each began; /proc/PID/stat counts in steps of 10 ms. */
export function threadsMs(pid: number): number {
  const ofThread = (tid: string): number => {
    const [nanoseconds = '0'] = readFileSync(`/proc/${pid}/task/${tid}/schedstat`, 'utf8').split(' ');
    return Number(nanoseconds) / 1e6;
  };
  return readdirSync(`/proc/${pid}/task`).reduce((sum, tid) => sum + ofThread(tid), 0);
}

/** Of all processors together: milliseconds taken away by the hypervisor that we run under. */
export function stolenMs(): number {
  const [total = ''] = readFileSync('/proc/stat', 'utf8').split('\n', 1);
  return (Number(total.split(/\s+/)[8] ?? 0) * 1000) / TICKS_PER_SECOND;
}
