// Commands over a WebSocket: docs/api.md has the messages.
import type { IncomingMessage } from 'node:http';
import { z } from 'zod';
import { HutchError } from '../../domain/errors.ts';
import { giveBack, withByteBefore } from '../../host/large-buffers.ts';
import type { ExecItem, ExecSession, Tunnel } from '../../services/handlers.ts';
import { execRequest } from '../../services/verbs.ts';
import { invalid, parseBySchema } from './input.ts';
import type { Message, MessageSocket } from './message-socket.ts';

/** How long a client may take to say what it wants to run. */
const REQUEST_MS = 10_000;
/** The guest keeps so much of the output that counts as taken (docs/agent-protocol.md): more must not be on its way to the client. */
const TAKEN_KEPT_BYTES = 512 * 1024;
/** All that a client of ours sends before it waits: then what it says beside it is always heard. */
export const INPUT_WINDOW_BYTES = 1024 * 1024 + 128 * 1024;
const CHANNEL_NUMBER = { stdout: 1, stderr: 2 } as const;
const INPUT_CHANNEL = 0;

const clientMessage = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('inputEnd') }),
  z.strictObject({ type: z.literal('resize'), cols: z.int().min(1).max(4_096), rows: z.int().min(1).max(4_096) }),
  z.strictObject({ type: z.literal('signal'), signal: z.string().regex(/^[A-Z0-9+]{1,12}$/) }),
]);

/** In which a client may send its first message with the request for the socket, percent-encoded. */
const FIRST_HEADER = 'hutch-first-message';
/** In the answer, where it was taken from there: it is not sent again. */
export const FIRST_TAKEN = `${FIRST_HEADER}: taken`;

export function firstMessageOf(request: IncomingMessage): Message | null {
  const sent = request.headers[FIRST_HEADER];
  if (typeof sent !== 'string') return null;
  try {
    return { type: 'text', text: decodeURIComponent(sent) };
  } catch (cause) {
    throw new HutchError({ code: 'invalid_argument', message: 'Hutch-First-Message is not percent-encoded text', cause });
  }
}

/** The client's first message, unless it came with the request. */
export async function receiveExecRequest(socket: MessageSocket, sent: Message | null): Promise<z.output<typeof execRequest>> {
  if (sent !== null) return parseBySchema(execRequest, jsonOf(sent));
  const late = Promise.withResolvers<never>();
  const timer = setTimeout(
    () => late.reject(new HutchError({ code: 'deadline_exceeded', message: 'the first message, which says what to run, did not come' })),
    REQUEST_MS,
  );
  try {
    const first = await Promise.race([socket.receive(), late.promise]);
    if (first === null) throw new HutchError({ code: 'cancelled', message: 'the client went away' });
    return parseBySchema(execRequest, jsonOf(first));
  } finally {
    clearTimeout(timer);
  }
}

/** Carries one session until the exit. Throws when it is lost; letting go of the session is the caller's. */
export async function carryExec(socket: MessageSocket, session: ExecSession): Promise<void> {
  try {
    await carryBoth(socket, session);
  } catch (error) {
    if (await socket.wasLost()) session.keepPlace();
    throw error;
  }
}

async function carryBoth(socket: MessageSocket, session: ExecSession): Promise<void> {
  let sentAck = session.started.inputOffset;
  session.onInputAccepted((offset) => {
    if (offset <= sentAck || socket.gone.aborted) return;
    sentAck = offset;
    socket.sendJson({ type: 'inputAck', offset }).catch(() => {}); // the client has gone: the session ends by that
  });
  await socket.sendJson({ type: 'started', ...session.started });
  const input = carryInput(socket, session);
  const output = carryOutput(socket, session);
  // Input ends before output without ending the session; its failure ends it.
  await Promise.race([output, input.then(() => output)]);
}

async function carryOutput(socket: MessageSocket, session: ExecSession): Promise<void> {
  for await (const item of session.items()) {
    await sendItem(socket, item);
    if (item.type === 'exit') return;
  }
}

async function sendItem(socket: MessageSocket, item: ExecItem): Promise<void> {
  switch (item.type) {
    case 'output': {
      await socket.sendBytes(withByteBefore(CHANNEL_NUMBER[item.channel], item.bytes));
      giveBack(item.bytes);
      // With the next item this one counts as taken.
      return await socket.arrivedBut(TAKEN_KEPT_BYTES);
    }
    case 'dropped':
      return socket.sendJson({ type: 'dropped', channel: item.channel, offset: item.offset, bytes: item.bytes });
    case 'inputTaken':
      return socket.sendJson({ type: 'inputTaken' });
    case 'exit':
      return socket.sendJson({ type: 'exit', ...item.exit });
  }
}

/** Until the client is gone. */
async function carryInput(socket: MessageSocket, session: ExecSession): Promise<void> {
  for (;;) {
    const message = await socket.receive();
    if (message === null) return;
    if (message.type === 'bytes') {
      if (message.bytes[0] !== INPUT_CHANNEL) throw invalid('a binary message begins with the byte 0, for input');
      if (message.bytes.byteLength > 1) await session.write(message.bytes.subarray(1)).catch(unlessTaken);
      continue;
    }
    const wish = parseBySchema(clientMessage, jsonOf(message));
    if (wish.type === 'inputEnd') await session.endInput();
    else if (wish.type === 'resize') await session.resize({ cols: wish.cols, rows: wish.rows });
    else await session.signal(wish.signal);
  }
}

/** Input that was on its way when another client took it: `inputTaken` tells whoever sent it, and their output goes on. */
function unlessTaken(error: unknown): void {
  if (!(error instanceof HutchError && error.code === 'conflict')) throw error;
}

/** Carries a byte stream until both sides have ended. */
export async function carryTunnel(socket: MessageSocket, tunnel: Tunnel): Promise<void> {
  await socket.sendJson({ type: 'connected' });
  const inward = (async () => {
    for (;;) {
      const message = await socket.receive();
      if (message === null) return;
      if (message.type === 'bytes') await tunnel.write(message.bytes);
      else {
        parseBySchema(z.strictObject({ type: z.literal('end') }), jsonOf(message));
        return tunnel.end();
      }
    }
  })();
  const outward = (async () => {
    for await (const bytes of tunnel.bytes()) await socket.sendBytes(bytes);
    await socket.sendJson({ type: 'end' });
  })();
  await Promise.all([inward, outward]);
}

function jsonOf(message: Message): unknown {
  if (message.type === 'bytes') throw invalid('a text message with JSON was expected');
  try {
    return JSON.parse(message.text);
  } catch (cause) {
    throw new HutchError({ code: 'invalid_argument', message: 'the message is no JSON', cause });
  }
}
