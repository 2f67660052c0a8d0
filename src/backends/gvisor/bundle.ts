// What the runtime is told about one sandbox, as OCI's config.json. The sandbox's root has every
// capability, as in a virtual machine: they are the user-space kernel's own and mean nothing outside.
import { join } from 'node:path';
import type { Mount } from '../../domain/mount.ts';

export type BundleSpec = {
  readonly rootPath: string;
  readonly hostname: string;
  /** The directory with the agent, its socket, and what else the host lends. */
  readonly linkDir: string;
  /** Names in it. */
  readonly agent: string;
  readonly agentSocket: string;
  /** In the hierarchy's own terms, as `/hutch/sbx…`; null: none. */
  readonly cgroupsPath: string | null;
  readonly mounts: readonly Mount[];
  /** The network namespace; null: one of its own with nothing in it. */
  readonly netnsPath: string | null;
};

/** In the sandbox. */
export const LINK = '/run/hutch/link';
/** What Docker gives. */
const OPEN_FILES = { soft: 65_536, hard: 1_048_576 };

const CAPABILITIES = [
  ...['AUDIT_CONTROL', 'AUDIT_READ', 'AUDIT_WRITE', 'BLOCK_SUSPEND', 'CHOWN', 'DAC_OVERRIDE', 'DAC_READ_SEARCH', 'FOWNER', 'FSETID'],
  ...['IPC_LOCK', 'IPC_OWNER', 'KILL', 'LEASE', 'LINUX_IMMUTABLE', 'MAC_ADMIN', 'MAC_OVERRIDE', 'MKNOD', 'NET_ADMIN', 'NET_BIND_SERVICE'],
  ...['NET_BROADCAST', 'NET_RAW', 'SETFCAP', 'SETGID', 'SETPCAP', 'SETUID', 'SYSLOG', 'SYS_ADMIN', 'SYS_BOOT', 'SYS_CHROOT', 'SYS_MODULE'],
  ...['SYS_NICE', 'SYS_PACCT', 'SYS_PTRACE', 'SYS_RAWIO', 'SYS_RESOURCE', 'SYS_TIME', 'SYS_TTY_CONFIG', 'WAKE_ALARM'],
].map((name) => `CAP_${name}`);

/** In the sandbox: mount points at which its root's own directory of that name is seen. */
export const ROOTS_OWN = ['/', '/tmp'] as const;

export function bundleConfig(spec: BundleSpec): object {
  const { rootPath, cgroupsPath, netnsPath } = spec;
  return {
    ociVersion: '1.0.2',
    process: {
      terminal: false,
      user: { uid: 0, gid: 0 },
      args: [join(LINK, spec.agent), '--connect', join(LINK, spec.agentSocket)],
      env: ['PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'],
      cwd: '/',
      capabilities: { bounding: CAPABILITIES, effective: CAPABILITIES, permitted: CAPABILITIES },
      rlimits: [
        { type: 'RLIMIT_NOFILE', ...OPEN_FILES },
        { type: 'RLIMIT_CORE', soft: 0, hard: 0 },
      ],
      noNewPrivileges: false,
    },
    root: { path: rootPath, readonly: false },
    hostname: spec.hostname,
    mounts: mounts(spec),
    linux: {
      ...(cgroupsPath === null ? {} : { cgroupsPath }),
      namespaces: [
        ...['pid', 'ipc', 'uts', 'mount'].map((type) => ({ type })),
        { type: 'network', ...(netnsPath === null ? {} : { path: netnsPath }) },
      ],
    },
  };
}

function mounts({ rootPath, linkDir, mounts: directories }: BundleSpec): readonly object[] {
  const memory = (destination: string, ...options: string[]) => ({ destination, type: 'tmpfs', source: 'tmpfs', options });
  const bind = (destination: string, source: string, ...options: string[]) => ({ destination, type: 'bind', source, options });
  return [
    { destination: '/proc', type: 'proc', source: 'proc' },
    memory('/dev', 'nosuid', 'mode=755'),
    memory('/dev/shm', 'nosuid', 'nodev', 'mode=1777'),
    { destination: '/sys', type: 'sysfs', source: 'sysfs', options: ['nosuid', 'noexec', 'nodev', 'ro'] },
    memory('/run', 'nosuid', 'nodev', 'mode=755'),
    // Else the runtime puts memory there whenever it is empty, and what is written would be lost at the stop.
    bind('/tmp', join(rootPath, 'tmp'), 'rbind', 'rw'),
    // Nothing else that lies on the host can be written: a sandbox must not fill what is not its own. With what is mounted in it.
    bind(LINK, linkDir, 'rbind', 'ro', 'nosuid', 'nodev'),
    ...directories.map(({ source, target, readOnly }) => bind(target, source, 'rbind', readOnly ? 'ro' : 'rw', 'nodev')),
  ];
}
