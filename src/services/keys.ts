// API keys. A key is 160 random bits, shown once; the store has its SHA-256 only. The owner's key is
// made at the first start, into a file that only its user can read.
import { createHash } from 'node:crypto';
import { type KeyId, newId } from '../domain/ids.ts';
import type { ApiKey } from '../domain/records.ts';
import { requireReference } from '../domain/reference.ts';
import type { Operation } from '../host/operation.ts';
import type { Call, Caller } from './call.ts';
import type { Core } from './core.ts';
import type { Handlers } from './handlers.ts';
import { keyView } from './present.ts';

const SECRET_PREFIX = 'e2b_';
const SECRET_BYTES = 20;
const OWNER = 'owner';
/** Keys that are remembered; one more is looked up again. */
const REMEMBERED_MAX = 10_000;
const TOUCH_EVERY_MS = 60_000;
const KEY_FILE_BYTES_MAX = 256;

type Known = { readonly caller: Caller; readonly keyId: KeyId; touchedAtMs: number };

export class Keys {
  readonly #core: Core;
  /** By hash. Revoking goes through here, so this is never wrong about a key. */
  readonly #known = new Map<string, Known>();

  constructor(core: Core) {
    this.#core = core;
  }

  /** Null for a key that does not exist or was revoked. */
  async authenticate(secret: string): Promise<Caller | null> {
    const { store, host } = this.#core.deps;
    const sha256 = hashOf(secret);
    let known = this.#known.get(sha256);
    if (known === undefined) {
      const key = await store.query('keyByHash', { sha256 });
      if (key === null || key.revokedAtMs !== null) return null;
      known = { caller: { actor: key.id, keyId: key.id, projectId: key.projectId }, keyId: key.id, touchedAtMs: Number.NEGATIVE_INFINITY };
      if (this.#known.size >= REMEMBERED_MAX) this.#known.clear();
      this.#known.set(sha256, known);
    }
    const nowMs = host.nowMs();
    if (Math.abs(nowMs - known.touchedAtMs) > TOUCH_EVERY_MS) {
      known.touchedAtMs = nowMs;
      const committer = { id: this.#core.operations.ownId(), actor: 'daemon' };
      store.commit(committer, [{ change: 'touchKey', id: known.keyId, atMs: nowMs }], 'relaxed').catch(() => {}); // only a hint of when it was used
    }
    return known.caller;
  }

  /** The owner's key is in its file, and works. A file that is gone is made anew, with a new key. */
  async ensureOwner(op: Operation, path: string): Promise<void> {
    const { host, store } = this.#core.deps;
    if ((await host.stat(op, path)) !== null) {
      const secret = new TextDecoder().decode(await host.readFile(op, path, KEY_FILE_BYTES_MAX)).trim();
      const key = await store.query('keyByHash', { sha256: hashOf(secret) });
      if (key !== null) return; // revoked or not: that was somebody's decision
    }
    const secret = this.#newSecret();
    const nowMs = host.nowMs();
    const olds = (await store.query('keys', {})).filter((key) => key.name === OWNER && key.revokedAtMs === null);
    // The file first: a key that nobody can read would lock its owner out.
    await host.writeFileAtomic(op, path, `${secret}\n`, 0o600);
    await store.commit(op, [
      ...olds.map((key) => ({ change: 'revokeKey', id: key.id, atMs: nowMs }) as const),
      {
        change: 'createKey',
        id: newId('key', (count) => host.randomBytes(count)),
        projectId: store.defaultProjectId,
        name: OWNER,
        sha256: hashOf(secret),
        atMs: nowMs,
      },
    ]);
    op.log.info({ path }, 'owner key made');
  }

  verbs(): Pick<Handlers, 'key.create' | 'key.list' | 'key.revoke'> {
    const { host, store } = this.#core.deps;
    return {
      'key.create': async (call, { name, project }) => {
        // The reply would have to be kept, and its secret with it.
        if (call.idempotencyKey !== null)
          throw call.op.error('invalid_argument', 'key.create takes no Idempotency-Key: its secret is kept nowhere');
        const secret = this.#newSecret();
        const id = newId('key', (count) => host.randomBytes(count));
        call.target(id);
        const { projectId, made } = await this.#projectFor(call, project);
        const sha256 = hashOf(secret);
        await call.commit([...made, { change: 'createKey', id, projectId, name, sha256, atMs: host.nowMs() } as const]);
        const key = await store.query('keyByHash', { sha256 });
        if (key === null) throw new Error('a key that was made is not there');
        return { ...keyView(key, await this.#projects()), secret };
      },
      'key.list': async (call) => {
        const projects = await this.#projects();
        return { keys: (await this.#visible(call)).map((key) => keyView(key, projects)) };
      },
      'key.revoke': async (call, { ref }) => {
        const keys = await this.#visible(call);
        const projects = await this.#projects();
        // A revoked key is found by its id only: its name may be another's by now.
        const { key } = requireReference(
          'key',
          ref,
          keys.map((key) => ({ id: key.id, name: key.revokedAtMs === null ? key.name : null, key })),
        );
        if (key.revokedAtMs !== null) return keyView(key, projects);
        call.target(key.id);
        // Of another project the owner can make one again.
        const owners = keys.filter(({ projectId }) => projectId === store.defaultProjectId);
        if (key.projectId === store.defaultProjectId && owners.every((other) => other.id === key.id || other.revokedAtMs !== null)) {
          throw call.op.error('failed_precondition', `${key.name} is the last key; without it nobody could ask for anything`, {
            hint: 'make another first: hutch keys create NAME',
          });
        }
        for (const [hash, known] of this.#known) if (known.keyId === key.id) this.#known.delete(hash);
        const [revoked] = await call.commit([{ change: 'revokeKey', id: key.id, atMs: host.nowMs() }]);
        for (const [hash, known] of this.#known) if (known.keyId === key.id) this.#known.delete(hash);
        return keyView(revoked, projects);
      },
    };
  }

  /** Those of the caller's project; whoever has a key of the project `default` looks after all. */
  async #visible({ caller: { projectId } }: Call): Promise<readonly ApiKey[]> {
    const { store } = this.#core.deps;
    return await store.query('keys', projectId === store.defaultProjectId ? {} : { projectId });
  }

  async #projects(): Promise<ReadonlyMap<string, string>> {
    return new Map((await this.#core.deps.store.query('projects', {})).map(({ id, name }) => [id, name]));
  }

  /** The project that a key is for, and the change that makes it where it is not there yet. */
  async #projectFor({ op, caller }: Call, name: string | undefined) {
    const { store, host } = this.#core.deps;
    const found = (await store.query('projects', {})).find((project) => project.name === name);
    const wanted = name === undefined ? caller.projectId : found?.id;
    if (wanted !== caller.projectId && caller.projectId !== store.defaultProjectId) {
      throw op.error('permission_denied', 'keys of another project are made with a key of the project default');
    }
    if (wanted !== undefined) return { projectId: wanted, made: [] };
    const id = newId('prj', (count) => host.randomBytes(count));
    return { projectId: id, made: [{ change: 'createProject', id, name: name ?? '', atMs: host.nowMs() } as const] };
  }

  #newSecret(): string {
    return `${SECRET_PREFIX}${Buffer.from(this.#core.deps.host.randomBytes(SECRET_BYTES)).toString('hex')}`;
  }
}

function hashOf(secret: string): string {
  return createHash('sha256').update(secret).digest('hex');
}
