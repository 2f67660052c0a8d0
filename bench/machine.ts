// Which machine this was, and whether it was quiet enough: a fixed piece of work, timed many times,
// must take about as long each time.
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { availableParallelism, cpus, totalmem } from 'node:os';
import { figures } from './harness.ts';
import { stolenMs } from './proc.ts';

const SPIN_ROUNDS = 4_000_000;
const SPINS = 40;
const SPREAD_MAX = 1.5;
const LOAD_MAX = 0.75;

export type Facts = {
  readonly processor: string;
  readonly processors: number;
  readonly memoryGiB: number;
  readonly kernel: string;
  readonly node: string;
  readonly qemu: string;
  readonly commit: string;
  readonly takenAt: string;
};

export function machineFacts(): Facts {
  const said = (program: string, ...args: string[]): string => spawnSync(program, args, { encoding: 'utf8' }).stdout?.trim() ?? '';
  const changed = said('git', 'status', '--porcelain', '--', 'src', 'rust', 'prebuilt') === '' ? '' : ', with changes';
  return {
    processor: cpus()[0]?.model.trim() ?? 'unknown',
    processors: availableParallelism(),
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    kernel: said('uname', '-sr'),
    node: process.version,
    qemu: /version (\S+)/.exec(said('qemu-system-x86_64', '--version'))?.[1] ?? 'unknown',
    commit: `${said('git', 'rev-parse', '--short', 'HEAD')}${changed}`,
    takenAt: `${new Date().toISOString().slice(0, 16)}Z`,
  };
}

export type Noise = { readonly noisy: boolean; readonly sentence: string };

/** Takes about a second. */
export function listenForNoise(): Noise {
  const stolen = stolenMs();
  const began = performance.now();
  const taken = Array.from({ length: SPINS }, () => spinMs());
  const tookMs = performance.now() - began;
  const { median, p10, p90 } = figures(taken);
  const spread = p90 / p10;
  const load = Number(readFileSync('/proc/loadavg', 'utf8').split(' ')[0]) / availableParallelism();
  const stolenShare = ((stolenMs() - stolen) / tookMs) * 100;
  const noisy = spread > SPREAD_MAX || load > LOAD_MAX;
  const sentence = `the same work took ${p10.toFixed(1)} to ${p90.toFixed(1)} ms (median ${median.toFixed(1)}), load ${load.toFixed(2)} per processor, ${stolenShare.toFixed(0)} % stolen`;
  return { noisy, sentence };
}

function spinMs(): number {
  const began = performance.now();
  let value = 1;
  for (let i = 0; i < SPIN_ROUNDS; i += 1) value = (value * 31 + i) | 0;
  if (value === 0.5) throw new Error('unreachable'); // so that the loop is not dropped
  return performance.now() - began;
}
