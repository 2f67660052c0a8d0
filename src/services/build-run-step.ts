// RUN: the one step of a build that does what somebody wrote. It is done in a sandbox of its stage, begun at the first RUN that the
// cache does not have, and ended with the stage.
import { HutchError } from '../domain/errors.ts';
import { confidential } from '../domain/package-settings.ts';
import type { Operation } from '../host/operation.ts';
import { copyTree, pick } from '../images/build/copy.ts';
import type { Command, Instruction, Of } from '../images/build/dockerfile.ts';
import { DockerfileError } from '../images/build/dockerfile-error.ts';
import { keyOf } from '../images/build/keys.ts';
import { copiedLayer, ForbiddenContent } from '../images/build/layers.ts';
import { argvOf, environmentOf, PROXY_ARGS, shellOf } from '../images/build/state.ts';
import { oneChunk } from '../images/chunks.ts';
import { layersToBeginWith } from './build-beginning.ts';
import { Mounted, mountKey } from './build-mounts.ts';
import { BUILD_DIR, StageSandbox } from './build-sandbox.ts';
import { AptSources, writeSettings } from './build-settings.ts';
import { contentsOf, sourceOf } from './build-sources.ts';
import type { StageNow } from './build-stage-now.ts';
import type { Built } from './build-stage-parts.ts';

const TAIL_LINES = 12;

export class RunSteps implements AsyncDisposable {
  readonly #now: StageNow;
  #sandbox: StageSandbox | null = null;

  constructor(now: StageNow) {
    this.#now = now;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#sandbox?.[Symbol.asyncDispose]();
  }

