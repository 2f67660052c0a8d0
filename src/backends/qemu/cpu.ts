// The host's processor: what a saved KVM state depends on, and the frequency of its time stamp
// counter, which a guest under software emulation must be told.
import { createHash } from 'node:crypto';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { HostCpu } from './template-key.ts';

const CPUINFO_BYTES_MAX = 16 * 1024 * 1024;

export async function readHostCpu(op: Operation, host: Host): Promise<HostCpu> {
  const text = new TextDecoder().decode(await host.readFile(op, '/proc/cpuinfo', CPUINFO_BYTES_MAX));
  return parseCpuinfo(text);
}

/** Of the first processor. Pure, for tests. */
export function parseCpuinfo(text: string): HostCpu {
  const [first = ''] = text.split('\n\n');
  const field = (name: string): string => new RegExp(`^${name}\\s*: (.*)$`, 'm').exec(first)?.[1] ?? '';
  const identity = createHash('sha256')
    .update(JSON.stringify(['vendor_id', 'cpu family', 'model', 'stepping', 'microcode', 'flags'].map(field)))
    .digest('hex');
  return { identity, tscKhz: tscKhz(field('flags'), Number(field('cpu MHz')), field('model name')) };
}

/**
 * In a virtual machine `cpu MHz` is the counter's own constant frequency; on bare metal it is the
 * present clock, so there the nominal one in the model's name is taken, where it has one.
 */
function tscKhz(flags: string, mhz: number, model: string): number | null {
  if (/\bhypervisor\b/.test(flags) && mhz > 0) return Math.round(mhz * 1000);
  const ghz = Number(/@ ([0-9.]+)GHz/.exec(model)?.[1]);
  return Number.isFinite(ghz) && ghz > 0 ? Math.round(ghz * 1_000_000) : null;
}
