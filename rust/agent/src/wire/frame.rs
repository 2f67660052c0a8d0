//! The layout of preamble and frames. All integers are little-endian.
use std::fmt;

pub const MAGIC: [u8; 8] = *b"HUTCH\x01\r\n";
pub const PREAMBLE_BYTES: usize = 16;
pub const HEADER_BYTES: usize = 12;
pub const MARK_BYTES: usize = 4;
/// Header and mark together.
pub const FRAME_OVERHEAD: usize = HEADER_BYTES + MARK_BYTES;
/// Payload of a frame, but for DATA from the agent.
pub const FRAME_BYTES_MAX: usize = 65_536;
/// Payload of DATA from the agent.
pub const OUTPUT_FRAME_BYTES_MAX: usize = 262_144;
/// Payload of one OPEN with its PARTs: more than a kernel takes as arguments and environment.
pub const OPEN_BYTES_MAX: usize = 4 * 1024 * 1024;
pub const STREAMS_MAX: usize = 1_024;
/// What the host may send on a new stream.
pub const CREDIT_START_BYTES: u32 = 262_144;
/// What the agent may send on a new stream.
pub const OUTPUT_CREDIT_START_BYTES: u32 = 1_048_576;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameType {
    Open = 1,
    Reply = 2,
    Data = 3,
    Event = 4,
    Credit = 5,
    End = 6,
    Cancel = 7,
    Close = 8,
    Ping = 9,
    Pong = 10,
    Part = 11,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub kind: FrameType,
    pub flag: u8,
    pub stream: u32,
    /// Payload length, at most `FRAME_BYTES_MAX`.
    pub length: usize,
}

/// Why a connection ends. A bad frame ends the connection, never the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameError {
    TooLong(u32),
    UnknownType(u8),
    NotFromHost(u8),
    BadFlag(u8),
    NotZero(u16),
    BadLength {
        kind: u8,
        length: u32,
    },
    BadStream {
        kind: u8,
        stream: u32,
    },
    BadMark,
    /// A preamble stands in the place of a header.
    Superseded,
    BeyondCredit(u32),
    StreamInUse(u32),
    TooManyStreams,
    TooManyPings,
    /// Parts of two calls at a time.
    StrayPart(u32),
    CallTooLong(u32),
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong(length) => write!(f, "a frame of {length} bytes; at most {FRAME_BYTES_MAX} are allowed"),
            Self::UnknownType(kind) => write!(f, "unknown frame type {kind}"),
            Self::NotFromHost(kind) => write!(f, "frame type {kind} is not for the host to send"),
            Self::BadFlag(flag) => write!(f, "impossible flag {flag}"),
            Self::NotZero(value) => write!(f, "the reserved field is {value}, not 0"),
            Self::BadLength { kind, length } => write!(f, "a frame of type {kind} with {length} bytes"),
            Self::BadStream { kind, stream } => write!(f, "a frame of type {kind} on stream {stream}"),
            Self::BadMark => write!(f, "wrong mark"),
            Self::Superseded => write!(f, "the host connects anew"),
            Self::BeyondCredit(stream) => write!(f, "data beyond the credit of stream {stream}"),
            Self::StreamInUse(stream) => write!(f, "stream {stream} is open already"),
            Self::TooManyStreams => write!(f, "more than {STREAMS_MAX} streams"),
            Self::TooManyPings => write!(f, "too many unanswered pings"),
            Self::StrayPart(stream) => write!(f, "a part of a call on stream {stream} within the parts of another"),
            Self::CallTooLong(stream) => write!(f, "a call on stream {stream} of more than {OPEN_BYTES_MAX} bytes"),
        }
    }
}

impl Header {
    /// Parses and checks what a *host* may send.
    pub fn parse(bytes: [u8; HEADER_BYTES]) -> Result<Header, FrameError> {
        let [l0, l1, l2, l3, kind_byte, flag, z0, z1, s0, s1, s2, s3] = bytes;
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        let zero = u16::from_le_bytes([z0, z1]);
        let stream = u32::from_le_bytes([s0, s1, s2, s3]);
        let kind = match kind_byte {
            1 => FrameType::Open,
            3 => FrameType::Data,
            5 => FrameType::Credit,
            6 => FrameType::End,
            7 => FrameType::Cancel,
            9 => FrameType::Ping,
            10 => FrameType::Pong,
            11 => FrameType::Part,
            2 | 4 | 8 => return Err(FrameError::NotFromHost(kind_byte)),
            _ => return Err(FrameError::UnknownType(kind_byte)),
        };
        if length as usize > FRAME_BYTES_MAX {
            return Err(FrameError::TooLong(length));
        }
        if zero != 0 {
            return Err(FrameError::NotZero(zero));
        }
        // The host sends on channel 0 only, and the flags of its other frames are 0.
        if flag != 0 {
            return Err(FrameError::BadFlag(flag));
        }
        let length_fits = match kind {
            FrameType::Open | FrameType::Data | FrameType::Part => length > 0,
            FrameType::Credit => length == 4,
            FrameType::Ping | FrameType::Pong => length == 8,
            _ => length == 0,
        };
        if !length_fits {
            return Err(FrameError::BadLength { kind: kind_byte, length });
        }
        if (stream == 0) != matches!(kind, FrameType::Ping | FrameType::Pong) {
            return Err(FrameError::BadStream { kind: kind_byte, stream });
        }
        Ok(Header { kind, flag, stream, length: length as usize })
    }

    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let [l0, l1, l2, l3] = (self.length as u32).to_le_bytes();
        let [s0, s1, s2, s3] = self.stream.to_le_bytes();
        [l0, l1, l2, l3, self.kind as u8, self.flag, 0, 0, s0, s1, s2, s3]
    }
}
