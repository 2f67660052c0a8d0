// Which function answers which change and which query. Complete by its types: what the contract lists
// and nothing answers does not compile.
import { acquireLease, assetUses, labelAsset, listLabels, listLeases, releaseLease, renewLease } from './assets.ts';
import type { ChangeMap, ChangeName, QueryMap, QueryName } from './contract.ts';
import type { Db } from './db.ts';
import { addEvent, lastEvents, listEvents } from './events.ts';
import {
  defaultKernel,
  describeImage,
  imageUsers,
  kernelImages,
  kernelUsers,
  listImages,
  listKernels,
  nameImage,
  putImage,
  putKernel,
  readImage,
  readKernel,
  removeImage,
  removeKernel,
  setDefaultKernel,
  unnameImage,
} from './images.ts';
import { addIntent, allocateUid, finishIntent, listIntents, listUids, readUid, releaseUid, updateIntent } from './intents.ts';
import { createKey, keyByHash, listKeys, listProjects, revokeKey, touchKey } from './keys.ts';
import { checkLedger, ledgerHead, ledgerPage } from './ledger.ts';
import {
  beginOperation,
  endOperation,
  interruptOperations,
  listOperations,
  operationCandidates,
  readOperation,
  updateOperation,
} from './operations.ts';
import { listPorts, releasePorts, reservePorts } from './ports.ts';
import { listQuotas, listTiers, removeTier, setQuota, setTier } from './quotas.ts';
import { finishRequest, openRequests, releaseRequest } from './requests.ts';
import {
  applyChange,
  countSandboxes,
  createSandbox,
  listSandboxes,
  liveSandboxIds,
  openSandboxes,
  readSandbox,
  sandboxCandidates,
} from './sandboxes.ts';
import { beat, health, prune, readHeartbeat, readSetting, setSetting } from './settings.ts';
import { createSnapshot, listSnapshots, readHead, readSnapshot, removeSnapshot, snapshotUsers } from './snapshots.ts';
import type { Tx } from './tx.ts';

export const CHANGES: { readonly [K in ChangeName]: (tx: Tx, args: ChangeMap[K]['args']) => ChangeMap[K]['result'] } = {
  createSandbox,
  applyEvent: applyChange,
  addEvent,
  beginOperation,
  updateOperation,
  endOperation,
  interruptOperations,
  addIntent,
  updateIntent,
  finishIntent,
  allocateUid,
  releaseUid,
  reservePorts,
  releasePorts,
  finishRequest,
  releaseRequest,
  putImage,
  nameImage,
  unnameImage,
  describeImage,
  removeImage,
  putKernel,
  removeKernel,
  setDefaultKernel,
  createKey,
  touchKey,
  revokeKey,
  acquireLease,
  renewLease,
  releaseLease,
  labelAsset,
  createSnapshot,
  removeSnapshot,
  setTier,
  removeTier,
  setQuota,
  setSetting,
  beat,
  prune,
};

export const QUERIES: { readonly [K in QueryName]: (db: Db, args: QueryMap[K]['args']) => QueryMap[K]['result'] } = {
  sandbox: (db, { id }) => readSandbox(db, id),
  sandboxes: listSandboxes,
  countSandboxes,
  sandboxCandidates: (db, { projectId, text }) => sandboxCandidates(db, projectId, text),
  openSandboxes,
  liveSandboxIds,
  operation: (db, { id }) => readOperation(db, id),
  operations: listOperations,
  operationCandidates: (db, { text }) => operationCandidates(db, text),
  events: listEvents,
  lastEvents,
  intents: listIntents,
  uid: (db, { sandboxId }) => readUid(db, sandboxId),
  uids: listUids,
  publishedPorts: listPorts,
  openRequests,
  image: (db, { id }) => readImage(db, id),
  images: listImages,
  kernel: (db, { id }) => readKernel(db, id),
  kernels: listKernels,
  defaultKernel,
  kernelUsers,
  kernelImages,
  projects: listProjects,
  keyByHash: (db, { sha256 }) => keyByHash(db, sha256),
  keys: listKeys,
  imageUsers,
  leases: listLeases,
  assetLabels: listLabels,
  assetUses,
  snapshot: (db, { id }) => readSnapshot(db, id),
  snapshots: listSnapshots,
  snapshotUsers,
  snapshotHead: readHead,
  quotas: listQuotas,
  tiers: listTiers,
  setting: (db, { key }) => readSetting(db, key),
  heartbeat: readHeartbeat,
  ledger: ledgerPage,
  ledgerHead,
  checkLedger,
  health,
};
