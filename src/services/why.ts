// Why a sandbox is as it is, and what an operation did, each in one sentence that a person understands.
// Pure: made from the records alone.
import type { EventRecord, OperationRecord } from '../domain/records.ts';
import { END_CAUSES, type Ended, type Sandbox } from '../domain/sandbox.ts';
import { endingWords, type Who } from './ending.ts';
import { lossOf } from './network-loss.ts';

export function sandboxSentence(
  sandbox: Sandbox,
  events: readonly EventRecord[],
  running: readonly OperationRecord[],
  { nowMs, who }: { readonly nowMs: number; readonly who: Who },
): string {
  const { name } = sandbox.spec;
  const busy = running[0] === undefined ? '' : ` Now ${who(running[0].actor)} is at it with ${running[0].verb} (${running[0].id}).`;
  return `${state(sandbox, name, events, nowMs, who)}${busy}`;
}

function state(sandbox: Sandbox, name: string, events: readonly EventRecord[], nowMs: number, who: Who): string {
  switch (sandbox.state) {
    case 'created':
      return `${name} was made ${ago(sandbox.createdAtMs, nowMs)} and has not been started.`;
    case 'running': {
      const started = events.findLast((event) => event.type === 'sandbox.started');
      const by = started === undefined ? '' : ` by ${who(started.actor)}${inOperation(started)}`;
      const limit = sandbox.deadlineAtMs === null ? '' : `; its time is up in ${span(sandbox.deadlineAtMs - nowMs)}`;
      return `${name} runs: it was started ${ago(sandbox.openComputeSinceMs ?? sandbox.sinceMs, nowMs)}${by}${limit}.${network(events, nowMs)}`;
    }
    case 'paused': {
      const paused = events.findLast((event) => event.type === 'sandbox.paused');
      return `${name} is paused: ${paused === undefined ? 'somebody' : who(paused.actor)} froze it ${ago(sandbox.sinceMs, nowMs)}${inOperation(paused)}.${network(events, nowMs)}`;
    }
    case 'suspended':
      return `${name} is suspended since ${ago(sandbox.sinceMs, nowMs)}: its memory is on disk.`;
    case 'stopped':
      return `${name} is stopped: ${ending(sandbox, sandbox.ended, nowMs, who)}${BY_ITSELF.has(sandbox.ended.cause) ? evidence(events) : ''}.`;
    case 'error': {
      const still = sandbox.openComputeSinceMs === null ? '' : ' Its process is not proven dead, so its time goes on being counted.';
      return `${name} is in error: ${sandbox.cause}.${still}`;
    }
    case 'deleted': {
      const deleted = events.findLast((event) => event.type === 'sandbox.deleted');
      const ended = events.findLast((event) => event.type === 'sandbox.ended');
      const cause = ended === undefined ? '' : `; before, ${ending(sandbox, endedOf(ended), nowMs, who)}`;
      return `${name} was deleted ${ago(sandbox.deletedAtMs, nowMs)} by ${deleted === undefined ? 'somebody' : who(deleted.actor)}${inOperation(deleted)}${cause}.`;
    }
  }
}

function network(events: readonly EventRecord[], nowMs: number): string {
  const loss = lossOf(events);
  if (loss === null) return '';
  return ` Its network is lost: what carried it ended ${ago(loss.atMs, nowMs)}. Stopping and starting it brings it back.`;
}

function ending(sandbox: Sandbox, ended: Ended, nowMs: number, who: Who): string {
  return endingWords(sandbox.spec.backend, ended, ago(ended.atMs, nowMs), who);
}

/** The end that an event tells of. */
export function endedOf({ detail, actor, atMs }: EventRecord): Ended {
  return {
    cause: isCause(detail['cause']) ? detail['cause'] : 'stopped',
    exitCode: typeof detail['exitCode'] === 'number' ? detail['exitCode'] : null,
    oomKilled: detail['oomKilled'] === true,
    actor: typeof detail['actor'] === 'string' ? detail['actor'] : actor,
    atMs: typeof detail['endedAtMs'] === 'number' ? detail['endedAtMs'] : atMs,
  };
}

/** Ends for which nobody asked: there the machine's own end is the explanation; elsewhere it would look like the command's. */
const BY_ITSELF: ReadonlySet<Ended['cause']> = new Set(['crashed', 'guest-shutdown', 'host-stopped', 'host-reboot']);

const CAUSES: ReadonlySet<unknown> = new Set(END_CAUSES);

function isCause(value: unknown): value is Ended['cause'] {
  return CAUSES.has(value);
}

function evidence(events: readonly EventRecord[]): string {
  const proof = events.findLast((event) => event.type === 'sandbox.ended')?.detail['evidence'];
  return typeof proof === 'string' ? ` (evidence: ${proof})` : '';
}

export function operationSentence(operation: OperationRecord, events: readonly EventRecord[], target: Sandbox | null, who: Who): string {
  const what = `${operation.verb}${target === null ? (operation.targetId === null ? '' : ` on ${operation.targetId}`) : ` on ${target.spec.name}`}`;
  const did = events.length === 0 ? '' : ` It did: ${[...new Set(events.map((event) => event.type))].join(', ')}.`;
  const asked = `${who(operation.actor)} asked for ${what}`;
  switch (operation.state) {
    case 'running':
      return `${asked}; it is under way${operation.step === null ? '' : `: ${operation.step}`}.${did}`;
    case 'done':
      return `${asked}; it was done in ${span((operation.endedAtMs ?? operation.startedAtMs) - operation.startedAtMs)}.${did}`;
    case 'failed':
      return `${asked}; it failed: ${operation.error?.message ?? 'for an unknown reason'}.${did}`;
    case 'cancelled':
      return `${asked}; it was ${operation.error?.message.startsWith('cancelled') === true ? operation.error.message : 'cancelled'} and cleaned up.${did}`;
    case 'interrupted':
      return `${asked}; the daemon ended while it was under way, and the next one finished or undid it.${did}`;
  }
}

function inOperation(event: EventRecord | undefined): string {
  return event?.opId === undefined || event.opId === null ? '' : ` (${event.opId})`;
}

/** An actor in words. `names` has those of the keys; one that is not in it is called by its id. */
export function whoOf(names: ReadonlyMap<string, string>): Who {
  return (actor) => {
    if (actor === 'daemon' || actor === 'guest' || actor === 'host') return `the ${actor}`;
    return `the key ${names.get(actor) ?? actor}`;
  };
}

function ago(atMs: number, nowMs: number): string {
  return nowMs - atMs < 1_000 ? 'just now' : `${span(nowMs - atMs)} ago`;
}

const UNITS = [
  ['day', 86_400_000],
  ['hour', 3_600_000],
  ['minute', 60_000],
  ['second', 1_000],
] as const;

function span(ms: number): string {
  for (const [unit, size] of UNITS) {
    const count = Math.floor(ms / size);
    if (count >= 1) return `${count} ${unit}${count === 1 ? '' : 's'}`;
  }
  return `${Math.max(0, Math.round(ms))} ms`;
}
