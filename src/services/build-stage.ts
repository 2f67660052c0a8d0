// One stage of a build, from its FROM to its last step: each step's layer out of the cache, or made. Always true: what a stage gives
// depends on its key alone, and a step begins only when the one before is done.
import { join } from 'node:path';
import { Ignored } from '../domain/dockerignore.ts';
import { HutchError } from '../domain/errors.ts';
import type { BackendName } from '../domain/sandbox.ts';
import type { Operation } from '../host/operation.ts';
import { ArchiveError } from '../images/archive-error.ts';
import type { CacheEntry } from '../images/build/cache.ts';
import type { BuildContext } from '../images/build/context.ts';
import { readPlace } from '../images/build/context.ts';
import { asCopyError, type CopyPlan, copyTree, LayerTree, modeChange, type Owner, ownerOf, pick } from '../images/build/copy.ts';
import { type Command, type Dockerfile, type Instruction, type Of, parseInstruction, type Stage } from '../images/build/dockerfile.ts';
import { DockerfileError } from '../images/build/dockerfile-error.ts';
import { applyLayer, type LayerSource } from '../images/build/flatten.ts';
import { originOf } from '../images/build/graph.ts';
import { fileLine, firstKey, type Key, keyOf } from '../images/build/keys.ts';
import { copiedLayer, hashesOf, type LayerRef, StageRoot, writeLayer } from '../images/build/layers.ts';
import { readLines } from '../images/build/lines.ts';
import { below, lookUp } from '../images/build/look.ts';
import {
  applied,
  argvOf,
  environmentOf,
  expandAt,
  type Globals,
  newState,
  PROXY_ARGS,
  type StageState,
  shellOf,
  variablesOf,
} from '../images/build/state.ts';
import { expandText } from '../images/build/words.ts';
import { type Inode, Tree } from '../images/layers/tree.ts';
import { packingOf } from '../images/layers/unpack.ts';
import type { BaseImage } from './build-base.ts';
import type { BuildLog } from './build-log.ts';
import { Mounted, type MountParts, mountKey } from './build-mounts.ts';
import { BUILD_DIR, type SandboxParts, type Shape, StageSandbox } from './build-sandbox.ts';

const PASSWD_BYTES_MAX = 4 * 1024 * 1024;
const TAIL_LINES = 12;
const MAGIC_BYTES = 6;

export type HistoryEntry = {
  readonly created?: string;
  readonly created_by?: string;
  readonly comment?: string;
  readonly empty_layer?: true;
};

/** A stage that is done, or an image as a stage begins with it. */
export type Built = {
  readonly key: Key;
  readonly state: StageState;
  readonly root: StageRoot;
  readonly history: readonly HistoryEntry[];
  /** When its newest layer was made. */
  readonly atMs: number;
  /** From which a sandbox can be started, and how many of its layers that has; null: from nothing. */
  readonly image: { readonly reference: string; readonly layers: number } | null;
};

export type BuildRequest = {
  readonly args: ReadonlyMap<string, string>;
  readonly noCache: boolean;
  readonly shape: Shape;
  /** Times in the image are not later than this. */
  readonly epochSeconds: number | null;
};

export type StageParts = {
  readonly sandbox: SandboxParts;
  readonly cache: {
    get(op: Operation, key: Key): Promise<CacheEntry | null>;
    put(op: Operation, key: Key, entry: CacheEntry): Promise<void>;
  };
  readonly context: BuildContext;
  readonly dockerfile: Dockerfile;
  readonly globals: Globals;
  readonly request: BuildRequest;
  readonly log: BuildLog;
  readonly backend: (op: Operation) => Promise<BackendName>;
  /** A stage before, once it is built. */
  readonly stage: (index: number) => Promise<Built>;
  readonly base: (op: Operation, name: string) => Promise<BaseImage>;
  /** An image of layers that none has yet, to start a sandbox from. */
  readonly image: (op: Operation, built: Built) => Promise<string>;
  /** Proxies, mirrors and certificates of this machine, for RUN alone. */
  readonly lent: { readonly env: Readonly<Record<string, string>>; readonly files: ReadonlyMap<string, Buffer> };
  readonly mounts: Pick<MountParts, 'cacheDir' | 'locks'>;
  readonly stepDone: () => void;
};

