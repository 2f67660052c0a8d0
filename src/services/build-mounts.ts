// What `RUN --mount` lends to one command. Where nothing is, files lie in the sandbox's own layer and are taken away before it is
// looked at; where something is, memory covers it. Either way none of it gets into a layer.
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
import { pathsOf, type StageSandbox } from './build-sandbox.ts';

const SECRETS_DIR = '/run/secrets';
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
  readonly bind: (mount: Mount) => Promise<BindTree>;
};

/** One at a time by name: two steps that share a cache take turns. */
export class Locks {
  readonly #held = new Map<string, Promise<void>>();

  async take(op: Operation, name: string): Promise<Disposable> {
    for (let before = this.#held.get(name); before !== undefined; before = this.#held.get(name)) {
      op.progress({ step: 'build', detail: `waiting for the cache ${name}` });
      await before;
      op.signal.throwIfAborted();
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

  private constructor(op: Operation, parts: MountParts) {
    this.#op = op;
    this.#parts = parts;
  }

  static async open(op: Operation, parts: MountParts): Promise<Mounted> {
    const mounted = new Mounted(op, parts);
    try {
      for (const mount of parts.mounts) await mounted.#mount(op, mount);
      if (parts.mounts.length > 0) await parts.sandbox.forgetLook();
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

  async #mount(op: Operation, mount: Mount): Promise<void> {
    if (mount.type === 'secret') return await this.#secret(op, mount);
    const target = this.#absolute(mount.target ?? '/');
    if (target === '/') throw this.#parts.fail('--mount: target=/ would hide the whole image');
    if (mount.type === 'tmpfs') return await this.#cover(op, target, mount.sizeBytes);
    if (mount.type === 'bind') return await this.#bind(op, mount, target);
    await this.#cache(op, mount, target);
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
    const { secrets, fail } = this.#parts;
    const id = mount.id ?? mount.target?.split('/').at(-1) ?? '';
    const value = secrets.get(id);
    if (value === undefined) {
      if (mount.required) throw fail(`the secret ${id} is not there: give it with --secret id=${id},src=FILE`);
      return;
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
    const path = mount.target === null ? `${SECRETS_DIR}/${id}` : this.#absolute(mount.target);
    await this.#file(op, path, value, mount);
  }

  async #file(op: Operation, path: string, content: Uint8Array, { mode, uid, gid }: Pick<Mount, 'mode' | 'uid' | 'gid'>): Promise<void> {
    const { agent, fail } = this.#parts;
    if ((await this.#stat(op, path)) !== null) throw fail(`--mount: there is a file already at ${path}; give another target`);
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

  /** An empty directory at that path, for this command. */
  async #place(op: Operation, target: string, sizeBytes: number | null): Promise<void> {
    const { agent, sandbox, fail } = this.#parts;
    const there = await this.#stat(op, target);
    if (there !== null && there.type !== 'dir') throw fail(`--mount: ${target} is a file in the image; a directory is needed`);
    if (there === null) {
      await this.#parents(op, target);
      await agent.file.mkdir(op, { path: target, parents: false, mode: 0o755, user: '0' });
      this.#undo.push(async (late) => await agent.file.remove(late, { path: target, recursive: true, user: '0' }).catch(ignoreMissing));
    } else if (await this.#isEmpty(op, target)) {
      this.#undo.push(async (late) => void (await sandbox.tool(late, ['remove'], pathsOf([`${target}/.`]))));
    } else return await this.#cover(op, target, sizeBytes);
    this.outside.push(target);
  }

  async #isEmpty(op: Operation, path: string): Promise<boolean> {
    for await (const entries of this.#parts.agent.file.list(op, { path, depth: 1, user: '0' })) if (entries.length > 0) return false;
    return true;
  }

  /** Memory over what is there. */
  async #cover(op: Operation, target: string, sizeBytes: number | null): Promise<void> {
    const { sandbox, fail } = this.#parts;
    const there = await this.#stat(op, target);
    if (there !== null && there.type !== 'dir') throw fail(`--mount: ${target} is a file in the image; a directory is needed`);
    if (there === null) {
      await this.#parents(op, `${target}/x`);
    }
    const size = sizeBytes === null ? [] : [String(Math.max(1, Math.ceil(sizeBytes / 1024 ** 2)))];
    await sandbox.tool(op, ['tmpfs', target, ...size], null);
    this.#undo.push(async (late) => void (await sandbox.tool(late, ['uncover', target], null)));
  }

  async #bind(op: Operation, mount: Mount, target: string): Promise<void> {
    const { agent, bind } = this.#parts;
    const { isFile, archive } = await bind(mount);
    if (!isFile) {
      await this.#place(op, target, null);
      await agent.tar.unpack(op, { path: target, preserveOwner: true, user: '0' }, archive());
      return;
    }
    if ((await this.#stat(op, target)) !== null)
      throw this.#parts.fail(`--mount: there is a file already at ${target}; give another target`);
    await this.#parents(op, target);
    const beside = `${target}.hutch-mount`;
    this.outside.push(target, beside);
    await agent.file.mkdir(op, { path: beside, parents: false, mode: 0o700, user: '0' });
    this.#undo.push(async (late) => {
      for (const path of [target, beside]) await agent.file.remove(late, { path, recursive: true, user: '0' }).catch(ignoreMissing);
    });
    await agent.tar.unpack(op, { path: beside, preserveOwner: true, user: '0' }, archive());
    await agent.file.rename(op, { from: `${beside}/file`, to: target, user: '0' });
  }

  async #cache(op: Operation, mount: Mount, target: string): Promise<void> {
    const { agent, host, cacheDir, locks, bind, staging } = this.#parts;
    const id = createHash('sha256')
      .update(mount.id ?? target)
      .digest('hex');
    const lock = await locks.take(op, mount.id ?? target);
    this.#undo.push(async () => lock[Symbol.dispose]());
    const file = join(cacheDir, `${id}.tar`);
    await this.#place(op, target, null);
    if ((await host.stat(op, file)) !== null) {
      await host.chmod(op, file, 0o600); // its last change is its last use
      await agent.tar.unpack(op, { path: target, preserveOwner: true, user: '0' }, host.readStream(op, file));
    } else if (mount.from !== null)
      await agent.tar.unpack(op, { path: target, preserveOwner: true, user: '0' }, (await bind(mount)).archive());
    if (mount.mode !== null) await agent.file.chmod(op, { path: target, mode: mount.mode, user: '0' });
    if (mount.uid !== 0 || mount.gid !== 0)
      await agent.file.chown(op, { path: target, owner: `${mount.uid}:${mount.gid}`, follow: true, user: '0' });
    if (mount.readOnly) return;
    this.#undo.push(async (late, isGood) => {
      if (!isGood) return;
      const beside = join(staging.path, `cache-${id}.tar`);
      await host.remove(late, beside);
      await host.appendStream(late, beside, await agent.tar.pack(late, { path: target, user: '0' }));
      await host.makeDir(late, cacheDir, 0o700);
      await host.rename(late, beside, file);
    });
  }
}

/** Somebody took it away already, or put something else there. */
function ignoreMissing(error: unknown): void {
  if (error instanceof HutchError && ['not_found', 'conflict', 'failed_precondition', 'invalid_argument'].includes(error.code)) return;
  throw error;
}
