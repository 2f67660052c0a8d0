// What a kernel was built with, as far as it decides what runs in a sandbox: read from the configuration
// that a package brings beside it, from the copy that some kernels carry in themselves (CONFIG_IKCONFIG), or,
// of what every guest needs, from the list of modules that are loaded.
import { promisify } from 'node:util';
import { gunzip } from 'node:zlib';
import { DamagedPayload } from './payload-error.ts';

/** Of an option: part of the kernel, a module beside it, or neither. */
export const BUILT = ['builtin', 'module', 'no'] as const;
export type Built = (typeof BUILT)[number];
export type KernelConfig = Readonly<Record<string, Built>>;

/** Those that are recorded; a configuration has ten thousand. */
export const OPTIONS = [
  'VIRTIO',
  'VIRTIO_MMIO',
  'VIRTIO_PCI',
  'VIRTIO_BLK',
  'VIRTIO_NET',
  'VIRTIO_CONSOLE',
  'VIRTIO_BALLOON',
  'VIRTIO_FS',
  'VSOCKETS',
  'SQUASHFS',
  'SQUASHFS_LZ4',
  'EXT4_FS',
  'OVERLAY_FS',
  'EROFS_FS',
  'XFS_FS',
  'BTRFS_FS',
  'FUSE_FS',
  'PVH',
  'KVM_GUEST',
  'HW_RANDOM_VIRTIO',
  'CGROUPS',
  'USER_NS',
  'SECCOMP',
  'BPF_SYSCALL',
  'NF_TABLES',
  'BRIDGE',
  'VETH',
  'TUN',
] as const;

/** The options that a guest cannot do without, and the module that each is in when it is one. */
export const NEEDED: Readonly<Record<string, string>> = {
  VIRTIO_MMIO: 'virtio_mmio',
  VIRTIO_CONSOLE: 'virtio_console',
  VIRTIO_BLK: 'virtio_blk',
  VIRTIO_NET: 'virtio_net',
  SQUASHFS: 'squashfs',
  EXT4_FS: 'ext4',
  OVERLAY_FS: 'overlay',
};

const IKCONFIG_START = 'IKCFG_ST';
const IKCONFIG_END = 'IKCFG_ED';
export const CONFIG_BYTES_MAX = 4 * 1024 * 1024;

/** Of the text of a `.config`: each recorded option; one that it does not name is `no`. */
export function parseKernelConfig(text: string): KernelConfig {
  const said = new Map<string, Built>();
  for (const line of text.split('\n')) {
    const found = /^CONFIG_([A-Z0-9_]+)=([ym])\s*$/.exec(line);
    if (found?.[1] !== undefined) said.set(found[1], found[2] === 'y' ? 'builtin' : 'module');
  }
  return Object.fromEntries(OPTIONS.map((option) => [option, said.get(option) ?? 'no']));
}

/** The text of the configuration that a kernel carries in itself; null when it carries none. */
export async function carriedConfig(vmlinux: Uint8Array): Promise<string | null> {
  const bytes = Buffer.from(vmlinux.buffer, vmlinux.byteOffset, vmlinux.byteLength);
  const start = bytes.indexOf(IKCONFIG_START);
  const end = start < 0 ? -1 : bytes.indexOf(IKCONFIG_END, start);
  if (end < 0 || end - start > CONFIG_BYTES_MAX) return null;
  try {
    const packed = bytes.subarray(start + IKCONFIG_START.length, end);
    return (await promisify(gunzip)(packed, { maxOutputLength: CONFIG_BYTES_MAX })).toString('latin1');
  } catch {
    return null; // the marks stand there by chance, or it is cut: then it says nothing
  }
}

/** Of what every guest needs, by the modules that it loads: what is no module is built in, or it would not have been taken. */
export function configByModules(moduleFiles: readonly string[]): KernelConfig {
  const loaded = new Set(moduleFiles.map((file) => file.replace(/\.ko$/, '')));
  return Object.fromEntries(Object.entries(NEEDED).map(([option, name]) => [option, loaded.has(name) ? 'module' : 'builtin']));
}

/** The modules of `NEEDED` that a kernel says it has built in. @throws DamagedPayload for one that has neither them nor a module. */
export function builtinByConfig(config: KernelConfig, where: string): string {
  const missing = Object.keys(NEEDED).filter((option) => config[option] === 'no');
  if (missing.length > 0) throw new DamagedPayload(`by ${where} it has no ${missing.map((option) => `CONFIG_${option}`).join(', ')}`);
  return Object.entries(NEEDED)
    .filter(([option]) => config[option] === 'builtin')
    .map(([, name]) => `kernel/${name}.ko\n`)
    .join('');
}