export function stageName(stage: Stage): string {
  return stage.from.as ?? `stage ${stage.index}`;
}

export class StageBuilder {
  readonly #parts: StageParts;
  readonly #stage: Stage;
  #key: Key = '';
  #state: StageState = newState({}, null);
  #root: StageRoot;
  #history: HistoryEntry[] = [];
  #atMs = 0;
  #image: Built['image'] = null;
  #sandbox: StageSandbox | null = null;
  #sandboxes = 0;

  constructor(parts: StageParts, stage: Stage) {
    this.#parts = parts;
    this.#stage = stage;
    this.#root = new StageRoot(parts.sandbox.core.deps.host, parts.sandbox.staging.blobs, []);
  }

  /** @throws HutchError with the step, its line, and for a command its exit code and the last of its output. */
  async build(op: Operation): Promise<Built> {
    try {
      const triggers = await this.#begin(op);
      const steps = [...triggers, ...this.#stage.steps];
      for (const [at, step] of steps.entries()) {
        op.signal.throwIfAborted();
        await this.#step(op, step, at + 1, steps.length);
        this.#parts.stepDone();
      }
      return this.#built();
    } finally {
      await this.#sandbox?.[Symbol.asyncDispose]();
    }
  }

  #built(): Built {
    return { key: this.#key, state: this.#state, root: this.#root, history: this.#history, atMs: this.#atMs, image: this.#image };
  }

  async #begin(op: Operation): Promise<readonly Instruction[]> {
    const { dockerfile, log } = this.#parts;
    const { from } = this.#stage;
    const name = this.#globally(from, from.image);
    if (name === '')
      throw new DockerfileError(from.line, 'FROM', `${from.image} is empty: give the ARG before it a default, or --build-arg`);
    const platform = from.platform === null ? '' : this.#globally(from, from.platform);
    if (platform !== '' && !/^linux\/(amd64|x86_64)(\/v\d)?$/.test(platform)) {
      throw new DockerfileError(
        from.line,
        'FROM',
        `--platform=${platform.slice(0, 60)} does not run here: this machine builds linux/amd64`,
      );
    }
    log.step(stageName(this.#stage), `FROM ${name}${from.as === null ? '' : ` AS ${from.as}`}`, from.line);
    const origin = originOf(dockerfile, name, this.#stage.index);
    if (origin.kind === 'scratch') {
      this.#key = firstKey('scratch');
      return [];
    }
    const before = origin.kind === 'stage' ? await this.#parts.stage(origin.index) : await this.#base(op, from, origin.name);
    this.#key = firstKey(before.key);
    this.#state = newState(before.state.config, before.state.author);
    this.#root = before.root.copy();
    this.#history = [...before.history];
    this.#atMs = before.atMs;
    this.#image = before.image;
    // Triggers of the base image, as if they stood here.
    return (before.state.config.OnBuild ?? []).flatMap((trigger) => {
      const [first] = readLines(trigger).lines;
      return first === undefined ? [] : [{ ...parseInstruction(first, '\\'), line: from.line }];
    });
  }

  async #base(op: Operation, from: Of<'FROM'>, name: string): Promise<Built> {
    try {
      return await this.#parts.base(op, name);
    } catch (error) {
      if (!(error instanceof HutchError) || op.signal.aborted) throw error;
      throw op.error(error.code, `${this.#where(from)}: ${error.message}`, {
        ...(error.hint === null ? {} : { hint: error.hint }),
        cause: error,
      });
    }
  }

  #globally(instruction: Pick<Instruction, 'line' | 'name'>, word: string): string {
    return expandAt(instruction, word, (name) => this.#parts.globals.values.get(name) ?? undefined, this.#parts.dockerfile.escapeChar);
  }

  #where({ line, name }: Pick<Instruction, 'line' | 'name'>): string {
    return `${this.#parts.context.dockerfile.name}:${line}: ${name}`;
  }

  #text(instruction: Instruction, word: string): string {
    return expandAt(instruction, word, variablesOf(this.#state), this.#parts.dockerfile.escapeChar);
  }

  async #step(op: Operation, step: Instruction, number: number, count: number): Promise<void> {
    const { log, globals, dockerfile } = this.#parts;
    const name = stageName(this.#stage);
    op.progress({ step: 'build', detail: `${name} ${number}/${count}: ${step.text.slice(0, 80)}` });
    log.step(name, step.text, step.line, { number, count });
    const next = applied(this.#state, step, globals, dockerfile.escapeChar);
    if (next !== null) {
      this.#state = next;
      this.#key = keyOf('config', this.#key, step.name, JSON.stringify([next.config, next.author, step.name === 'ARG' ? '' : step.text]));
      if (step.name !== 'ARG') this.#note(step.text, true);
      return;
    }
    switch (step.name) {
      case 'RUN':
        return await this.#runStep(op, step);
      case 'COPY':
      case 'ADD':
        return await this.#copyStep(op, step);
      case 'WORKDIR':
        return await this.#workdirStep(op, step);
      default:
        throw new DockerfileError(step.line, step.name, 'it cannot stand here');
    }
  }

  #note(text: string, isEmpty: boolean): void {
    this.#history.push({
      ...(this.#atMs === 0 ? {} : { created: new Date(this.#atMs).toISOString() }),
      ...{ created_by: text, comment: 'hutch build' },
      ...(isEmpty ? { empty_layer: true as const } : {}),
    });
  }

  /** The layer of a step: out of the cache, else made and put there. */
  async #layer(op: Operation, text: string, key: Key, make: () => Promise<LayerRef | null>): Promise<void> {
    const { cache, request, log, sandbox } = this.#parts;
    const known = request.noCache ? null : await cache.get(op, key);
    let entry = known;
    if (entry === null) {
      const sinceMs = sandbox.core.deps.host.monotonicMs();
      const layer = await make();
      const nowMs = sandbox.core.deps.host.nowMs();
      entry = { layer, atMs: request.epochSeconds === null ? nowMs : request.epochSeconds * 1_000 };
      await cache.put(op, key, entry);
      log.note(stageName(this.#stage), `done in ${((sandbox.core.deps.host.monotonicMs() - sinceMs) / 1_000).toFixed(1)} s`);
    } else log.note(stageName(this.#stage), 'CACHED');
    this.#key = key;
    this.#atMs = Math.max(this.#atMs, entry.atMs);
    if (entry.layer !== null) this.#root.add(entry.layer);
    this.#note(text, entry.layer === null);
  }

  async #workdirStep(op: Operation, step: Of<'WORKDIR'>): Promise<void> {
    const value = this.#text(step, step.value);
    const before = this.#state.config.WorkingDir || '/';
    const path = `/${lookUpNames(value.startsWith('/') ? value : `${before}/${value}`)}`;
    this.#state = { ...this.#state, config: { ...this.#state.config, WorkingDir: path } };
    await this.#layer(op, `WORKDIR ${path}`, keyOf('workdir', this.#key, path), async () => {
      const stage = await this.#root.tree(op);
      if (lookUp(stage, path, 'follow').inode?.type === 'directory') return null;
      const tree = new LayerTree(stage, { uid: 0, gid: 0 }, this.#parts.request.epochSeconds);
      await this.#copying(step, async () => tree.directory(path));
      return await this.#write(op, tree, []);
    });
  }

  async #write(op: Operation, tree: Pick<Tree, 'root'>, sources: readonly LayerSource[]): Promise<LayerRef> {
    const { staging } = this.#parts.sandbox;
    return await writeLayer(op, staging, staging.path, copiedLayer(tree, sources));
  }

  async #copying<T>(step: Instruction, work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      const own = asCopyError(error);
      if (own !== null) throw new DockerfileError(step.line, step.name, own.message);
      throw error;
    }
  }

  /** Where the sources of a COPY are. */
  async #source(op: Operation, step: Instruction, from: string | null) {
    const { context, dockerfile } = this.#parts;
    if (from === null) {
      return {
        key: null,
        tree: context.tree,
        sources: [context.layer],
        isIgnored: (path: string) => context.ignored.has(path),
        hashes: context.hashes,
      };
    }
    const origin = originOf(dockerfile, this.#globally(step, from), this.#stage.index);
    if (origin.kind === 'scratch') throw new DockerfileError(step.line, step.name, '--from=scratch: there is nothing in it');
    const built = origin.kind === 'stage' ? await this.#parts.stage(origin.index) : await this.#parts.base(op, origin.name);
    return { key: built.key, root: built.root, isIgnored: () => false, hashes: null } as const;
  }

  async #copyStep(op: Operation, step: Of<'COPY'> | Of<'ADD'>): Promise<void> {
    const { request, dockerfile } = this.#parts;
    const { flags } = step;
    const text = (word: string) => this.#text(step, word);
    const sources = step.sources.map(text);
    const target = text(step.target);
    const [chown, chmod] = [flags.chown, flags.chmod].map((flag) => (flag === null ? null : text(flag)));
    if (step.name === 'ADD' && sources.some((each) => /^https?:\/\//.test(each))) {
      throw new DockerfileError(
        step.line,
        'ADD',
        'URLs are not fetched by a build: fetch it in a RUN, or beside the Dockerfile and COPY it',
      );
    }
    const exclude = flags.exclude.map(text);
    const workdir = this.#state.config.WorkingDir || '/';
    const source = await this.#source(op, step, flags.from);
    const excluded = new Ignored(exclude);
    const isIgnored = (path: string) => source.isIgnored(path) || (exclude.length > 0 && excluded.has(path));
    const inline = step.inline.map(({ name, content, expand }) => ({
      name,
      content: expand ? expandText(content, variablesOf(this.#state), dockerfile.escapeChar) : content,
    }));
    const shape = keyOf(
      ...[
        'copy',
        this.#key,
        step.name,
        sources,
        target,
        workdir,
        chown ?? '-',
        chmod ?? '-',
        String(flags.parents),
        exclude,
        String(request.epochSeconds),
      ],
      inline.flatMap(({ name, content }) => [name, content]),
    );
    const shown = `${step.name} ${[
      ...(flags.from === null ? [] : [`--from=${flags.from}`]),
      ...(chown === null ? [] : [`--chown=${chown}`]),
    ]
      .concat(
        sources,
        inline.map(({ name }) => `<<${name}`),
        target,
      )
      .join(' ')}`;
    const files = async () => {
      const tree = source.tree ?? (await source.root.tree(op));
      return { tree, layers: source.sources ?? source.root.sources(op) };
    };
    // What is the same stage gives the same files: they need not be looked at.
    const quick = source.key === null ? null : keyOf('copied', shape, source.key);
    const known = quick === null || request.noCache ? null : await this.#parts.cache.get(op, quick);
    if (known?.as !== undefined) return await this.#layer(op, shown, known.as, async () => known.layer);
    await this.#copying(step, async () => {
      const { tree, layers } = await files();
      const contents = await this.#contents(tree, layers, sources, isIgnored, source.hashes);
      const key = keyOf('copied', shape, contents);
      await this.#layer(op, shown, key, async () => {
        const stage = await this.#root.tree(op);
        const owner =
          chown === null || chown === undefined ? (flags.from === null ? { uid: 0, gid: 0 } : null) : await this.#owner(op, chown);
        const archives: LayerSource[] = [];
        const plan: CopyPlan = {
          ...{ source: tree, isIgnored, sources, target, workdir, owner, parents: flags.parents },
          mode: chmod === null || chmod === undefined ? null : modeChange(chmod),
          clampMtimeSeconds: request.epochSeconds,
          unpacked: step.name === 'ADD' ? async (inode) => await this.#archive(inode, layers, archives) : null,
        };
        const out = await copyTree(stage, plan);
        const all = [...layers, ...archives];
        if (inline.length > 0) all.push(await this.#inline(out, stage, inline, plan, all.length));
        return await this.#write(op, out, all);
      });
      if (quick !== null) await this.#parts.cache.put(op, quick, { layer: this.#root.layers.at(-1) ?? null, atMs: this.#atMs, as: key });
    });
  }

  async #owner(op: Operation, chown: string): Promise<Owner> {
    if (/^\d+:\d+$/.test(chown)) return ownerOf(chown, '', '');
    return ownerOf(chown, await this.#file(op, '/etc/passwd'), await this.#file(op, '/etc/group'));
  }

  /** A small file of the stage; '' where there is none. */
  async #file(op: Operation, path: string): Promise<string> {
    const { inode } = lookUp(await this.#root.tree(op), path, 'follow');
    if (inode?.type !== 'file' || inode.place === null || inode.sizeBytes > PASSWD_BYTES_MAX) return '';
    const layer = this.#root.sources(op)[inode.place.layer];
    return layer === undefined ? '' : (await readPlace(layer, inode)).toString();
  }

  /** A line for each file that is picked. */
  async #contents(
    tree: Tree,
    layers: readonly LayerSource[],
    sources: readonly string[],
    isIgnored: (path: string) => boolean,
    hashes: ReadonlyMap<number, string> | null,
  ): Promise<readonly string[]> {
    const found: (readonly [string, Inode])[] = [];
    for (const { path, inode } of pick(tree, sources, isIgnored).flat()) {
      found.push([path, inode]);
      if (inode.children === null) continue;
      for (const [name, each] of below(inode)) {
        const whole = path === '' ? name : `${path}/${name}`;
        if (!isIgnored(whole)) found.push([whole, each]);
      }
    }
    const read =
      hashes === null
        ? await hashesOf(
            found.map(([, inode]) => inode),
            layers,
          )
        : null;
    return found.map(([path, inode]) =>
      fileLine(path, inode, (read === null ? hashes?.get(inode.place?.ordinal ?? -1) : read.get(inode)) ?? ''),
    );
  }

  /** A file of ADD that is an archive, as a tree; null: it is none. */
  async #archive(inode: Inode, layers: readonly LayerSource[], archives: LayerSource[]): Promise<Pick<Tree, 'root'> | null> {
    const layer = inode.place === null ? undefined : layers[inode.place.layer];
    if (layer === undefined) return null;
    const { host, path } = this.#parts.sandbox.staging;
    const file = join(path, `add-${Buffer.from(host.randomBytes(8)).toString('hex')}`);
    const op = this.#op();
    await host.appendStream(op, file, contentOf(layer, inode));
    const start = await host.readRange(op, file, 0, MAGIC_BYTES);
    if (!isPacked(start) && !isTar(await host.readRange(op, file, 257, 6))) return null;
    packingOf(start); // what nothing here unpacks is refused, and not copied as it is
    const { unpacked } = await import('../images/layers/unpack.ts');
    const { BUILD_LIMITS } = await import('../images/build.ts');
    const open: LayerSource = () => unpacked(op, host, file, BUILD_LIMITS.layerBytesMax);
    const tree = new Tree();
    const at = layers.length + archives.length;
    try {
      await applyLayer(tree, at, open);
    } catch (error) {
      // A file that is only packed, and no archive, is copied as it is.
      if (error instanceof ArchiveError && isPacked(start)) return null;
      throw error;
    }
    archives.push(open);
    return tree;
  }

  #op(): Operation {
    return this.#parts.log.op;
  }

  /** The heredocs of a COPY, as a layer of their own that its tree points into. */
  async #inline(
    out: LayerTree,
    stage: Tree,
    inline: readonly { name: string; content: string }[],
    plan: CopyPlan,
    at: number,
  ): Promise<LayerSource> {
    const target = plan.target.startsWith('/') ? plan.target : `${plan.workdir}/${plan.target}`;
    const toDirectory = /(^|\/)\.{0,2}$/.test(plan.target) || lookUp(stage, target, 'follow').inode?.type === 'directory';
    const { tarHeader, TAR_END } = await import('../images/tar/writer.ts');
    const { padding } = await import('../images/tar/entry.ts');
    const pieces: Buffer[] = [];
    const mtimeSeconds = this.#parts.request.epochSeconds ?? 0;
    for (const [ordinal, { name, content }] of inline.entries()) {
      const bytes = Buffer.from(content);
      const blank = {
        link: '',
        devMajor: 0,
        devMinor: 0,
        xattrs: null,
        sizeBytes: bytes.byteLength,
        mtimeSeconds,
        ...(plan.owner ?? { uid: 0, gid: 0 }),
      };
      const mode = plan.mode === null ? 0o644 : plan.mode(0o644, false);
      pieces.push(tarHeader({ ...blank, type: 'file', path: name, mode }), bytes, Buffer.alloc(padding(bytes.byteLength)));
      const inode: Inode = { ...blank, type: 'file', mode, place: bytes.byteLength === 0 ? null : { layer: at, ordinal }, children: null };
      out.place(toDirectory ? `${target}/${name}` : target, null, inode);
    }
    const archive = Buffer.concat([...pieces, TAR_END]);
    return async function* () {
      yield archive;
    };
  }

  async #runStep(op: Operation, step: Of<'RUN'>): Promise<void> {
    const { request, dockerfile } = this.#parts;
    const environment = environmentOf(this.#state);
    const proxies = new Set(PROXY_ARGS);
    const args = [...this.#state.args].flatMap(([name, value]): [string, string][] =>
      value === null || environment.has(name) || proxies.has(name) ? [] : [[name, value]],
    );
    const env = { ...Object.fromEntries(args), ...Object.fromEntries(environment) };
    const user = this.#state.config.User || '0';
    const cwd = this.#state.config.WorkingDir || '/';
    const script =
      step.command.form === 'script'
        ? step.command.expand
          ? expandText(step.command.text, variablesOf(this.#state), dockerfile.escapeChar)
          : step.command.text
        : null;
    const argv =
      script === null
        ? argvOf(this.#state, step.command as Exclude<Command, { form: 'script' }>)
        : script.startsWith('#!')
          ? [`${BUILD_DIR}/script`]
          : [...shellOf(this.#state), script];
    const mounts = step.mounts.map((mount) => ({
      ...mount,
      target: mount.target === null ? null : this.#text(step, mount.target),
      source: this.#text(step, mount.source),
      id: mount.id === null ? null : this.#text(step, mount.id),
    }));
    const mountKeys: string[] = [];
    for (const mount of mounts)
      mountKeys.push(await this.#copying(step, async () => await mountKey(mount, async () => await this.#bindKey(op, step, mount))));
    const lines = Object.entries(env).map(([name, value]) => `${name}=${value}`);
    const key = keyOf('run', this.#key, argv, script ?? '-', lines, user, cwd, step.network, mountKeys, String(request.epochSeconds));
    await this.#layer(op, `RUN ${[...args.map(([name, value]) => `${name}=${value}`), ...argv].join(' ')}`, key, async () => {
      const sandbox = await this.#open(op);
      await sandbox.bring(op, this.#root);
      const agent = await sandbox.agent(op);
      const { lent } = this.#parts;
      const given = Object.fromEntries(
        PROXY_ARGS.flatMap((name) => (request.args.has(name) ? [[name, request.args.get(name) ?? '']] : [])),
      );
      await using mounted = await Mounted.open(op, {
        ...{
          sandbox,
          agent,
          host: this.#parts.sandbox.core.deps.host,
          secrets: this.#parts.context.secrets,
          staging: this.#parts.sandbox.staging,
          ...this.#parts.mounts,
        },
        mounts,
        cwd,
        fail: (message: string) => new DockerfileError(step.line, 'RUN', message),
        bind: async (mount) => await this.#bindTree(op, step, mount),
      });
      if (script?.startsWith('#!')) {
        await agent.file.write(op, { path: `${BUILD_DIR}/script`, mode: 0o755, user: '0' }, oneChunk(Buffer.from(script)));
      }
      await sandbox.settle(op);
      const alone = step.network === 'none' ? [...['/proc/1/exe', '--layer', 'alone', await this.#numbers(op, user)]] : [];
      const tail = await this.#execute(
        op,
        sandbox,
        { argv: [...alone, ...argv], env: { ...lent.env, ...given, ...mounted.env, ...env }, cwd, user: alone.length === 0 ? user : '0' },
        mounted.hidden,
      );
      await sandbox.quiet(op);
      await mounted.close(op, tail.code === 0);
      if (tail.code !== 0) throw this.#failure(op, step, argv, tail);
      return await sandbox.capture(op, mounted.outside, request.epochSeconds);
    });
  }

  async #execute(
    op: Operation,
    sandbox: StageSandbox,
    command: Parameters<StageSandbox['execute']>[1],
    hidden: readonly string[],
  ): Promise<{ code: number; why: string; lines: readonly string[] }> {
    const lines: string[] = [];
    const { log } = this.#parts;
    const output = log.output(stageName(this.#stage), hidden, (line) => {
      lines.push(line);
      if (lines.length > TAIL_LINES) lines.shift();
    });
    try {
      const exit = await sandbox.execute(op, command, output.write);
      output.end();
      const code = exit.code ?? 137;
      return { code, why: exit.oomKilled ? 'out of memory' : exit.signal === null ? '' : `signal ${exit.signal}`, lines };
    } catch (error) {
      output.end();
      // A program that is not there: the shell of an image that has none.
      if (
        error instanceof HutchError &&
        (error.code === 'not_found' || error.code === 'permission_denied' || error.code === 'invalid_argument')
      ) {
        return { code: error.code === 'not_found' ? 127 : 126, why: error.message, lines };
      }
      throw error;
    }
  }

  #failure(
    op: Operation,
    step: Instruction,
    argv: readonly string[],
    { code, why, lines }: { code: number; why: string; lines: readonly string[] },
  ): HutchError {
    const command = argv.join(' ').replaceAll('\n', ' ').slice(0, 300);
    return op.error(
      'failed_precondition',
      `${this.#where(step)}: exit code ${code}${why === '' ? '' : ` (${why})`}: ${command}${lines.length === 0 ? '' : `; its last words: ${lines.at(-1)?.slice(0, 300)}`}`,
      {
        hint: 'mend the command and build again: the steps before it are cached',
      },
    );
  }

  async #numbers(op: Operation, user: string): Promise<string> {
    const { uid, gid } = await this.#owner(op, user);
    return `${uid}:${gid}`;
  }

  async #open(op: Operation): Promise<StageSandbox> {
    if (this.#sandbox !== null) return this.#sandbox;
    const { sandbox: parts, request } = this.#parts;
    const built = this.#built();
    const image = this.#image ?? { reference: await this.#parts.image(op, built), layers: this.#root.layers.length };
    this.#sandboxes += 1;
    const name = `build-${parts.buildId.slice(3, 11)}-${this.#stage.index}`;
    this.#sandbox = await StageSandbox.open(op, parts, {
      ...{ image: image.reference, applied: image.layers, name, shape: request.shape },
      backend: await this.#parts.backend(op),
    });
    return this.#sandbox;
  }

  async #bindKey(op: Operation, step: Instruction, mount: { readonly from: string | null; readonly source: string }): Promise<string> {
    const source = await this.#source(op, step, mount.from);
    if (source.key !== null) return source.key;
    return keyOf(await this.#contents(source.tree, source.sources, [mount.source], source.isIgnored, source.hashes));
  }

  async #bindTree(op: Operation, step: Instruction, mount: { readonly from: string | null; readonly source: string }) {
    const source = await this.#source(op, step, mount.from);
    const tree = source.tree ?? (await source.root.tree(op));
    const sources = source.sources ?? source.root.sources(op);
    const [found] = pick(tree, [mount.source], source.isIgnored).flat();
    if (found === undefined) throw new DockerfileError(step.line, 'RUN', `--mount: ${mount.source.slice(0, 100)} is not there`);
    const isFile = found.inode.children === null;
    const out = await copyTree(
      { root: { ...tree.root, children: new Map() } },
      {
        source: tree,
        isIgnored: source.isIgnored,
        sources: [mount.source],
        target: isFile ? '/file' : '/',
        workdir: '/',
        owner: null,
        mode: null,
        parents: false,
        clampMtimeSeconds: null,
        unpacked: null,
      },
    );
    return { isFile, archive: () => copiedLayer(out, sources) };
  }
}

function lookUpNames(path: string): string {
  const parts: string[] = [];
  for (const part of path.split('/')) {
    if (part === '..') parts.pop();
    else if (part !== '' && part !== '.') parts.push(part);
  }
  return parts.join('/');
}

async function* contentOf(layer: LayerSource, inode: Inode): AsyncGenerator<Uint8Array> {
  const { TarReader } = await import('../images/tar/reader.ts');
  await using reader = new TarReader(layer());
  for (let ordinal = 0; ; ordinal += 1) {
    if ((await reader.next()) === null) throw new ArchiveError('a layer is not what it was a moment ago');
    if (ordinal !== inode.place?.ordinal) continue;
    for await (const piece of reader.content()) yield Buffer.from(piece);
    return;
  }
}

function isPacked(start: Uint8Array): boolean {
  return /^(1f8b|28b52ffd|fd377a585a00|425a68)/.test(Buffer.from(start).toString('hex'));
}

function isTar(magic: Uint8Array): boolean {
  return Buffer.from(magic).toString('latin1').startsWith('ustar');
}

async function* oneChunk(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes;
}
