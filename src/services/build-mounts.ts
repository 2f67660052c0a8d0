// What `RUN --mount` lends to one command: laid out in a directory of the sandbox's own and mounted where it is wanted, and taken away
// before the layer is looked at. None of it gets into a layer.
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { HutchError } from '../domain/errors.ts';
import type { Agent } from '../guest/agent.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { keyOf } from '../images/build/keys.ts';
import type { Mount } from '../images/build/mounts.ts';
import type { BuildStaging } from '../images/build/staging.ts';
import { oneChunk } from '../images/chunks.ts';
import { BUILD_DIR, type StageSandbox } from './build-sandbox.ts';
import { waitFor } from './operations.ts';

const SECRETS_DIR = '/run/secrets';
/** In the sandbox, on its disk, as what is lent may be large: only root comes to it by this name. */
const PLACE = '/.hutch-mounts';
const SECRET_MODE = 0o400;
const RELEASE_MS = 60_000;

export type BindTree = { readonly isFile: boolean; readonly archive: () => AsyncIterable<Uint8Array> };

export type MountParts = {
  readonly sandbox: StageSandbox;
  readonly agent: Agent;
  readonly host: Host;
  readonly staging: BuildStaging;
  readonly secrets: ReadonlyMap<string, Buffer>;
  /** Where the content of `type=cache` is kept between builds. */
  readonly cacheDir: string;
  readonly locks: Locks;
  readonly mounts: readonly Mount[];
  readonly cwd: string;
  readonly fail: (message: string) => Error;
  /** For whoever reads the log. */
  readonly note: (text: string) => void;
  readonly bind: (mount: Mount) => Promise<BindTree>;
};

/** One at a time by name: two steps that share a cache take turns. */
export class Locks {
  readonly #held = new Map<string, Promise<void>>();

  async take(op: Operation, name: string): Promise<Disposable> {
    for (let before = this.#held.get(name); before !== undefined; before = this.#held.get(name)) {
      op.progress({ step: 'build', detail: `waiting for the cache ${name}` });
      await waitFor(op, before, `the cache ${name}`);
    }
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#held.set(name, promise);
    return {
      [Symbol.dispose]: () => {
        this.#held.delete(name);
        resolve();
      },
    };
  }
}

/** What of a mount decides the result of a step: never a secret's value, nor what lies in a cache. */
export async function mountKey(mount: Mount, contents: () => Promise<string>): Promise<string> {
  const { type, target, id, source, readOnly, required, env, mode, uid, gid } = mount;
  const plain = JSON.stringify([type, target, id, source, readOnly, required, env, mode, uid, gid]);
  return type === 'bind' ? keyOf(plain, await contents()) : plain;
}

type Undo = (op: Operation, isGood: boolean) => Promise<void>;

export class Mounted implements AsyncDisposable {
  readonly env: Record<string, string> = {};
  /** Values that no log shows. */
  readonly hidden: string[] = [];
  /** Paths of which nothing belongs to a layer. */
  readonly outside: string[] = [];
  readonly #parts: MountParts;
  readonly #op: Operation;
  readonly #undo: Undo[] = [];
  /** By their names, those of this command. */
  readonly #caches = new Map<string, { readonly tree: string; readonly none: string }>();
  #slots = 0;
  #secrets = 0;

  private constructor(op: Operation, parts: MountParts) {
    this.#op = op;
    this.#parts = parts;
  }

  static async open(op: Operation, parts: MountParts): Promise<Mounted> {
    const mounted = new Mounted(op, parts);
    try {
      await mounted.#mountAll(op);
      return mounted;
    } catch (error) {
      await mounted[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Takes all of it away; what a cache has is kept when the command was good. */
  async close(op: Operation, isGood: boolean): Promise<void> {
    for (let undo = this.#undo.pop(); undo !== undefined; undo = this.#undo.pop()) await undo(op, isGood);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    using late = this.#op.releasing(RELEASE_MS);
    await this.close(late, false).catch((cause: unknown) =>
      late.log.warn({ cause }, 'what was lent to a step of a build was left in its sandbox'),
    );
  }

  /** Outer ones first: another may lie in one. Caches in the order of their names, or two steps would wait for each other. */
  async #mountAll(op: Operation): Promise<void> {
    const { mounts, locks, sandbox } = this.#parts;
    if (mounts.length === 0) return;
    for (const id of new Set(
      mounts
        .filter(({ type }) => type === 'cache')
        .map((mount) => this.#cacheId(mount))
        .sort(),
    )) {
      const lock = await locks.take(op, id);
      this.#undo.push(async () => lock[Symbol.dispose]());
    }
    const depth = (mount: Mount) => this.#targetOf(mount).split('/').length;
    for (const mount of mounts.toSorted((left, right) => depth(left) - depth(right))) await this.#mount(op, mount);
    await sandbox.forgetLook();
  }

  async #mount(op: Operation, mount: Mount): Promise<void> {
    if (mount.type === 'secret') return await this.#secret(op, mount);
    const target = this.#targetOf(mount);
    if (target === '/') throw this.#parts.fail('--mount: target=/ would hide the whole image');
    if (mount.type === 'tmpfs') return await this.#tmpfs(op, target, mount.sizeBytes);
    if (mount.type === 'bind') return await this.#bind(op, mount, target);
    await this.#cache(op, mount, target);
  }

  #targetOf({ type, id, target }: Mount): string {
    return this.#absolute(target ?? (type === 'secret' ? `${SECRETS_DIR}/${id}` : '/'));
  }

  #cacheId(mount: Mount): string {
    return mount.id ?? this.#targetOf(mount);
  }

  #absolute(path: string): string {
    const whole = path.startsWith('/') ? path : `${this.#parts.cwd}/${path}`;
    const parts: string[] = [];
    for (const part of whole.split('/')) {
      if (part === '..') parts.pop();
      else if (part !== '' && part !== '.') parts.push(part);
    }
    return `/${parts.join('/')}`;
  }

