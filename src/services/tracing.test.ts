import { type Span, type SpanContext, type TracerProvider, trace } from '@opentelemetry/api';
import { afterEach, expect, test } from 'vitest';
import { newOpId } from '../domain/ids.ts';
import type { Host } from '../host/host.ts';
import { newTracer, tracedHost } from './tracing.ts';

afterEach(() => trace.disable());

const opId = newOpId((count) => new Uint8Array(count).fill(7));

test('without a provider nothing is recorded and nothing is kept', () => {
  const tracer = newTracer('1');
  const span = tracer.start(opId, 'sandbox.get', undefined);
  expect([tracer.traceparentOf(span), tracer.spanOf(opId)]).toEqual([null, undefined]);
  tracer.end(opId, span);
});

test('an operation is a child of the client’s span, and its calls to the system are events in it', async () => {
  const events: string[] = [];
  const parents: (SpanContext | undefined)[] = [];
  const context = { traceId: 'a'.repeat(32), spanId: 'c'.repeat(16), traceFlags: 1 };
  const span = {
    isRecording: () => true,
    spanContext: () => context,
    addEvent: (name: string) => events.push(name),
    end: () => events.push('end'),
  } as unknown as Span;
  const provider = {
    getTracer: () => ({
      startSpan(_name: string, _options: object, parent: Parameters<typeof trace.getSpanContext>[0]) {
        parents.push(trace.getSpanContext(parent));
        return span;
      },
    }),
  } as unknown as TracerProvider;
  trace.setGlobalTracerProvider(provider);
  const tracer = newTracer('1');
  const host = tracedHost({ stat: async () => null, nowMs: () => 5, uid: 0 } as unknown as Host, tracer.spanOf);
  const started = tracer.start(opId, 'sandbox.create', `00-${'a'.repeat(32)}-${'b'.repeat(16)}-01`);
  await host.stat({ id: opId } as never, '/secret/path');
  expect([host.nowMs(), host.uid]).toEqual([5, 0]);
  tracer.end(opId, started);
  expect(events).toEqual(['host.stat', 'end']);
  expect(parents[0]).toMatchObject({ traceId: 'a'.repeat(32), spanId: 'b'.repeat(16), isRemote: true });
  expect(tracer.traceparentOf(started)).toBe(`00-${'a'.repeat(32)}-${'c'.repeat(16)}-01`);
});

test('a traceparent that is none is ignored', () => {
  const tracer = newTracer('1');
  for (const text of ['', 'nonsense', `00-${'g'.repeat(32)}-${'b'.repeat(16)}-01`])
    expect(() => tracer.start(opId, 'x', text)).not.toThrow();
});
