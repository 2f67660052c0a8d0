// Which modules a guest needs, and in which order they are loaded: what is wanted and, by each
// module's own `depends=`, what that needs; what the kernel has built in is left out. (Debian's
// package has no modules.dep: depmod would make it at installation.)
import { type ModuleInfo, moduleInfo } from './elf.ts';
import { DamagedPayload } from './payload-error.ts';

/** What every guest loads: its disks, console, network, and the file systems of image and overlay. */
export const GUEST_MODULES = ['virtio_mmio', 'virtio_console', 'virtio_blk', 'virtio_net', 'squashfs', 'ext4', 'overlay'] as const;

/** What a guest is better with: by the balloon it gives memory back that it has freed; without FUSE it has no directories of the host. */
export const OPTIONAL_MODULES = ['virtio_balloon', 'fuse'] as const;

const MODULES_MAX = 64;

/** A package's modules: by `modules.order` and `modules.builtin`, whose lines are paths ending in `.ko`. */
export type ModuleIndex = {
  readonly builtin: ReadonlySet<string>;
  /** Path below the modules directory, by name. */
  readonly paths: ReadonlyMap<string, string>;
};

/** Modules are named with `-` in files and `_` in the kernel; they are the same. */
function moduleName(path: string): string {
  const file = path.slice(path.lastIndexOf('/') + 1);
  return file.replace(/\.ko$/, '').replaceAll('-', '_');
}

export function moduleIndex(order: string, builtin: string): ModuleIndex {
  const paths = (text: string) =>
    text
      .split('\n')
      .map((line) => line.trim())
      .filter((line) => line.endsWith('.ko'));
  return {
    builtin: new Set(paths(builtin).map(moduleName)),
    paths: new Map(paths(order).map((path) => [moduleName(path), path])),
  };
}

export type Module = { readonly name: string; readonly bytes: Uint8Array };

/** The modules to load, dependencies first, the optional ones last and where they are. `read` gives the unpacked bytes of the module at a path. */
export async function modulesInOrder(
  wanted: readonly string[],
  index: ModuleIndex,
  read: (path: string) => Promise<Uint8Array>,
  optional: readonly string[] = [],
): Promise<readonly Module[]> {
  const ordered = new Map<string, Module>();
  const underWay = new Set<string>();
  const add = async (rawName: string, need: 'must' | 'may'): Promise<void> => {
    const name = rawName.replaceAll('-', '_');
    if (index.builtin.has(name) || ordered.has(name)) return;
    const path = index.paths.get(name);
    if (need === 'may' && (path === undefined || underWay.has(name))) return;
    if (path === undefined) {
      throw new DamagedPayload(`it has no module ${name}, neither as a file nor built in`);
    }
    if (underWay.has(name)) throw new DamagedPayload(`its module ${name} depends on itself`);
    if (underWay.size + ordered.size >= MODULES_MAX) throw new DamagedPayload(`its modules need more than ${MODULES_MAX} others`);
    underWay.add(name);
    const bytes = await read(path);
    const info: ModuleInfo = moduleInfo(bytes);
    for (const before of info.softBefore) await add(before, 'may');
    for (const dependency of info.depends) await add(dependency, 'must');
    underWay.delete(name);
    ordered.set(name, { name, bytes });
  };
  for (const name of wanted) await add(name, 'must');
  for (const name of optional) await add(name, 'may');
  return [...ordered.values()];
}
