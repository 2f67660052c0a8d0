// The image `debian`: made on this machine by mmdebstrap from Debian's signed packages, as root or as
// any user. Nothing of the machine that made it is in it: package sources are Debian's public ones,
// whichever mirror or proxy served here, and there is no identity, address, key or log. Made twice on
// one day from the same packages it is the same to the byte.
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { aptError, type DownloadEnv } from './apt.ts';
import { machineProxies, mirrorLines, SUITE } from './debian-sources.ts';
import { commitImage, imageDir, listImages, type PreparedImage, ROOTFS, verifyImage } from './image.ts';
import { alone, type ImagePaths, leashed, SHARED_DIR_MODE, unlessDamaged } from './layout.ts';
import { followMmdebstrap } from './mmdebstrap-output.ts';
import { PACK_OPTIONS } from './pack.ts';
import { keepRunOfSquashfs, runArchive } from './run-directory.ts';
import { scratchDir } from './scratch.ts';

export const DEFAULT_IMAGE = 'debian';

/** Beside Debian's minimal base: what people and programs expect to find, and little more. */
const PACKAGES = [
  'ca-certificates',
  'curl',
  'git',
  'iproute2',
  'less',
  'netbase',
  'procps',
  'python-is-python3',
  'python3',
  'rsync',
  'sudo',
  'tzdata',
  'vim-tiny',
];

