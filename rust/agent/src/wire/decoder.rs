//! Finds preambles and frames in what the host sends. Owns the input buffer; bytes of a broken
//! frame are searched again, so that a preamble inside of it is found.
use super::frame::{FRAME_BYTES_MAX, FRAME_OVERHEAD, FrameError, HEADER_BYTES, Header, MAGIC, MARK_BYTES, PREAMBLE_BYTES};

/// Room for one frame of any size and a good part of the next.
const BUFFER_BYTES: usize = 2 * (FRAME_BYTES_MAX + FRAME_OVERHEAD);

#[derive(Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// All that was read is used up.
    NeedMore,
    /// A new connection: everything before is over. `mark` are the first four bytes of the nonce.
    Preamble {
        nonce: [u8; 8],
    },
    /// A preamble of another version. To be answered with our own; the search goes on.
    OtherVersion {
        nonce: [u8; 8],
        version: u8,
    },
    Frame {
        header: Header,
        payload: &'a [u8],
    },
    /// The connection is over; the search begins with the bytes of the broken frame.
    Broken(FrameError),
}

#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    mark: Option<[u8; MARK_BYTES]>,
}

impl Decoder {
    pub fn mark(&self) -> Option<[u8; MARK_BYTES]> {
        self.mark
    }

    /// Searches for a preamble from here on: after an error above the frames, or an end-of-file.
    pub fn disconnect(&mut self) {
        self.mark = None;
    }

    /// Forgets also what was read and not used: the stream of bytes itself is a new one.
    pub fn clear(&mut self) {
        self.mark = None;
        self.start = 0;
        self.end = 0;
    }

    /// Where to read into; never empty after `step` has returned `NeedMore`.
    pub fn space(&mut self) -> &mut [u8] {
        if self.buffer.is_empty() {
            self.buffer.resize(BUFFER_BYTES, 0);
        }
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        } else if self.buffer.len() - self.end < FRAME_BYTES_MAX {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    pub fn filled(&mut self, bytes: usize) {
        self.end = (self.end + bytes).min(self.buffer.len());
    }

    pub fn step(&mut self) -> Step<'_> {
        match self.mark {
            None => self.search(),
            Some(mark) => self.frame(mark),
        }
    }

    fn unread(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    fn search(&mut self) -> Step<'_> {
        loop {
            let unread = self.unread();
            let Some(skip) = unread.iter().position(|byte| *byte == b'H') else {
                self.start = self.end;
                return Step::NeedMore;
            };
            self.start += skip;
            let unread = self.unread();
            // Compared as far as there is something to compare: rubbish is dropped at once.
            let differs = unread.iter().zip(MAGIC).enumerate().any(|(at, (got, want))| at != 5 && *got != want);
            let Some(preamble) = unread.first_chunk::<PREAMBLE_BYTES>().filter(|_| !differs) else {
                if differs {
                    self.start += 1;
                    continue;
                }
                return Step::NeedMore;
            };
            let [_, _, _, _, _, version, _, _, nonce @ ..] = *preamble;
            if nonce.starts_with(&[0; 4]) {
                self.start += 1;
                continue;
            }
            if version != 1 {
                self.start += 1;
                return Step::OtherVersion { nonce, version };
            }
            self.start += PREAMBLE_BYTES;
            let [m0, m1, m2, m3, ..] = nonce;
            self.mark = Some([m0, m1, m2, m3]);
            return Step::Preamble { nonce };
        }
    }

    fn frame(&mut self, mark: [u8; MARK_BYTES]) -> Step<'_> {
        let Some(header) = self.unread().first_chunk::<HEADER_BYTES>() else { return Step::NeedMore };
        if header.starts_with(b"HUTCH") {
            return self.broken(FrameError::Superseded);
        }
        let header = match Header::parse(*header) {
            Ok(header) => header,
            Err(error) => return self.broken(error),
        };
        let whole = header.length + FRAME_OVERHEAD;
        let Some(frame) = self.buffer.get(self.start..self.end).and_then(|unread| unread.get(..whole)) else {
            return Step::NeedMore;
        };
        if !frame.ends_with(&mark) {
            return self.broken(FrameError::BadMark);
        }
        self.start += whole;
        let payload = self.buffer.get(self.start - whole + HEADER_BYTES..self.start - MARK_BYTES).unwrap_or_default();
        Step::Frame { header, payload }
    }

    fn broken(&mut self, error: FrameError) -> Step<'_> {
        self.mark = None;
        Step::Broken(error)
    }
}
