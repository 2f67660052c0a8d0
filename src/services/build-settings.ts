// The package settings that a RUN is lent: files in the sandbox's memory, and apt's lists of sources with the mirrors in them while the command
// runs. Always true: after the command these lists say what they said before, and what it did to them itself.
import { HutchError } from '../domain/errors.ts';
import { type PackageSettings, SETTINGS_DIR, withMirrors } from '../domain/package-settings.ts';
import type { Agent } from '../guest/agent.ts';
import type { Operation } from '../host/operation.ts';
import { oneChunk } from '../images/chunks.ts';

const SOURCES = ['/etc/apt/sources.list', '/etc/apt/sources.list.d'];
const SOURCES_BYTES_MAX = 256 * 1024;
const RELEASE_MS = 60_000;

type Changed = { readonly path: string; readonly before: string; readonly now: string };

/** Once for each sandbox: nothing of it is ever part of a layer. */
export async function writeSettings(op: Operation, agent: Agent, { files }: PackageSettings): Promise<void> {
  if (files.size === 0) return;
  await agent.file.mkdir(op, { path: SETTINGS_DIR, parents: true, mode: 0o755, user: '0' });
  // Whoever a command runs as reads them, as they would any configuration; the sandbox is this build's alone.
  const write = (name: string, content: Uint8Array) =>
    agent.file.write(op, { path: `${SETTINGS_DIR}/${name}`, mode: 0o644, user: '0' }, oneChunk(content));
  await Promise.all([...files].map(([name, content]) => write(name, content)));
}

export class AptSources implements AsyncDisposable {
  /** Lists that the command left as they were: nothing of them belongs to its layer. */
  readonly outside: string[] = [];
  readonly #op: Operation;
  readonly #agent: Agent;
  readonly #changed: Changed[] = [];

  private constructor(op: Operation, agent: Agent) {
    this.#op = op;
    this.#agent = agent;
  }

  static async open(op: Operation, agent: Agent, { aptMirrors }: PackageSettings): Promise<AptSources> {
    await using sources = new AptSources(op, agent);
    if (aptMirrors.length > 0) {
      for (const path of await sources.#lists(op)) {
        const before = await sources.#read(op, path);
        const now = before === null ? '' : withMirrors(before, aptMirrors);
        if (before === null || now === before) continue;
        sources.#changed.push({ path, before, now });
        await sources.#write(op, path, now);
      }
    }
    return sources.#moved();
  }

  async close(op: Operation): Promise<void> {
    for (let list = this.#changed.pop(); list !== undefined; list = this.#changed.pop()) {
      const { path, before, now } = list;
      const after = await this.#read(op, path);
      if (after === null) continue; // the command has removed it
      if (after === now) this.outside.push(path);
      await this.#write(op, path, after === now ? before : original(after, before, now));
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    using late = this.#op.releasing(RELEASE_MS);
    await this.close(late).catch((cause: unknown) => late.log.warn({ cause }, 'apt’s sources were left with a mirror in a sandbox'));
  }

  /** Whoever opened it has it from here. */
  #moved(): AptSources {
    const sources = new AptSources(this.#op, this.#agent);
    sources.#changed.push(...this.#changed.splice(0));
    return sources;
  }

  async #lists(op: Operation): Promise<readonly string[]> {
    const found: string[] = [];
    for (const path of SOURCES) {
      try {
        for await (const entries of this.#agent.file.list(op, { path, depth: 1, user: '0' }))
          for (const entry of entries)
            if (entry.type === 'file' && /\.(list|sources)$/.test(entry.path as string) && entry.size <= SOURCES_BYTES_MAX)
              found.push(entry.path as string);
      } catch (error) {
        ignoreOther(error);
        if ((await this.#read(op, path)) !== null) found.push(path);
      }
    }
    return found;
  }

  async #read(op: Operation, path: string): Promise<string | null> {
    try {
      const { entry, bytes } = await this.#agent.file.read(op, { path, user: '0' });
      if (entry.size > SOURCES_BYTES_MAX) {
        await bytes.return({ bytes: 0 });
        return null;
      }
      return Buffer.concat(await Array.fromAsync(bytes, (piece) => Buffer.from(piece))).toString('latin1');
    } catch (error) {
      ignoreOther(error);
      return null;
    }
  }

  /** In place: nothing but its content is another. */
  async #write(op: Operation, path: string, text: string): Promise<void> {
    const bytes = Buffer.from(text, 'latin1');
    await this.#agent.file.write(op, { path, at: 0, user: '0' }, oneChunk(bytes));
    await this.#agent.file.truncate(op, { path, size: bytes.byteLength, user: '0' });
  }
}

/** What a command made of a list with mirrors in it, with what they stand for in their place again. */
function original(after: string, before: string, now: string): string {
  const [were, are] = [before, now].map((text) => text.match(/\bhttps?:\/\/[^\s\]]+/g) ?? []);
  return (are ?? []).reduce((text, mirror, at) => (mirror === were?.[at] ? text : text.replaceAll(mirror, were?.[at] ?? mirror)), after);
}

function ignoreOther(error: unknown): void {
  if (error instanceof HutchError && ['not_found', 'failed_precondition', 'invalid_argument', 'conflict'].includes(error.code)) return;
  throw error;
}
