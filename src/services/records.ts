// What the records say: lists of sandboxes, events, operations and the ledger, and the answer to "why".

import type { SandboxId } from '../domain/ids.ts';
import { isOpId } from '../domain/ids.ts';
import type { OperationRecord } from '../domain/records.ts';
import { requireReference } from '../domain/reference.ts';
import type { SandboxState } from '../domain/sandbox.ts';
import { ACCEPTS } from '../domain/sandbox.ts';
import { cocoonEntry } from '../metering/export.ts';
import { readLedger, verifyLedger } from '../metering/read.ts';
import { Actors } from './actors.ts';
import type { Call } from './call.ts';
import type { Core } from './core.ts';
import type { Handlers } from './handlers.ts';
import { waitFor } from './operations.ts';
import { isOperator } from './operator.ts';
import { eventView, ledgerView, operationView } from './present.ts';
import { operationSentence, sandboxSentence, whoOf } from './why.ts';

type RecordVerbs =
  | 'sandbox.list'
  | 'sandbox.get'
  | 'event.list'
  | 'operation.list'
  | 'operation.get'
  | 'operation.cancel'
  | 'why.get'
  | 'ledger.list'
  | 'ledger.verify';

const LIST_DEFAULT = 1_000;
const PAGE = 500;
const EVENTS_DEFAULT = 10_000;
const WHY_EVENTS = 50;
const WHY_OPERATIONS = 20;

