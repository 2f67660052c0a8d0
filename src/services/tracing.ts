// Operations as spans, and each call to the system as an event in them. Without a tracing provider
// all of this does nothing (the default of @opentelemetry/api).
import { isSpanContextValid, ROOT_CONTEXT, type Span, TraceFlags, trace } from '@opentelemetry/api';
import type { OpId } from '../domain/ids.ts';
import type { Host } from '../host/host.ts';

export type Tracer = {
  start(opId: OpId, verb: string, traceparent: string | undefined): Span;
  end(opId: OpId, span: Span): void;
  /** Null when nothing is traced and nobody asked for it. */
  traceparentOf(span: Span): string | null;
  spanOf(opId: OpId): Span | undefined;
};

const TRACEPARENT = /^00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})$/;

export function newTracer(version: string): Tracer {
  const tracer = trace.getTracer('hutch', version);
  const spans = new Map<OpId, Span>();
  return {
    start(opId, verb, traceparent) {
      const [, traceId, spanId, flags] = TRACEPARENT.exec(traceparent ?? '') ?? [];
      const parent =
        traceId === undefined || spanId === undefined || flags === undefined
          ? ROOT_CONTEXT
          : trace.setSpanContext(ROOT_CONTEXT, {
              traceId,
              spanId,
              traceFlags: Number.parseInt(flags, 16) & TraceFlags.SAMPLED,
              isRemote: true,
            });
      const span = tracer.startSpan(verb, { attributes: { 'hutch.op_id': opId } }, parent);
      if (span.isRecording()) spans.set(opId, span);
      return span;
    },
    end(opId, span) {
      spans.delete(opId);
      span.end();
    },
    traceparentOf(span) {
      const context = span.spanContext();
      if (!isSpanContextValid(context)) return null;
      return `00-${context.traceId}-${context.spanId}-${context.traceFlags.toString(16).padStart(2, '0')}`;
    },
    spanOf: (opId) => spans.get(opId),
  };
}

/** A Host whose calls are events in the span of their operation. Only names: arguments may be private. */
export function tracedHost(host: Host, spanOf: (opId: OpId) => Span | undefined): Host {
  const traced = Object.entries(host).map(([name, member]) => {
    if (typeof member !== 'function') return [name, member] as const;
    const call = (...args: readonly unknown[]): unknown => {
      const [first] = args;
      if (typeof first === 'object' && first !== null && 'id' in first) spanOf(first.id as OpId)?.addEvent(`host.${name}`);
      return Reflect.apply(member, host, args);
    };
    return [name, call] as const;
  });
  return Object.fromEntries(traced) as Host;
}