  async #secret(op: Operation, mount: Mount): Promise<void> {
    const { secrets, fail, note } = this.#parts;
    const id = mount.id ?? mount.target?.split('/').at(-1) ?? '';
    const value = secrets.get(id);
    if (value === undefined) {
      if (mount.required) throw fail(`the secret ${id} is not there: give it with --secret id=${id},src=FILE`);
      return note(`no secret ${id} was given: the command goes on without it`);
    }
    this.hidden.push(
      ...value
        .toString()
        .split(/\r?\n/)
        .map((line) => line.trim())
        .filter((line) => line.length >= 4),
    );
    if (mount.env !== null) this.env[mount.env] = value.toString();
    if (mount.env !== null && mount.target === null) return;
    const path = this.#targetOf(mount);
    if ((await this.#stat(op, path)) === null && path.startsWith('/run/')) return await this.#file(op, path, value, mount);
    this.#secrets += 1;
    const at = `${BUILD_DIR}/secret-${this.#secrets}`; // in memory
    await this.#file(op, at, value, mount);
    await this.#target(op, path, 'file');
    await this.#over(op, ['bind', at], path);
  }

  async #file(op: Operation, path: string, content: Uint8Array, { mode, uid, gid }: Pick<Mount, 'mode' | 'uid' | 'gid'>): Promise<void> {
    const { agent } = this.#parts;
    await this.#parents(op, path);
    this.outside.push(path);
    this.#undo.push(async (late) => await agent.file.remove(late, { path, recursive: false, user: '0' }).catch(ignoreMissing));
    await agent.file.write(op, { path, mode: mode ?? SECRET_MODE, user: '0' }, oneChunk(content));
    if (uid !== 0 || gid !== 0) await agent.file.chown(op, { path, owner: `${uid}:${gid}`, follow: false, user: '0' });
  }

  /** Directories that are not there are made, and go again when nothing else came into them. */
  async #parents(op: Operation, path: string): Promise<void> {
    const { agent } = this.#parts;
    const missing: string[] = [];
    for (let at = path.lastIndexOf('/'); at > 0; at = path.lastIndexOf('/', at - 1)) {
      const parent = path.slice(0, at);
      if ((await this.#stat(op, parent)) !== null) break;
      missing.unshift(parent);
    }
    for (const parent of missing) {
      await agent.file.mkdir(op, { path: parent, parents: false, mode: 0o755, user: '0' });
      this.#undo.push(async (late) => await agent.file.remove(late, { path: parent, recursive: false, user: '0' }).catch(ignoreMissing));
    }
  }

  async #stat(op: Operation, path: string) {
    try {
      return await this.#parts.agent.file.stat(op, { path, follow: true, user: '0' });
    } catch (error) {
      if (error instanceof HutchError && error.code === 'not_found') return null;
      throw error;
    }
  }