export function recordVerbs(core: Core): Pick<Handlers, RecordVerbs> {
  const { operations, sandboxes, presenter } = core;
  const { store } = core.deps;
  const actors = new Actors(store);
  const namesIn = (records: readonly { readonly actor: string }[]) => actors.names(records.map(({ actor }) => actor));

  async function viewOf(record: OperationRecord) {
    return operationView(record, await namesIn([record]));
  }

  async function operationOf({ op, caller }: Call, id: string) {
    const running = operations.get(id);
    if (running !== null && running.projectId === caller.projectId) return running;
    const stored = isOpId(id) ? await store.query('operation', { id }) : null;
    if (stored === null || (stored.projectId !== null && stored.projectId !== caller.projectId)) {
      throw op.error('not_found', `there is no operation '${id.slice(0, 32)}'`, {
        hint: 'see what is under way: hutch ops; reads are not recorded',
      });
    }
    return stored;
  }

  return {
    'sandbox.list': async ({ op, caller }, { state, label, limit, cursor }) => {
      const states = state === undefined ? undefined : statesOf(op, state);
      const labels = label === undefined ? undefined : (Array.isArray(label) ? label : [label]).map(labelOf);
      const page = await store.query('sandboxes', {
        projectId: caller.projectId,
        limit: limit ?? LIST_DEFAULT,
        cursor: cursor ?? null,
        ...(states === undefined ? {} : { states }),
        ...(labels === undefined ? {} : { labels }),
      });
      return { sandboxes: await presenter.sandboxes(page.sandboxes), nextCursor: page.nextCursor };
    },

    'sandbox.get': async ({ caller }, { ref }) => presenter.sandbox(await sandboxes.resolve(caller.projectId, ref)),

    'event.list': async ({ op, caller }, { cursor, follow, sandbox, limit }) => {
      const sandboxId = sandbox === undefined ? undefined : (await sandboxes.resolveRecorded(caller.projectId, sandbox)).id;
      const filter = { projectId: caller.projectId, ...(sandboxId === undefined ? {} : { sandboxId }) };
      // Who follows without a cursor wants what comes, not what was.
      const newest =
        cursor === undefined && follow === true ? await store.query('lastEvents', { projectId: caller.projectId, limit: 1 }) : [];
      let after = cursor ?? newest.at(-1)?.cursor ?? 0;
      let left = limit ?? (follow === true ? Number.POSITIVE_INFINITY : EVENTS_DEFAULT);
      return (async function* () {
        let news = Promise.withResolvers<void>();
        const unlisten = store.onCommit(() => news.resolve());
        try {
          while (left > 0) {
            news = Promise.withResolvers();
            const page = await store.query('events', { ...filter, after, limit: Math.min(left, PAGE) });
            const names = await namesIn(page);
            for (const event of page) {
              yield eventView(event, names);
              after = event.cursor;
            }
            left -= page.length;
            if (page.length === PAGE) continue;
            if (follow !== true) return;
            await waitFor(op, news.promise, 'more events');
          }
        } finally {
          unlisten();
        }
      })();
    },

    'operation.list': async ({ caller }, { all, limit }) => {
      const running = operations.list(caller.projectId);
      const known = new Set(running.map((record) => record.id));
      const stored = all === true ? await store.query('operations', { projectId: caller.projectId, limit: limit ?? LIST_DEFAULT }) : [];
      const records = [...running, ...stored.filter((record) => !known.has(record.id))];
      const names = await namesIn(records);
      const shown = all === true ? records.slice(0, limit ?? LIST_DEFAULT) : records;
      return { operations: shown.map((record) => operationView(record, names)) };
    },

    'operation.get': async (call, { opId }) => viewOf(await operationOf(call, opId)),

    'operation.cancel': async (call, { opId }) => {
      const record = await operationOf(call, opId);
      if (record.state !== 'running') throw call.op.error('failed_precondition', `operation ${record.id} is ${record.state} already`);
      const { actor } = call.caller;
      const name = (await actors.names([actor])).get(actor);
      const cancelled = await operations.cancel(call.op, record.id, name === undefined ? actor : `the key ${name}`);
      return viewOf(cancelled ?? (await operationOf(call, opId)));
    },

    'why.get': async (call, { ref }) => {
      const { caller } = call;
      const nowMs = core.deps.host.nowMs();
      if (ref.startsWith('op-')) {
        const candidates = isOpId(ref) ? [] : await store.query('operationCandidates', { text: ref });
        const id = isOpId(ref)
          ? ref
          : requireReference(
              'operation',
              ref,
              candidates.map((record) => ({ id: record.id, name: null })),
            ).id;
        const operation = await operationOf(call, id);
        const events = await store.query('events', { projectId: caller.projectId, opId: operation.id, limit: WHY_EVENTS });
        const target = operation.targetId === null ? null : await store.query('sandbox', { id: operation.targetId as SandboxId });
        const names = await namesIn([operation, ...events]);
        return {
          sandbox: target === null ? null : await presenter.sandbox(target),
          operation: operationView(operation, names),
          sentence: operationSentence(operation, events, target, whoOf(names)),
          events: events.map((event) => eventView(event, names)),
          operations: [operationView(operation, names)],
        };
      }
      const sandbox = await sandboxes.resolveRecorded(caller.projectId, ref);
      const [events, stored] = await Promise.all([
        store.query('lastEvents', { sandboxId: sandbox.id, limit: WHY_EVENTS }),
        store.query('operations', { projectId: caller.projectId, targetId: sandbox.id, limit: WHY_OPERATIONS }),
      ]);
      const running = operations.list(caller.projectId).filter((record) => record.targetId === sandbox.id);
      const known = new Set(running.map((record) => record.id));
      const operationsOn = [...running, ...stored.filter((record) => !known.has(record.id))];
      const ender = sandbox.state === 'stopped' ? [sandbox.ended] : [];
      const names = await namesIn([...events, ...operationsOn, ...ender]);
      return {
        sandbox: await presenter.sandbox(sandbox),
        operation: null,
        sentence: sandboxSentence(sandbox, events, running, { nowMs, who: whoOf(names) }),
        events: events.map((event) => eventView(event, names)),
        operations: operationsOn.map((record) => operationView(record, names)),
      };
    },

    'ledger.list': async (call, { cursor, follow, limit, format }) => {
      const { op, caller } = call;
      const entries = readLedger(store, {
        after: cursor ?? 0,
        signal: op.signal,
        ...(isOperator(store, call) ? {} : { projectId: caller.projectId }),
        ...(limit === undefined ? {} : { limit }),
        ...(follow === undefined ? {} : { follow }),
      });
      return (async function* () {
        for await (const entry of entries) {
          const line = format === 'cocoon' ? cocoonEntry(entry) : ledgerView(entry);
          if (line !== null) yield line;
        }
      })();
    },

    'ledger.verify': async ({ op }) => verifyLedger(store, op.signal),
  };
}

function statesOf(op: Call['op'], text: string): readonly SandboxState[] {
  return text.split(',').map((word) => {
    if (!Object.hasOwn(ACCEPTS, word))
      throw op.error('invalid_argument', `state must be of ${Object.keys(ACCEPTS).join(', ')}; '${word.slice(0, 32)}' is not`);
    return word as SandboxState;
  });
}

function labelOf(text: string): { readonly key: string; readonly value: string | null } {
  const at = text.indexOf('=');
  return at < 0 ? { key: text, value: null } : { key: text.slice(0, at), value: text.slice(at + 1) };
}
