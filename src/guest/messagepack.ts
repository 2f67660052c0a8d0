// MessagePack with the protocol's bounds. A payload is looked over before it is decoded: five bytes
// can announce an array of 65,536 entries, and thousands of them would cost the decoder gigabytes.
import { isUtf8 } from 'node:buffer';
import { decode, encode } from '@msgpack/msgpack';
import { DEPTH_MAX, ENTRIES_MAX, OPEN_BYTES_MAX, STRING_BYTES_MAX } from './protocol.ts';

/** The payload is not MessagePack within the bounds. */
export class MessageError extends Error {
  constructor(message: string, cause?: unknown) {
    super(message, { cause });
    this.name = 'MessageError';
  }
}

const DECODE_OPTIONS = {
  // 64-bit integers come as bigint: inode numbers of overlay file systems do not fit a number.
  useBigInt64: true,
  maxStrLength: STRING_BYTES_MAX,
  maxBinLength: STRING_BYTES_MAX,
  maxArrayLength: ENTRIES_MAX,
  maxMapLength: ENTRIES_MAX,
  maxExtLength: 0,
  // The cache of keys would be shared between sandboxes.
  keyDecoder: null,
  mapKeyConverter: (key: unknown): string => {
    if (typeof key === 'string') return key;
    throw new MessageError('a key of a map is no text');
  },
} as const;

/** What a payload means. Throws MessageError, nothing else. */
export function decodeMessage(payload: Uint8Array): unknown {
  lookOver(payload);
  try {
    return decode(payload, DECODE_OPTIONS);
  } catch (cause) {
    throw new MessageError(cause instanceof Error ? cause.message : 'not MessagePack', cause);
  }
}

/** Throws MessageError when the value does not fit into one call. */
export function encodeMessage(value: unknown): Uint8Array {
  let bytes: Uint8Array;
  try {
    bytes = encode(value, { ignoreUndefined: true, maxDepth: DEPTH_MAX + 1 });
  } catch (cause) {
    throw new MessageError(cause instanceof Error ? cause.message : 'cannot be written as MessagePack', cause);
  }
  if (bytes.byteLength > OPEN_BYTES_MAX)
    throw new MessageError(`takes ${bytes.byteLength} bytes; at most ${OPEN_BYTES_MAX} fit into one call`);
  lookOver(bytes);
  return bytes;
}

/** Checks structure, depth and counts without making anything. */
function lookOver(bytes: Uint8Array): void {
  let at = 0;
  /** Values that are still to come, per open array or map. */
  const open: number[] = [];

  const number = (count: 1 | 2 | 4): number => {
    let value = 0;
    for (let index = 0; index < count; index += 1) {
      const byte = bytes[at];
      if (byte === undefined) throw new MessageError('the message is cut short');
      value = value * 256 + byte;
      at += 1;
    }
    return value;
  };
  const skip = (count: number) => {
    if (count > bytes.byteLength - at) throw new MessageError('the message is cut short');
    at += count;
  };
  const binary = (count: number) => {
    if (count > STRING_BYTES_MAX) throw new MessageError(`a string of ${count} bytes; at most ${STRING_BYTES_MAX} are allowed`);
    skip(count);
  };
  const text = (count: number) => {
    binary(count);
    if (!isUtf8(bytes.subarray(at - count, at))) throw new MessageError('a text is not valid UTF-8');
  };
  const container = (entries: number, valuesEach: 1 | 2) => {
    if (entries > ENTRIES_MAX) throw new MessageError(`${entries} entries; at most ${ENTRIES_MAX} are allowed`);
    if (entries * valuesEach > bytes.byteLength - at) throw new MessageError('the message is cut short');
    if (open.length === DEPTH_MAX) throw new MessageError(`nested deeper than ${DEPTH_MAX}`);
    open.push(entries * valuesEach);
  };

  do {
    const left = open.pop();
    if (left !== undefined) {
      if (left === 0) continue;
      open.push(left - 1);
    }
    const head = number(1);
    if (head < 0x80 || head >= 0xe0) continue;
    if (head < 0x90) container(head & 0x0f, 2);
    else if (head < 0xa0) container(head & 0x0f, 1);
    else if (head < 0xc0) text(head & 0x1f);
    else {
      switch (head) {
        case 0xc0:
        case 0xc2:
        case 0xc3:
          break;
        case 0xcc:
        case 0xd0:
          skip(1);
          break;
        case 0xcd:
        case 0xd1:
          skip(2);
          break;
        case 0xca:
        case 0xce:
        case 0xd2:
          skip(4);
          break;
        case 0xcb:
        case 0xcf:
        case 0xd3:
          skip(8);
          break;
        case 0xc4:
          binary(number(1));
          break;
        case 0xc5:
          binary(number(2));
          break;
        case 0xc6:
          binary(number(4));
          break;
        case 0xd9:
          text(number(1));
          break;
        case 0xda:
          text(number(2));
          break;
        case 0xdb:
          text(number(4));
          break;
        case 0xdc:
          container(number(2), 1);
          break;
        case 0xdd:
          container(number(4), 1);
          break;
        case 0xde:
          container(number(2), 2);
          break;
        case 0xdf:
          container(number(4), 2);
          break;
        default:
          throw new MessageError(`the type byte ${head} is not allowed`);
      }
    }
  } while (open.length > 0);
  if (at !== bytes.byteLength) throw new MessageError(`${bytes.byteLength - at} bytes follow the message`);
}