  /** Something to mount over: what the image has there, else made for this command. */
  async #target(op: Operation, target: string, kind: 'file' | 'dir'): Promise<void> {
    const { agent, fail } = this.#parts;
    const there = await this.#stat(op, target);
    if (there !== null && (there.type === 'dir') !== (kind === 'dir'))
      throw fail(
        `--mount: ${target} is a ${kind === 'dir' ? 'file' : 'directory'} in the image; a ${kind === 'dir' ? 'directory' : 'file'} is needed`,
      );
    if (there !== null) return;
    await this.#parents(op, target);
    this.outside.push(target);
    this.#undo.push(async (late) => await agent.file.remove(late, { path: target, recursive: true, user: '0' }).catch(ignoreMissing));
    if (kind === 'dir') await agent.file.mkdir(op, { path: target, parents: false, mode: 0o755, user: '0' });
    else await agent.file.write(op, { path: target, mode: 0o644, user: '0' }, oneChunk(new Uint8Array()));
  }

  async #over(op: Operation, what: readonly string[], target: string): Promise<void> {
    const { sandbox } = this.#parts;
    await sandbox.tool(op, [...what, target], null);
    this.#undo.push(async (late) => void (await sandbox.tool(late, ['uncover', target], null)));
  }

  async #tmpfs(op: Operation, target: string, sizeBytes: number | null): Promise<void> {
    await this.#target(op, target, 'dir');
    const { sandbox } = this.#parts;
    const size = sizeBytes === null ? [] : [String(Math.max(1, Math.ceil(sizeBytes / 1024 ** 2)))];
    await sandbox.tool(op, ['tmpfs', target, ...size], null);
    this.#undo.push(async (late) => void (await sandbox.tool(late, ['uncover', target], null)));
  }

  /** An empty directory out of everybody's way. */
  async #slot(op: Operation): Promise<{ readonly tree: string; readonly none: string; readonly view: string }> {
    const { agent } = this.#parts;
    if (this.#slots === 0) {
      this.outside.push(PLACE);
      this.#undo.push(async (late) => await agent.file.remove(late, { path: PLACE, recursive: true, user: '0' }).catch(ignoreMissing));
      await agent.file.mkdir(op, { path: PLACE, parents: false, mode: 0o700, user: '0' });
    }
    this.#slots += 1;
    const [tree, none, view] = ['tree', 'none', 'view'].map((name) => `${PLACE}/${this.#slots}/${name}`) as [string, string, string];
    for (const path of [tree, none, view]) await agent.file.mkdir(op, { path, parents: true, mode: 0o755, user: '0' });
    return { tree, none, view };
  }

  async #bind(op: Operation, mount: Mount, target: string): Promise<void> {
    const { agent, bind } = this.#parts;
    const { isFile, archive } = await bind(mount);
    const { tree, none, view } = await this.#slot(op);
    await agent.tar.unpack(op, { path: tree, preserveOwner: true, user: '0' }, archive());
    if (!isFile) {
      await this.#target(op, target, 'dir');
      if (mount.readOnly) await this.#within(op, target, tree);
      return await this.#over(op, mount.readOnly ? ['view', tree, none] : ['bind', tree], target);
    }
    await this.#target(op, target, 'file');
    if (mount.readOnly) await this.#over(op, ['view', tree, none], view);
    await this.#over(op, ['bind', `${mount.readOnly ? view : tree}/file`], target);
  }

  /** Where others are mounted in what nothing can be made in. */
  async #within(op: Operation, target: string, tree: string): Promise<void> {
    const { agent, mounts } = this.#parts;
    for (const other of mounts) {
      const path = this.#targetOf(other);
      if (other.type === 'secret' || !path.startsWith(`${target}/`)) continue;
      const at = `${tree}${path.slice(target.length)}`;
      if ((await this.#stat(op, at)) === null) await agent.file.mkdir(op, { path: at, parents: true, mode: 0o755, user: '0' });
    }
  }

  async #cache(op: Operation, mount: Mount, target: string): Promise<void> {
    const { agent } = this.#parts;
    const id = this.#cacheId(mount);
    const { tree, none } = this.#caches.get(id) ?? (await this.#filled(op, mount, id));
    if (mount.mode !== null) await agent.file.chmod(op, { path: tree, mode: mount.mode, user: '0' });
    if (mount.uid !== 0 || mount.gid !== 0)
      await agent.file.chown(op, { path: tree, owner: `${mount.uid}:${mount.gid}`, follow: true, user: '0' });
    await this.#target(op, target, 'dir');
    await this.#over(op, mount.readOnly ? ['view', tree, none] : ['bind', tree], target);
  }

  /** What a cache has, from the builds before; kept for those to come, however often it is mounted. */
  async #filled(op: Operation, mount: Mount, id: string): Promise<{ readonly tree: string; readonly none: string }> {
    const { agent, host, cacheDir, bind, staging, mounts } = this.#parts;
    const slot = await this.#slot(op);
    const { tree } = slot;
    this.#caches.set(id, slot);
    const name = createHash('sha256').update(id).digest('hex');
    const file = join(cacheDir, `${name}.tar`);
    if ((await host.stat(op, file)) !== null) {
      await host.chmod(op, file, 0o600); // its last change is its last use
      await agent.tar.unpack(op, { path: tree, preserveOwner: true, user: '0' }, host.readStream(op, file));
    } else if (mount.from !== null)
      await agent.tar.unpack(op, { path: tree, preserveOwner: true, user: '0' }, (await bind(mount)).archive());
    const isWritten = mounts.some((other) => other.type === 'cache' && !other.readOnly && this.#cacheId(other) === id);
    if (isWritten)
      this.#undo.push(async (late, isGood) => {
        if (!isGood) return;
        const beside = await staging.file(late, `cache-${name}.tar`);
        await host.remove(late, beside);
        await host.appendStream(late, beside, await agent.tar.pack(late, { path: tree, user: '0' }));
        await host.makeDir(late, cacheDir, 0o700);
        await host.rename(late, beside, file);
      });
    return slot;
  }
}

/** Somebody took it away already, or put something else there. */
function ignoreMissing(error: unknown): void {
  if (error instanceof HutchError && ['not_found', 'conflict', 'failed_precondition', 'invalid_argument'].includes(error.code)) return;
  throw error;
}
