// What may lie under Hutch's roots, and why: the one list of it. Whatever lies there and is in no line of it belongs to nothing, and
// `hutch doctor --leaks` says so. A directory that is somebody's is theirs with all that is in it; one that is itself the
// place of other lines (`in`) is looked into.
import type { Places } from '../config/places.ts';
import { TEMP_NAME } from '../host/files.ts';

/** By whom something is known; of a sandbox, snapshot and so on the first group of the name says whose it is. */
export type Owner =
  /** Hutch itself, for as long as it is installed. */
  | 'hutch'
  /** A row of the store. */
  | 'sandbox'
  | 'snapshot'
  | 'volume'
  | 'image'
  | 'project'
  /** Kept to be used again, and whole: a verb lists it, and one removes it. */
  | 'cache'
  /** Whoever is at work on it now; what is found when nobody is was left over. */
  | 'work';

export type Root = 'data' | 'run' | 'log';

export type Line = {
  readonly root: Root;
  /** The directory below the root; empty: the root itself. */
  readonly in: string;
  readonly name: RegExp;
  readonly owner: Owner;
  readonly why: string;
  /** Without this file in it, it is only a part. */
  readonly whole?: string;
};

const SBX = /^(sbx[0-9a-z]{17})$/;
const SNP = /^(snp[0-9a-z]{17})$/;
const HEX16 = '[0-9a-f]{16}';
const DIGEST = /^([0-9a-f]{64})$/;

const data = (place: string, name: RegExp, owner: Owner, why: string, whole?: string): Line => ({
  ...{ root: 'data', in: place, name, owner, why },
  ...(whole === undefined ? {} : { whole }),
});
const run = (place: string, name: RegExp, owner: Owner, why: string): Line => ({ root: 'run', in: place, name, owner, why });
const log = (place: string, name: RegExp, owner: Owner, why: string): Line => ({ root: 'log', in: place, name, owner, why });

