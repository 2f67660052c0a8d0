//! Bytes on their way to the host: whole frames, written as far as the link takes them.
//! Little is kept here (frames are made only when the link can take more), so what one stream sends
//! never stands long before another's.
use crate::wire::frame::{FRAME_BYTES_MAX, FRAME_OVERHEAD, FrameType, HEADER_BYTES, Header, MARK_BYTES, OUTPUT_FRAME_BYTES_MAX};
use std::io;

/// No further frame is made while so much waits.
const WAITING_BYTES_MAX: usize = FRAME_BYTES_MAX;
/// Data in one frame: with header and mark it is a whole number of writes to a virtio port, which takes 32 KiB each.
pub const DATA_BYTES_MAX: usize = OUTPUT_FRAME_BYTES_MAX - FRAME_OVERHEAD;
/// The same of a body, which is written apart from its header.
pub const BODY_BYTES_MAX: usize = OUTPUT_FRAME_BYTES_MAX;

/// Where the bytes of a body lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The ring of a process's output.
    Ring { process: u64, channel: usize },
    /// The block that the stream's file was read into.
    Block,
}

/// A payload that is written from where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Body {
    pub stream: u32,
    pub source: Source,
    /// Of the next byte to write.
    pub offset: u64,
    /// Bytes still to write.
    pub left: usize,
}

#[derive(Debug, Default)]
pub struct Output {
    /// Longer than what waits: a place that was once made is not cleared again.
    bytes: Vec<u8>,
    sent: usize,
    end: usize,
    /// Comes after the bytes, and after it a mark.
    body: Option<Body>,
    mark: [u8; MARK_BYTES],
}

/// More than this is given back once no stream is open.
const KEPT_BYTES_MAX: usize = 2 * (FRAME_BYTES_MAX + FRAME_OVERHEAD);

impl Output {
    /// Forgets what waits, be it a cut frame.
    pub fn reset(&mut self, mark: [u8; MARK_BYTES]) {
        *self = Output { mark, ..Output::default() };
    }

    pub fn waiting(&self) -> &[u8] {
        self.bytes.get(self.sent..self.end).unwrap_or_default()
    }

    pub fn is_full(&self) -> bool {
        self.body.is_some() || self.end - self.sent >= WAITING_BYTES_MAX
    }

    pub fn is_empty(&self) -> bool {
        self.body.is_none() && self.sent == self.end
    }

    /// Frames may be added: nothing waits, but for a mark that goes out together with what comes next.
    pub fn wants_more(&self) -> bool {
        self.body.is_none() && self.end - self.sent <= MARK_BYTES
    }

    pub fn body(&self) -> Option<Body> {
        self.body
    }

    /// So many bytes of the body have been written.
    pub fn advance_body(&mut self, written: usize) {
        let Some(body) = self.body.as_mut() else { return };
        body.left = body.left.saturating_sub(written);
        body.offset += written as u64;
        if body.left == 0 {
            self.body = None;
            let mark = self.mark;
            self.raw(&mark);
        }
    }

    /// A DATA frame whose payload is written from where it lies.
    pub fn data_of(&mut self, channel: u8, body: Body) {
        debug_assert!(self.body.is_none());
        self.raw(&Header { kind: FrameType::Data, flag: channel, stream: body.stream, length: body.left }.to_bytes());
        self.body = Some(body);
    }

    /// No stream is open: a large place is no longer needed.
    pub fn shrink(&mut self) {
        if self.sent == self.end && self.bytes.len() > KEPT_BYTES_MAX {
            self.bytes = Vec::new();
        }
    }

    pub fn advance(&mut self, written: usize) {
        self.sent = (self.sent + written).min(self.end);
        if self.sent == self.end {
            self.sent = 0;
            self.end = 0;
        }
    }

    /// `length` bytes after the end, whatever they hold.
    fn place(&mut self, length: usize) -> &mut [u8] {
        let wanted = self.end + length;
        if self.bytes.len() < wanted {
            self.bytes.resize(wanted, 0);
        }
        self.bytes.get_mut(self.end..wanted).unwrap_or_default()
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        debug_assert!(self.body.is_none());
        self.place(bytes.len()).copy_from_slice(bytes);
        self.end += bytes.len();
    }

    /// The payload is at most `FRAME_BYTES_MAX` long, of DATA `OUTPUT_FRAME_BYTES_MAX`.
    pub fn frame(&mut self, kind: FrameType, flag: u8, stream: u32, payload: &[&[u8]]) {
        let length = payload.iter().map(|part| part.len()).sum();
        debug_assert!(length <= if kind == FrameType::Data { OUTPUT_FRAME_BYTES_MAX } else { FRAME_BYTES_MAX });
        self.raw(&Header { kind, flag, stream, length }.to_bytes());
        for part in payload {
            self.raw(part);
        }
        let mark = self.mark;
        self.raw(&mark);
    }

    /// A DATA frame that `read` fills in place, with at most `limit` bytes. Nothing is added when it
    /// yields none.
    pub fn data_from(
        &mut self,
        stream: u32,
        channel: u8,
        limit: usize,
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let limit = limit.min(DATA_BYTES_MAX);
        let place = self.place(HEADER_BYTES + limit + MARK_BYTES);
        let length = read(place.get_mut(HEADER_BYTES..HEADER_BYTES + limit).unwrap_or_default())?.min(limit);
        if length > 0 {
            self.raw(&Header { kind: FrameType::Data, flag: channel, stream, length }.to_bytes());
            self.end += length;
            let mark = self.mark;
            self.raw(&mark);
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RING: Source = Source::Ring { process: 1, channel: 1 };

    #[test]
    fn frames_are_made_in_place_and_leave_in_order() {
        let mut output = Output::default();
        output.reset(*b"MARK");
        output.frame(FrameType::Credit, 0, 7, &[&[1, 0, 0, 0]]);
        let count = output.data_from(7, 1, 100, |place| {
            assert_eq!(place.len(), 100);
            place[..3].copy_from_slice(b"abc");
            Ok(3)
        });
        assert_eq!(count.ok(), Some(3));
        assert_eq!(output.data_from(7, 1, 100, |_| Ok(0)).ok(), Some(0));
        let whole = b"\x04\0\0\0\x05\0\0\0\x07\0\0\0\x01\0\0\0MARK\x03\0\0\0\x03\x01\0\0\x07\0\0\0abcMARK";
        assert_eq!(output.waiting(), whole);
        output.advance(5);
        assert_eq!(output.waiting(), &whole[5..]);
        output.advance(1000);
        assert!(output.waiting().is_empty());
    }

    #[test]
    fn a_body_stands_between_its_header_and_its_mark() {
        let mut output = Output::default();
        output.reset(*b"MARK");
        output.data_of(2, Body { stream: 7, source: RING, offset: 100, left: 5 });
        assert_eq!(output.waiting(), b"\x05\0\0\0\x03\x02\0\0\x07\0\0\0");
        assert!(output.is_full() && !output.wants_more());
        output.advance(12);
        output.advance_body(3);
        assert_eq!(output.body(), Some(Body { stream: 7, source: RING, offset: 103, left: 2 }));
        assert!(output.waiting().is_empty() && !output.is_empty());
        output.advance_body(2);
        assert_eq!(output.waiting(), b"MARK");
        assert!(output.wants_more(), "the mark goes out with the next frame");
        output.frame(FrameType::Credit, 0, 7, &[&[1, 0, 0, 0]]);
        assert_eq!(output.waiting(), b"MARK\x04\0\0\0\x05\0\0\0\x07\0\0\0\x01\0\0\0MARK");
    }
}
