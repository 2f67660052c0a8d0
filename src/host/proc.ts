// Processes as /proc shows them. A process is its pid and its start time together: a pid alone may
// be another process by now. A zombie counts as gone: it runs nothing.
import { accessSync, constants, readFileSync, statSync } from 'node:fs';
import * as fs from 'node:fs/promises';
import { join } from 'node:path';
import { errnoOf, heed, systemError, throwIfAborted } from './errors.ts';
import type { Host, ProcessRef } from './host.ts';
import type { Operation } from './operation.ts';

/** USER_HZ, which the kernel's ABI fixes at 100 on every architecture that we know. */
const TICK_US = 10_000;
/** Of one sandbox that are looked at; it may have made any number. */
const PROCESSES_MAX = 10_000;
const GONE: ReadonlySet<string> = new Set(['ENOENT', 'ESRCH', 'EACCES', 'EPERM']);

export type ProcessStat = { readonly state: string; readonly startTicks: number; readonly cpuUs: number };

/** Parses /proc/PID/stat. The name in parentheses may hold anything, also `)`: fields count from the last one. */
export function parseStat(text: string): ProcessStat | null {
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
  const [state, userTicks, systemTicks, startTicks] = [fields[0], Number(fields[11]), Number(fields[12]), Number(fields[19])];
  if (state === undefined || !Number.isSafeInteger(startTicks) || !Number.isSafeInteger(userTicks + systemTicks)) return null;
  return { state, startTicks, cpuUs: (userTicks + systemTicks) * TICK_US };
}

// Read synchronously, which for /proc is as quick as a call gets: between the look and the kill
// nothing of ours may run.
function statNow(pid: number): ProcessStat | null {
  try {
    const stat = parseStat(readFileSync(`/proc/${pid}/stat`, 'latin1'));
    return stat === null || stat.state === 'Z' || stat.state === 'X' ? null : stat;
  } catch (error) {
    const errno = errnoOf(error);
    if (errno === 'ENOENT' || errno === 'ESRCH') return null;
    throw error;
  }
}

/** The start time of a pid that may be a zombie already: for a child that was just started. */
export function startTicksOf(pid: number): number | null {
  try {
    return parseStat(readFileSync(`/proc/${pid}/stat`, 'latin1'))?.startTicks ?? null;
  } catch (error) {
    const errno = errnoOf(error);
    if (errno === 'ENOENT' || errno === 'ESRCH') return null;
    throw error;
  }
}

function look(op: Operation, pid: number): ProcessStat | null {
  throwIfAborted(op, `look at process ${pid}`);
  try {
    return statNow(pid);
  } catch (error) {
    throw systemError(op, `look at process ${pid}`, error);
  }
}

export async function processRef(op: Operation, pid: number): Promise<ProcessRef | null> {
  const stat = look(op, pid);
  return stat === null ? null : { pid, startTicks: stat.startTicks };
}

export async function isAlive(op: Operation, ref: ProcessRef): Promise<boolean> {
  return look(op, ref.pid)?.startTicks === ref.startTicks;
}

export async function kill(op: Operation, ref: ProcessRef, signal: Parameters<Host['kill']>[2]): Promise<boolean> {
  if (look(op, ref.pid)?.startTicks !== ref.startTicks) return false;
  try {
    return process.kill(ref.pid, signal);
  } catch (error) {
    if (errnoOf(error) === 'ESRCH') return false;
    throw systemError(op, `send ${signal} to process ${ref.pid}`, error);
  }
}

export async function processUse(op: Operation, ref: ProcessRef): Promise<{ pssBytes: number; cpuUs: number } | null> {
  return heed(op, `measure process ${ref.pid}`, async () => {
    let memory: string;
    try {
      memory = await fs.readFile(`/proc/${ref.pid}/smaps_rollup`, 'latin1');
    } catch (error) {
      const errno = errnoOf(error);
      if (errno === 'ENOENT' || errno === 'ESRCH') return null;
      throw error;
    }
    const stat = look(op, ref.pid); // after the memory: the figures are of this process or of none
    if (stat?.startTicks !== ref.startTicks) return null;
    const pssKiB = Number(/^Pss:\s+(\d+) kB$/m.exec(memory)?.[1] ?? 0);
    return { pssBytes: pssKiB * 1024, cpuUs: stat.cpuUs };
  });
}

/** Reads /proc/PID/io, see proc(5): what the process and its children that were waited for moved; null when it does not say. */
export function parseIo(text: string): { readBytes: number; writtenBytes: number } | null {
  const count = (name: string) => Number(new RegExp(`^${name}: (\\d+)$`, 'm').exec(text)?.[1] ?? Number.NaN);
  const [readBytes, writtenBytes] = [count('read_bytes'), count('write_bytes')];
  return Number.isSafeInteger(readBytes) && Number.isSafeInteger(writtenBytes) ? { readBytes, writtenBytes } : null;
}

export async function processTraffic(op: Operation, ref: ProcessRef): Promise<{ readBytes: number; writtenBytes: number } | null> {
  return heed(op, `measure process ${ref.pid}`, async () => {
    const sum = { readBytes: 0, writtenBytes: 0 };
    // A parent before its children: one that ends on the way is not counted twice.
    for (const pids = [ref.pid], seen = new Set<number>(); pids.length > 0 && seen.size < PROCESSES_MAX; ) {
      const pid = pids.pop() ?? 0;
      if (seen.has(pid)) continue;
      seen.add(pid);
      const own = parseIo((await procText(`/proc/${pid}/io`)) ?? '');
      sum.readBytes += own?.readBytes ?? 0;
      sum.writtenBytes += own?.writtenBytes ?? 0;
      if (own === null && pid === ref.pid) return null;
      for (const task of await tasksOf(pid))
        pids.push(...((await procText(`/proc/${pid}/task/${task}/children`)) ?? '').split(' ').filter(Boolean).map(Number));
    }
    return look(op, ref.pid)?.startTicks === ref.startTicks ? sum : null;
  });
}

/** Null when the process is gone, or not ours to look at. */
async function procText(path: string): Promise<string | null> {
  try {
    return await fs.readFile(path, 'latin1');
  } catch (error) {
    if (GONE.has(errnoOf(error) ?? '')) return null;
    throw error;
  }
}

async function tasksOf(pid: number): Promise<readonly string[]> {
  try {
    return await fs.readdir(`/proc/${pid}/task`);
  } catch (error) {
    if (GONE.has(errnoOf(error) ?? '')) return [];
    throw error;
  }
}

export async function which(op: Operation, searchPath: string, program: string): Promise<string | null> {
  throwIfAborted(op, `look for ${program}`);
  const candidates = program.includes('/')
    ? [program]
    : searchPath
        .split(':')
        .filter((dir) => dir.startsWith('/'))
        .map((dir) => join(dir, program));
  return candidates.find(isExecutable) ?? null;
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return statSync(path).isFile();
  } catch {
    return false; // absent, or not for us: the next directory may have it
  }
}
