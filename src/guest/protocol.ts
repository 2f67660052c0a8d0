// The numbers of the agent protocol, version 1 (docs/agent-protocol.md). The agent has the same ones.

/** Payload of one frame, in bytes, but for DATA from the agent. */
export const FRAME_BYTES_MAX = 65_536;
/** Payload of one DATA frame from the agent, in bytes. */
export const OUTPUT_FRAME_BYTES_MAX = 262_144;
/** Payload of one OPEN with its PARTs, in bytes: more than a kernel takes as arguments and environment. */
export const OPEN_BYTES_MAX = 4_194_304;
export const HEADER_BYTES = 12;
export const MARK_BYTES = 4;
/** What a frame takes beside its payload. */
export const FRAME_OVERHEAD_BYTES = HEADER_BYTES + MARK_BYTES;
/** Streams that may be open at once on one connection. */
export const STREAMS_MAX = 1_024;
export const STREAM_ID_MAX = 0xffff_ffff;
/** What the host may send on a new stream. */
export const CREDIT_START_BYTES = 262_144;
/** What the agent may send on a new stream. */
export const OUTPUT_CREDIT_START_BYTES = 1_048_576;
/** The host gives credit back in pieces of at least this size. */
export const CREDIT_PIECE_BYTES = 262_144;
/** Events that wait for their reader, per stream. */
export const EVENTS_QUEUED_MAX = 4_096;

export const FRAME = {
  open: 1,
  reply: 2,
  data: 3,
  event: 4,
  credit: 5,
  end: 6,
  cancel: 7,
  close: 8,
  ping: 9,
  pong: 10,
  part: 11,
} as const;
export type FrameType = (typeof FRAME)[keyof typeof FRAME];

/** Channels of DATA and END. */
export const CHANNEL = { content: 0, stdout: 1, stderr: 2 } as const;

/** The flag of REPLY and CLOSE. */
export const OUTCOME = { ok: 0, error: 1 } as const;

/** MessagePack bounds. */
export const DEPTH_MAX = 8;
export const STRING_BYTES_MAX = 131_072;
export const ENTRIES_MAX = 65_536;