const CONFIG = {
  env: { PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin', LANG: 'C.UTF-8' },
  entrypoint: [],
  command: [],
  workdir: null,
  user: null,
};

const DPKG_OPTIONS = [
  'path-exclude=/usr/share/man/*',
  'path-exclude=/usr/share/locale/*',
  'path-exclude=/usr/share/doc/*',
  'path-include=/usr/share/doc/*/copyright',
];

/**
 * Runs outside the new root, which is $1; as its root, though perhaps only in name. $1/tmp is not touched:
 * mmdebstrap keeps its apt configuration there, and without that would clean the apt of this machine.
 */
const CUSTOMIZE = `set -eu
cat > "$1/etc/apt/sources.list" <<END
deb http://deb.debian.org/debian ${SUITE} main
deb http://deb.debian.org/debian ${SUITE}-updates main
deb http://deb.debian.org/debian-security ${SUITE}-security main
END
rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap"
sed -i /force-unsafe-io/d "$1/etc/dpkg/dpkg.cfg.d/99mmdebstrap"
mv "$1/etc/dpkg/dpkg.cfg.d/99mmdebstrap" "$1/etc/dpkg/dpkg.cfg.d/hutch-small"
for n in 1 2 3 4 5 6 7 8; do mkdir -p "$1/usr/share/man/man$n"; done
chroot "$1" /usr/sbin/useradd --create-home --shell /bin/bash --uid 1000 --groups sudo user
echo 'user ALL=(ALL:ALL) NOPASSWD: ALL' > "$1/etc/sudoers.d/user"
chmod 0440 "$1/etc/sudoers.d/user"
chroot "$1" /usr/bin/update-alternatives --quiet --install /usr/bin/vim vim /usr/bin/vim.tiny 15
echo 'LANG=C.UTF-8' > "$1/etc/default/locale"
rm -f "$1/etc/resolv.conf" "$1/etc/hostname"
: > "$1/etc/resolv.conf"
echo debian > "$1/etc/hostname"
printf '127.0.0.1\\tlocalhost\\n::1\\tlocalhost ip6-localhost ip6-loopback\\n' > "$1/etc/hosts"
chmod 0644 "$1/etc/resolv.conf" "$1/etc/hostname" "$1/etc/hosts"
rm -f "$1/etc/machine-id" "$1"/etc/*- "$1"/var/cache/debconf/*-old "$1"/var/lib/dpkg/*-old "$1"/etc/ssh/ssh_host_*
: > "$1/etc/machine-id"
rm -rf "$1"/var/log/apt/* "$1"/var/log/*.log "$1"/var/cache/ldconfig/* "$1"/var/tmp/*
`;

const STEP = 'image';
const RECIPE = recipeOf([SUITE, PACKAGES, DPKG_OPTIONS, CUSTOMIZE, CONFIG, PACK_OPTIONS]);
const TAR = `root-${RECIPE}.tar`;
/** Measured: tar and image lie side by side at the end, the unpacked root and its packages before that. */
const FREE_BYTES_MIN = 1024 * 1024 * 1024;
const OUTPUT_BYTES_MAX = 16 * 1024 * 1024;
const DAY_SECONDS = 24 * 60 * 60;

/** Finds the image and reads it through, or makes it; a damaged one is made anew. A finished step of an interrupted try is not done again. */
export async function prepareDefaultImage(op: Operation, host: Host, paths: ImagePaths, env: DownloadEnv = {}): Promise<PreparedImage> {
  const image = await alone(op, host, paths, 'image', {
    find: () => soundImage(op, host, paths),
    keep: new RegExp(`^${TAR.replaceAll('.', '\\.')}$`),
    make: (staging) => makeImage(op, host, paths, staging, env),
  });
  // One that an older Hutch made has none.
  const { digest } = image.record;
  if ((await host.stat(op, runArchive(paths, digest))) === null) await keepRunOfSquashfs(op, host, imageDir(paths, digest), image.path);
  return image;
}

async function soundImage(op: Operation, host: Host, paths: ImagePaths): Promise<PreparedImage | null> {
  const image = await findDefaultImage(op, host, paths);
  if (image === null) return null;
  return unlessDamaged(op, async () => {
    await verifyImage(op, host, paths, image.record.digest);
    return image;
  });
}

/** The newest one of today's recipe. */
async function findDefaultImage(op: Operation, host: Host, paths: ImagePaths): Promise<PreparedImage | null> {
  const made = (await listImages(op, host, paths)).filter(({ source }) => source.kind === 'mmdebstrap' && source.recipe === RECIPE);
  return made.toSorted((a, b) => b.record.createdAtMs - a.record.createdAtMs)[0] ?? null;
}

async function makeImage(op: Operation, host: Host, paths: ImagePaths, staging: string, env: DownloadEnv): Promise<PreparedImage> {
  const { freeBytes } = await host.fileSystem(op, staging);
  if (freeBytes < FREE_BYTES_MIN) {
    throw op.error(
      'resource_exhausted',
      `${Math.floor(freeBytes / 2 ** 20)} MiB are free in ${paths.images}; the image ${DEFAULT_IMAGE} needs 1 GiB while it is made`,
      {
        hint: 'free some space, then run the same command again',
      },
    );
  }
  const tar = join(staging, TAR);
  if ((await host.stat(op, tar))?.type !== 'file') await makeTar(op, host, paths, staging, tar, env);
  const out = join(staging, 'out');
  await host.makeDir(op, out, SHARED_DIR_MODE);
  const sizeBytes = await pack(op, host, tar, join(out, ROOTFS));
  op.progress({ step: STEP, detail: 'checksum' });
  return commitImage(op, host, paths, out, {
    name: DEFAULT_IMAGE,
    architecture: 'x86_64',
    fileSystem: 'squashfs',
    sha256: await host.sha256(op, join(out, ROOTFS)),
    sizeBytes,
    config: { ...CONFIG, stopSignal: null, exposedPorts: [] },
    createdAtMs: host.nowMs(),
    source: { kind: 'mmdebstrap', suite: SUITE, packages: PACKAGES, recipe: RECIPE },
  });
}

/** The root as a tar file; `tar` is there whole or not at all. */
async function makeTar(op: Operation, host: Host, paths: ImagePaths, staging: string, tar: string, env: DownloadEnv): Promise<void> {
  await using scratch = await scratchDir(op, host, staging);
  const part = `${tar}.part`;
  const argv = await leashed(op, host, paths, 'image', [
    'mmdebstrap',
    '--verbose',
    '--variant=minbase',
    '--architectures=amd64',
    '--format=tar',
    `--include=${PACKAGES.join(',')}`,
    ...DPKG_OPTIONS.map((option) => `--dpkgopt=${option}`),
    '--dpkgopt=force-unsafe-io', // taken out again: it is the whole that is made durable
    `--customize-hook=${CUSTOMIZE}`,
    SUITE,
    part,
    ...(await mirrorLines(op, host)),
  ]);
  const made = await host.run(op, argv, {
    env: { ...env, ...(await machineProxies(op, host)), TMPDIR: scratch.path, SOURCE_DATE_EPOCH: String(startOfDay(host.nowMs())) },
    cwd: '/', // mmdebstrap enters it as another user
    outputBytesMax: OUTPUT_BYTES_MAX,
    onOutput: followMmdebstrap((progress) => op.progress({ step: STEP, ...progress })),
  });
  if (made.exitCode !== 0) throw aptError(op, made, `make the image ${DEFAULT_IMAGE}`);
  await host.sync(op, part);
  await host.rename(op, part, tar);
}

/**
 * Packs the tar file. LZ4 in blocks of 64 KiB: a guest under software emulation reads it about as fast
 * as an unpacked file system, in half the room (docs/decisions/0005-image-file-system.md). By tar2sqfs:
 * mksquashfs 4.5 makes broken images from a tar file, one of six here. Gives the size.
 */
async function pack(op: Operation, host: Host, tar: string, out: string): Promise<number> {
  op.progress({ step: STEP, detail: 'packing' });
  // The shell only opens the input; all names are arguments of its own, never part of the command.
  const argv = ['sh', '-c', 'exec tar2sqfs "$@" < "$0"', tar, ...PACK_OPTIONS, out];
  const epoch = String(startOfDay(host.nowMs()));
  const packed = await host.run(op, argv, { env: { SOURCE_DATE_EPOCH: epoch }, outputBytesMax: OUTPUT_BYTES_MAX });
  const file = await host.stat(op, out);
  if (packed.exitCode !== 0 || file === null) throw aptError(op, packed, `pack the image ${DEFAULT_IMAGE}`);
  return file.sizeBytes;
}

/** Seconds. A time that two builds of one day share; no package is younger than its own day. */
function startOfDay(nowMs: number): number {
  const seconds = Math.floor(nowMs / 1000);
  return seconds - (seconds % DAY_SECONDS);
}

function recipeOf(parts: unknown): string {
  return createHash('sha256').update(JSON.stringify(parts)).digest('hex').slice(0, 16);
}