/** The first line that has an entry's name says what it is. */
export const BELONGINGS: readonly Line[] = [
  data('', /^hutch\.db(-wal|-shm|-journal)?$/, 'hutch', 'the store, and what SQLite has beside it'),
  data('', /^hutch\.db\.schema-\d+$/, 'hutch', 'the store as it was before an upgrade, to go back to'),
  data(
    '',
    /^hutch\.db\.(replaced|before-upgrade)(-wal)?$/,
    'hutch',
    'the store as it was before a restore, or before a release that is on trial',
  ),
  data('', /^hutch\.db\.(restored|put-back)$/, 'hutch', 'what the next start, or the next try, makes the store'),
  data('', /^hutch\.db\.(new|before|restoring)(-wal|-shm|-journal)?$/, 'work', 'a store that is being made, copied or brought back'),
  data('', /^kept-by-restore$/, 'hutch', 'names of what lay here when a backup took the place of the store'),
  data('', /^hutch\.lock$/, 'hutch', 'held by the one daemon of this directory'),
  data('', /^owner\.key$/, 'hutch', 'the API key of this machine’s owner'),
  data('', /^preview\.key$/, 'hutch', 'what links of shared ports are signed with'),
  data('', /^reserve$/, 'hutch', 'room that is given free when the disk is full'),
  data('', /^uid-block$/, 'hutch', 'which users sandboxes run as, among all daemons of this machine'),
  data('', /^lost\+found$/, 'hutch', 'of a file system of its own, which some put there'),
  data('', /^\.(backup|reflink)-op-[0-9a-f]{12}(-wal|-clone)?$/, 'work', 'a copy of the store on its way out, or a trial of the disk'),
  data('', /^docker-trial-[0-9a-f]{16}$/, 'work', 'a trial of a disk in a file'),
  data('', /^(sandboxes|snapshots|volumes|forks|images|kernels|initramfs)$/, 'hutch', 'each for what its name says'),
  data('', /^(blobs|staging|templates|bases|builds|ssh|docker)$/, 'hutch', 'each for what its lines say'),
  data('sandboxes', SBX, 'sandbox', 'its disks and secrets'),
  data('snapshots', SNP, 'snapshot', 'its memory and disk'),
  data('snapshots', /^(export|import|pull|diff)-op-[0-9a-f]{12}$/, 'work', 'a snapshot that comes, goes or is compared'),
  data('volumes', /^(vol[0-9a-z]{17})$/, 'volume', 'its disk'),
  data('volumes', /^\.seed-/, 'work', 'an empty file system that is being made'),
  data('forks', SNP, 'work', 'what children of a sandbox begin with, until they have it'),
  data('images', DIGEST, 'image', 'its root file system', 'manifest.json'),
  data('kernels', DIGEST, 'cache', 'a kernel: hutch kernel ls, hutch kernel rm', 'manifest.json'),
  data('initramfs', /^[0-9a-f]{64}\.cpio$/, 'cache', 'an initrd: hutch assets ls, hutch assets gc'),
  data('blobs', DIGEST, 'cache', 'a layer: hutch image df, hutch image prune'),
  data('blobs', /^[0-9a-f]{64}\.packed\.json$/, 'cache', 'what came of a layer when it was compressed for a registry'),
  data('staging', /^(image|kernel)$/, 'cache', 'what an interrupted preparation goes on with'),
  data('staging', /^((image|kernel)(\.program)?|publish)\.lock$/, 'hutch', 'held by who works in there'),
  data('staging', /^(blob|make|import|export|build|gone)-/, 'work', 'an image or kernel that comes, goes or is made'),
  data('templates', /^([0-9a-f]{40})$/, 'cache', 'a template of one shape: hutch prune', 'manifest.json'),
  data('templates', /^\.building-[0-9a-f]{40}$/, 'hutch', 'a template that is being made, or removed: its lock says whether it is'),
  data('templates', /^\.(lock|used)-[0-9a-f]{40}$/, 'hutch', 'held by who makes a template; its last use'),
  data('templates', new RegExp(`^\\.readonly-${HEX16}\\.so$`), 'hutch', 'what QEMU loads to map a template read-only'),
  data('templates', /^\.seed-/, 'work', 'an empty file system that is being made'),
  data('bases', DIGEST, 'cache', 'an image unpacked for gVisor: hutch image df, hutch image prune'),
  data('bases', /^\.building-[0-9a-f]{64}$/, 'hutch', 'an image that is being unpacked, or removed: its lock says whether it is'),
  data('bases', /^\.lock-[0-9a-f]{64}$/, 'hutch', 'held by who unpacks an image'),
  data('bases', new RegExp(`^over-${HEX16}$`), 'hutch', 'a library of Hutch’s over every image'),
  data('bases', new RegExp(`^agent-${HEX16}$`), 'hutch', 'an agent that a saved sandbox of gVisor runs'),
  data('bases', /^under-1$/, 'hutch', 'directories under an image that lacks them'),
  data('bases', /^\.seed-/, 'work', 'an empty file system that is being made'),
  data('builds', /^bld[0-9a-z]{17}$/, 'cache', 'record and log of a build: hutch image builds', 'build.json'),
  data('builds', /^(cache|mounts)$/, 'hutch', 'what builds keep for each other'),
  data('builds/cache', /^[0-9a-f]{64}\.json$/, 'cache', 'a step of a build that need not be done again'),
  data('builds/mounts', /^[0-9a-f]{64}\.tar$/, 'cache', 'a cache mount of builds'),
  data('ssh', /^host(\.pub)?$/, 'hutch', 'the key by which SSH clients know this daemon'),
  data('ssh', /^(prj[0-9a-z]{17})(?:\.pub)?$/, 'project', 'the key by which its clients are known'),
  data('docker', new RegExp(`^agent-${HEX16}$`), 'hutch', 'the agent as containers see it'),
  data('docker', /^(ssh|duties|volumes)$/, 'hutch', 'each for what its lines say'),
  data(
    'docker',
    /^(image|nonce)-op-[0-9a-f]{12}(\.tar)?$/,
    'work',
    'an image on its way into the Engine, or a trial of what the Engine sees',
  ),
  data('docker/ssh', /^[0-9a-f]{40}(\.[0-9A-Za-z]+)?$/, 'hutch', 'the one connection to an Engine behind ssh'),
  data('docker/duties', /^sbx[0-9a-z]{17}$/, 'hutch', 'what is taken back when the Engine answers again'),
  data('docker/volumes', SBX, 'sandbox', 'where its volumes are mounted while it starts'),

  run('', /^hutch\.sock$/, 'hutch', 'where the API is'),
  run('', /^(sandboxes|work)$/, 'hutch', 'each for what its lines say'),
  run('', /^uids$/, 'hutch', 'of all daemons of this machine, where they are root’s: which users each has'),
  run(
    'uids',
    /^(\d{6,10}|lock|\.hutch-tmp-[0-9a-f]{16})$/,
    'hutch',
    'the users of one daemon, which is told when that is gone; others write there as well',
  ),
  run('sandboxes', SBX, 'sandbox', 'its sockets, and what its shim writes'),
  run('sandboxes', /^nonce-op-[0-9a-f]{12}$/, 'work', 'a trial of what the Docker Engine sees'),
  run('work', /^(acceleration|gvisor-platform)\.json$/, 'hutch', 'what was found out about this machine since it was started'),
  run('work', /^(probe|disk)-[0-9a-f]{16}$/, 'work', 'a trial of what this machine can do'),
  run('work', new RegExp(`^template-${HEX16}$`), 'work', 'a machine of which a template is being made'),

  log('', /^hutchd\.log(\.[12])?$/, 'hutch', 'the daemon’s log'),
  log('', /^(sandboxes|ended|failed)$/, 'hutch', 'each for what its lines say'),
  log('', /^sync$/, 'hutch', 'what hutch sync of this user remembers of directories'),
  log('sandboxes', SBX, 'sandbox', 'what it wrote'),
  log('ended', /^sbx[0-9a-z]{17}$/, 'cache', 'what one wrote that removed itself, for ten minutes'),
  log('failed', /^op-[0-9a-f]{12}$/, 'cache', 'what one wrote that could not be made, for a week'),
];

/** Every place that has lines, the empty one being the root itself. */
export function lookedInto(): readonly { readonly root: Root; readonly place: string }[] {
  const places = BELONGINGS.map((line) => ({ root: line.root, place: line.in }));
  return places.filter(({ root, place }, at) => places.findIndex((other) => other.root === root && other.place === place) === at);
}

export function pathOf({ dataDir, runDir, logDir }: Pick<Places, 'dataDir' | 'runDir' | 'logDir'>, root: Root, place: string): string {
  const at = { data: dataDir, run: runDir, log: logDir }[root];
  return place === '' ? at : `${at}/${place}`;
}

/** What an entry is; null: nothing of ours has such a name there. */
export function lineOf(root: Root, place: string, name: string): Line | null {
  if (TEMP_NAME.test(name) && place !== 'uids')
    return { root, in: place, name: TEMP_NAME, owner: 'work', why: 'a file that is being written' };
  return BELONGINGS.find((line) => line.root === root && line.in === place && line.name.test(name)) ?? null;
}
