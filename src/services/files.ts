// Files and archives in a sandbox: the agent does it, as the user that the call names. Contents pass
// through in pieces, as fast as the slower side takes them.
import type { Agent } from '../guest/agent.ts';
import type { FileChange } from '../guest/messages.ts';
import type { Awaken } from './awaken.ts';
import type { Call } from './call.ts';
import type { Core } from './core.ts';
import type { Handlers } from './handlers.ts';
import { readOnHost, writeOnHost } from './host-files.ts';
import { borrow, closeLater, nothingMore } from './lending.ts';
import { entryView, pathText } from './present.ts';
import type { Run } from './run.ts';
import type { Parsed } from './verbs.ts';

type FileVerbs =
  | 'file.read'
  | 'file.write'
  | 'file.stat'
  | 'file.list'
  | 'file.mkdir'
  | 'file.rename'
  | 'file.remove'
  | 'file.chmod'
  | 'file.chown'
  | 'file.symlink'
  | 'file.truncate'
  | 'file.watch'
  | 'archive.get'
  | 'archive.put';

export function fileVerbs(core: Core, awaken: Awaken): Pick<Handlers, FileVerbs> {
  async function agentOf(call: Call, ref: string): Promise<Agent> {
    return (await runOf(call, ref)).agent;
  }

  async function runOf(call: Call, ref: string): Promise<{ readonly run: Run; readonly agent: Agent }> {
    const sandbox = await awaken.resolve(call, ref);
    return { run: core.runs.of(call.op, sandbox), agent: await core.runs.agent(call.op, sandbox) };
  }

  /** For a client that may be lent a file; null where it may not. */
  function lenderOf(call: Call, run: Run): Run | null {
    return call.lend === null || run.backend.descriptorPath === undefined ? null : run;
  }

  /** What a file is, and its bytes: none where the client has been lent it. Null: it has to be read as ever. */
  async function readLent(call: Call, agent: Agent, run: Run, spec: Omit<Parsed<'file.read'>, 'ref'>) {
    const found = await agent.file.readLent(call.op, defined(spec));
    if ('bytes' in found) return found;
    using lent = found.lent;
    const file = await borrow(core.deps.host, call.op, run, lent.descriptor, 'read');
    if (file === null) return null;
    closeLater(file);
    call.lend?.(file);
    return { entry: found.entry, bytes: nothingMore() };
  }

  return {
    'file.read': async (call, { ref, ...spec }) => {
      const { run, agent } = await runOf(call, ref);
      const lender = lenderOf(call, run);
      const carried = () =>
        run.backend.rootOnHost === undefined
          ? agent.file.read(call.op, defined(spec))
          : readOnHost(core.deps.host, call.op, run, agent, defined(spec));
      const { entry, bytes } = (lender === null ? null : await readLent(call, agent, lender, spec)) ?? (await carried());
      return {
        contentType: 'application/octet-stream',
        headers: { 'Hutch-Entry': encodeURIComponent(JSON.stringify(entryView(entry))) },
        bytes,
      };
    },
    'file.write': async (call, { ref, ...spec }, source) => {
      const { run, agent } = await runOf(call, ref);
      if (lenderOf(call, run) === null) {
        call.lend?.(null);
        if (run.backend.rootOnHost !== undefined)
          return entryView(await writeOnHost(core.deps.host, call.op, run, agent, defined(spec), source));
        return entryView(await agent.file.write(call.op, defined(spec), source));
      }
      await using held = new AsyncDisposableStack();
      const lend = async (descriptor: number | null): Promise<void> => {
        const file = descriptor === null ? null : await borrow(core.deps.host, call.op, run, descriptor, 'write');
        if (file !== null) held.use(file);
        call.lend?.(file);
      };
      return entryView(await agent.file.write(call.op, defined(spec), source, lend));
    },
    'file.stat': async (call, { ref, follow, ...spec }) =>
      entryView(await (await agentOf(call, ref)).file.stat(call.op, { ...defined(spec), follow: follow ?? true })),
    'file.list': async (call, { ref, depth, ...spec }) => {
      const pages = (await agentOf(call, ref)).file.list(call.op, { ...defined(spec), depth: depth ?? 1 });
      const first = await pages.next(); // a directory that cannot be read is an answer, not a line
      return (async function* () {
        if (first.done === true) return;
        yield* first.value.map(entryView);
        for await (const page of pages) yield* page.map(entryView);
      })();
    },
    'file.mkdir': async (call, { ref, parents, ...spec }) =>
      entryView(await (await agentOf(call, ref)).file.mkdir(call.op, { ...defined(spec), parents: parents ?? false })),
    'file.rename': async (call, { ref, ...spec }) => entryView(await (await agentOf(call, ref)).file.rename(call.op, defined(spec))),
    'file.remove': async (call, { ref, recursive, ...spec }) => {
      await (await agentOf(call, ref)).file.remove(call.op, { ...defined(spec), recursive: recursive ?? false });
      return {};
    },
    'file.chmod': async (call, { ref, ...spec }) => entryView(await (await agentOf(call, ref)).file.chmod(call.op, defined(spec))),
    'file.chown': async (call, { ref, follow, ...spec }) =>
      entryView(await (await agentOf(call, ref)).file.chown(call.op, { ...defined(spec), follow: follow ?? true })),
    'file.symlink': async (call, { ref, ...spec }) => entryView(await (await agentOf(call, ref)).file.symlink(call.op, defined(spec))),
    'file.truncate': async (call, { ref, ...spec }) => entryView(await (await agentOf(call, ref)).file.truncate(call.op, defined(spec))),
    'file.watch': async (call, { ref, recursive, ...spec }) => {
      const changes = await (await agentOf(call, ref)).file.watch(call.op, { ...defined(spec), recursive: recursive ?? false });
      return (async function* () {
        for await (const change of changes) yield changeView(change);
      })();
    },

    'archive.get': async (call, { ref, ...spec }) => ({
      contentType: 'application/x-tar',
      headers: {},
      bytes: await (await agentOf(call, ref)).tar.pack(call.op, defined(spec)),
    }),
    'archive.put': async (call, { ref, ...spec }, source) => {
      const { entries, bytes } = await (await agentOf(call, ref)).tar.unpack(call.op, defined(spec), source);
      return { entries, bytes };
    },
  };
}

function changeView(change: FileChange) {
  if (change.e === 'overflow') return { kind: 'overflow', path: null, to: null } as const;
  return { kind: change.kind, path: pathText(change.path), to: change.to === null ? null : pathText(change.to) };
}

type Defined<T> = { [K in keyof T]: Exclude<T[K], undefined> };

/** What was not given is absent, rather than there and undefined. */
function defined<T extends object>(given: T): Defined<T> {
  return Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined)) as Defined<T>;
}