  /** @throws HutchError with its line, exit code and last words. */
  async run(op: Operation, step: Of<'RUN'>): Promise<void> {
    const { request } = this.#now.parts;
    const environment = environmentOf(this.#now.state);
    const proxies = new Set(PROXY_ARGS);
    const args = [...this.#now.state.args].flatMap(([name, value]): [string, string][] =>
      value === null || environment.has(name) || proxies.has(name) ? [] : [[name, value]],
    );
    const env = { ...Object.fromEntries(args), ...Object.fromEntries(environment) };
    const user = this.#now.state.config.User || '0';
    const cwd = this.#now.state.config.WorkingDir || '/';
    // As it stands: its variables are the shell's, which may set them itself.
    const script = step.command.form === 'script' ? step.command.text : null;
    const argv =
      script === null
        ? argvOf(this.#now.state, step.command as Exclude<Command, { form: 'script' }>)
        : script.startsWith('#!')
          ? [`${BUILD_DIR}/script`]
          : [...shellOf(this.#now.state), script];
    const mounts = step.mounts.map((mount) => ({
      ...mount,
      target: mount.target === null ? null : this.#now.text(step, mount.target),
      source: this.#now.text(step, mount.source),
      id: mount.id === null ? null : this.#now.text(step, mount.id),
    }));
    const mountKeys: string[] = [];
    for (const mount of mounts)
      mountKeys.push(await this.#now.copying(step, async () => await mountKey(mount, async () => await this.#bindKey(op, step, mount))));
    const lines = Object.entries(env).map(([name, value]) => `${name}=${value}`);
    const key = keyOf('run', this.#now.key, argv, script ?? '-', lines, user, cwd, step.network, mountKeys, String(request.epochSeconds));
    await this.#now.layer(op, `RUN ${[...args.map(([name, value]) => `${name}=${value}`), ...argv].join(' ')}`, key, async () => {
      const sandbox = await this.#open(op);
      await sandbox.bring(op, this.#now.root);
      const agent = await sandbox.agent(op);
      const lent = await this.#now.parts.lent(op);
      const { addresses, credentials } = confidential(lent);
      const given = Object.fromEntries(
        PROXY_ARGS.flatMap((name) => (request.args.has(name) ? [[name, request.args.get(name) ?? '']] : [])),
      );
      await using mounted = await Mounted.open(op, {
        ...{
          sandbox,
          agent,
          host: this.#now.parts.sandbox.core.deps.host,
          secrets: this.#now.parts.context.secrets,
          staging: this.#now.parts.sandbox.staging,
          ...this.#now.parts.mounts,
        },
        mounts,
        cwd,
        fail: (message: string) => new DockerfileError(step.line, 'RUN', message),
        note: (text) => this.#now.parts.log.note(this.#now.name, text),
        bind: async (mount) => await this.#bindTree(op, step, mount),
      });
      if (script?.startsWith('#!')) {
        await agent.file.write(op, { path: `${BUILD_DIR}/script`, mode: 0o755, user: '0' }, oneChunk(Buffer.from(script)));
      }
      await sandbox.settle(op);
      const alone = step.network === 'none' ? [...['/proc/1/exe', '--layer', 'alone', await this.#numbers(op, user)]] : [];
      await using apt = await AptSources.open(op, agent, lent);
      const tail = await this.#execute(
        op,
        sandbox,
        { argv: [...alone, ...argv], env: { ...lent.env, ...given, ...mounted.env, ...env }, cwd, user: alone.length === 0 ? user : '0' },
        [...mounted.hidden, ...addresses, ...credentials],
      );
      await sandbox.quiet(op);
      await apt.close(op);
      await mounted.close(op, tail.code === 0);
      if (tail.code !== 0) throw this.#failure(op, step, argv, tail);
      return await sandbox
        .capture(op, { outside: [...mounted.outside, ...apt.outside], clampMtimeSeconds: request.epochSeconds, forbidden: credentials })
        .catch((error: unknown) => {
          if (!(error instanceof ForbiddenContent)) throw error;
          const why = `it wrote a password or token of this machine's package settings to /${error.path}, which no layer may have`;
          throw new DockerfileError(step.line, 'RUN', `${why}: remove that file in the same RUN, or build with --no-package-settings`);
        });
    });
  }

  async #execute(
    op: Operation,
    sandbox: StageSandbox,
    command: Parameters<StageSandbox['execute']>[1],
    hidden: readonly string[],
  ): Promise<{ code: number; why: string; lines: readonly string[] }> {
    const lines: string[] = [];
    const { log } = this.#now.parts;
    const output = log.output(this.#now.name, hidden, (line) => {
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
      `${this.#now.where(step)}: exit code ${code}${why === '' ? '' : ` (${why})`}: ${command}${lines.length === 0 ? '' : `; its last words: ${lines.at(-1)?.slice(0, 300)}`}`,
      {
        hint: 'mend the command and build again: the steps before it are cached',
      },
    );
  }

  async #numbers(op: Operation, user: string): Promise<string> {
    const { uid, gid } = await this.#now.owner(op, user);
    return `${uid}:${gid}`;
  }

  async #open(op: Operation): Promise<StageSandbox> {
    if (this.#sandbox !== null) return this.#sandbox;
    const lending = this.#now.parts.lent(op); // they may come while it starts
    lending.catch(() => {}); // heard below
    await this.#now.parts.ended();
    const { sandbox: parts, request } = this.#now.parts;
    const image = await this.#beginning(op);
    const name = `build-${parts.buildId.slice(3, 11)}-${this.#now.stage.index}`;
    const sandbox = await StageSandbox.open(op, parts, {
      ...{ image: image.reference, applied: image.layers, name, shape: request.shape },
      backend: await this.#now.parts.backend(op),
    });
    this.#sandbox = sandbox; // from here on it ends with the stage
    const agent = await sandbox.agent(op);
    await Promise.all([lending.then((lent) => writeSettings(op, agent, lent)), sandbox.bring(op, this.#now.root)]);
    return sandbox;
  }

  async #beginning(op: Operation): Promise<NonNullable<Built['image']>> {
    const { image, root, settled, parts } = this.#now;
    if (image === null) return { reference: await parts.image(op, this.#now.built()), layers: root.layers.length };
    const layers = layersToBeginWith(root.layers, image.layers, settled);
    const reference = layers === image.layers ? null : await parts.beginning(op, root.layers.slice(0, layers));
    return reference === null ? image : { reference, layers };
  }

  async #bindKey(op: Operation, step: Instruction, mount: { readonly from: string | null; readonly source: string }): Promise<string> {
    const source = await sourceOf(op, this.#now, step, mount.from);
    if (source.key !== null) return source.key;
    return keyOf(await contentsOf(source.tree, source.sources, [mount.source], source.isIgnored, source.hashes));
  }

  async #bindTree(op: Operation, step: Instruction, mount: { readonly from: string | null; readonly source: string }) {
    const source = await sourceOf(op, this.#now, step, mount.from);
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
        nowSeconds: 0,
        unpacked: null,
      },
    );
    return { isFile, archive: () => copies(copiedLayer(out, sources)) };
  }
}

/** For an agent, whose stream may keep a piece for longer than until the next one. */
async function* copies(pieces: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  for await (const piece of pieces) yield Buffer.from(piece);
}
