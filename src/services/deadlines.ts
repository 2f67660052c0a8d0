// How long each verb may take, in milliseconds. Null: as long as the client stays, or as long as its
// own input says; then each step in it has a bound.
import type { VerbName } from './verbs.ts';

const READ_MS = 30_000;
const CHANGE_MS = 120_000;
/** The first use of a shape boots once, and the first of an image makes it. */
const PREPARE_MS = 30 * 60_000;
/** How long a file or an archive may be under way. */
const TRANSFER_MS = 24 * 60 * 60_000;

/** The daemon's own work. */
export type OwnWork =
  | 'daemon.reconcile'
  | 'daemon.supervise'
  | 'daemon.end'
  | 'daemon.pause'
  | 'daemon.timeout'
  | 'daemon.idle'
  | 'daemon.restart'
  | 'daemon.warm'
  | 'daemon.housekeeping'
  | 'daemon.build';
export type DeadlineName = VerbName | OwnWork;

export const DEADLINES_MS: Readonly<Record<DeadlineName, number | null>> = {
  'sandbox.create': PREPARE_MS,
  'sandbox.list': READ_MS,
  'sandbox.get': READ_MS,
  'sandbox.start': PREPARE_MS,
  'sandbox.stop': null,
  'sandbox.restart': PREPARE_MS,
  'sandbox.pause': CHANGE_MS,
  'sandbox.resume': CHANGE_MS,
  'sandbox.suspend': PREPARE_MS,
  'sandbox.fork': PREPARE_MS,
  'sandbox.rename': READ_MS,
  'sandbox.set': CHANGE_MS,
  'main.begin': CHANGE_MS,
  'workspace.put': READ_MS,
  'sandbox.delete': CHANGE_MS,
  'sandbox.wait': null,
  'sandbox.stats': READ_MS,
  'sandbox.logs': null,
  'exec.start': null,
  'exec.attach': null,
  'exec.list': READ_MS,
  'exec.signal': READ_MS,
  'port.list': READ_MS,
  'port.publish': CHANGE_MS,
  'port.unpublish': CHANGE_MS,
  'port.connect': null,
  'file.read': TRANSFER_MS,
  'file.write': TRANSFER_MS,
  'file.stat': READ_MS,
  'file.list': TRANSFER_MS,
  'file.mkdir': READ_MS,
  'file.rename': READ_MS,
  'file.remove': CHANGE_MS,
  'file.chmod': READ_MS,
  'file.chown': READ_MS,
  'file.symlink': READ_MS,
  'file.truncate': READ_MS,
  'file.watch': null,
  'archive.get': TRANSFER_MS,
  'archive.put': TRANSFER_MS,
  'event.list': null,
  'operation.list': READ_MS,
  'operation.get': READ_MS,
  'operation.cancel': CHANGE_MS,
  'why.get': READ_MS,
  'ledger.list': null,
  'ledger.verify': 10 * 60_000,
  'quota.list': READ_MS,
  'quota.set': READ_MS,
  'quota.tiers': READ_MS,
  'quota.setTier': READ_MS,
  'quota.removeTier': READ_MS,
  'asset.list': READ_MS,
  'asset.get': READ_MS,
  'asset.label': READ_MS,
  'asset.acquire': READ_MS,
  'asset.renew': READ_MS,
  'asset.release': READ_MS,
  'asset.collect': CHANGE_MS,
  'kernel.list': READ_MS,
  'kernel.available': CHANGE_MS,
  'kernel.get': READ_MS,
  'kernel.pull': TRANSFER_MS,
  'kernel.import': TRANSFER_MS,
  'kernel.setDefault': CHANGE_MS,
  'kernel.remove': CHANGE_MS,
  'kernel.verify': PREPARE_MS,
  'image.list': READ_MS,
  'image.get': READ_MS,
  'image.pull': TRANSFER_MS,
  'image.push': TRANSFER_MS,
  'image.import': TRANSFER_MS,
  'image.register': TRANSFER_MS,
  'image.promote': TRANSFER_MS,
  'image.export': TRANSFER_MS,
  'image.bundle': TRANSFER_MS,
  'image.history': READ_MS,
  'image.commit': PREPARE_MS,
  'image.sbom': PREPARE_MS,
  'image.tag': READ_MS,
  'image.remove': CHANGE_MS,
  'image.usage': CHANGE_MS,
  'image.prune': CHANGE_MS,
  'image.verify': PREPARE_MS,
  'image.login': CHANGE_MS,
  'image.logout': CHANGE_MS,
  'build.start': TRANSFER_MS,
  'build.list': READ_MS,
  'build.get': READ_MS,
  'build.logs': null,
  'build.cancel': CHANGE_MS,
  'build.delete': CHANGE_MS,
  'key.create': READ_MS,
  'key.list': READ_MS,
  'key.revoke': READ_MS,
  'config.get': READ_MS,
  'backends.list': CHANGE_MS,
  'doctor.check': CHANGE_MS,
  'doctor.leaks': CHANGE_MS,
  'daemon.version': READ_MS,
  'daemon.stop': READ_MS,
  'daemon.reconcile': 10 * 60_000,
  'daemon.supervise': null,
  'daemon.end': CHANGE_MS,
  'daemon.pause': CHANGE_MS,
  'daemon.timeout': CHANGE_MS,
  'daemon.idle': CHANGE_MS,
  'daemon.restart': PREPARE_MS,
  'daemon.warm': CHANGE_MS,
  'daemon.housekeeping': CHANGE_MS,
  'daemon.build': 6 * 60 * 60_000,
};
