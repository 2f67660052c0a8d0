// What is known of sandboxes without asking the store: the ones whose process may be alive, as they
// were after the last commit. Every change of a sandbox in this daemon comes by here, so that this is
// never older than the store; who waits for a change is told after the commit.
import { HutchError } from '../domain/errors.ts';
import type { ProjectId, SandboxId } from '../domain/ids.ts';
import { isId } from '../domain/ids.ts';
import { requireReference } from '../domain/reference.ts';
import type { Sandbox } from '../domain/sandbox.ts';
import type { Operation } from '../host/operation.ts';
import type { Store } from '../store/contract.ts';

type Listener = (sandbox: Sandbox) => void;

export class Sandboxes {
  readonly #store: Store;
  readonly #open = new Map<SandboxId, Sandbox>();
  readonly #listeners = new Map<SandboxId, Set<Listener>>();

  readonly #any = new Set<Listener>();

  constructor(store: Store) {
    this.#store = store;
  }

  /** Call with what each commit returned. */
  changed(sandbox: Sandbox): void {
    const known = this.#open.get(sandbox.id);
    if (known !== undefined && known.generation > sandbox.generation) return;
    if (sandbox.openComputeSinceMs === null) this.#open.delete(sandbox.id);
    else this.#open.set(sandbox.id, sandbox);
    for (const listener of [...(this.#listeners.get(sandbox.id) ?? [])]) listener(sandbox);
    for (const listener of [...this.#any]) listener(sandbox);
  }

  onChange(id: SandboxId, listener: Listener): Disposable {
    const listeners = this.#listeners.get(id) ?? new Set();
    this.#listeners.set(id, listeners);
    listeners.add(listener);
    return {
      [Symbol.dispose]: () => {
        listeners.delete(listener);
        if (listeners.size === 0) this.#listeners.delete(id);
      },
    };
  }

  onAnyChange(listener: Listener): Disposable {
    this.#any.add(listener);
    return { [Symbol.dispose]: () => void this.#any.delete(listener) };
  }

  /** One whose process may be alive. */
  open(id: SandboxId): Sandbox | null {
    return this.#open.get(id) ?? null;
  }

  /** As it is now. @throws HutchError `not_found`. */
  async get(op: Operation, id: SandboxId): Promise<Sandbox> {
    const sandbox = this.#open.get(id) ?? (await this.#store.query('sandbox', { id }));
    if (sandbox === null) throw op.error('not_found', `there is no sandbox ${id}`);
    return sandbox;
  }

  /** The one that a reference means. @throws HutchError `not_found`, or `conflict` when it could be several. */
  async resolve(projectId: ProjectId, text: string): Promise<Sandbox> {
    const open = this.#openBy(projectId, text);
    if (open !== null) return open;
    const candidates = await this.#store.query('sandboxCandidates', { projectId, text });
    // A deleted one is found by its exact id only: its name may be another's by now.
    const meant = requireReference(
      'sandbox',
      text,
      candidates.map((sandbox) => ({ id: sandbox.id, name: sandbox.state === 'deleted' ? null : sandbox.spec.name, sandbox })),
    );
    return meant.sandbox;
  }

  /** As `resolve`, and by a name that only deleted ones had, the last of them: what is asked of its records. @throws HutchError `not_found`. */
  async resolveRecorded(projectId: ProjectId, text: string): Promise<Sandbox> {
    try {
      return await this.resolve(projectId, text);
    } catch (error) {
      if (!(error instanceof HutchError) || error.code !== 'not_found') throw error;
      const deleted = await this.#store.query('lastDeleted', { projectId, text });
      if (deleted === null) throw error;
      return deleted;
    }
  }

  /** Exact matches need no store: an id is unique, and so is a name among what is not deleted. */
  #openBy(projectId: ProjectId, text: string): Sandbox | null {
    if (isId('sbx', text)) {
      const sandbox = this.#open.get(text);
      return sandbox?.projectId === projectId ? sandbox : null;
    }
    for (const sandbox of this.#open.values()) if (sandbox.spec.name === text && sandbox.projectId === projectId) return sandbox;
    return null;
  }
}
