//! The last 256 KiB of one output channel (up to 512 KiB while a reader has not taken them), numbered by byte offset from the start of the process.
//! `start ≤ end` always; the bytes `start..end` are held. Memory grows with what was written.
use std::io;

/// Kept in any case.
pub const RING_BYTES_MAX: usize = 256 * 1024;
/// Held for a reader that is behind; then the program waits.
pub const HELD_BYTES_MAX: usize = 512 * 1024;
const RING_BYTES_MIN: usize = 4 * 1024;
const READ_BYTES_MAX: usize = 64 * 1024;

#[derive(Debug, Default)]
pub struct Ring {
    data: Vec<u8>,
    start: u64,
    end: u64,
}

impl Ring {
    pub fn start(&self) -> u64 {
        self.start
    }

    pub fn end(&self) -> u64 {
        self.end
    }

    pub fn memory(&self) -> usize {
        self.data.len()
    }

    /// How much may be added without losing what lies at or after `keep_from`.
    pub fn room(&self, keep_from: Option<u64>) -> usize {
        match keep_from {
            None => READ_BYTES_MAX,
            Some(offset) => HELD_BYTES_MAX.saturating_sub(self.end.saturating_sub(offset) as usize),
        }
    }

    /// Lets `read` fill the place of the next bytes, at most `limit` of them. The oldest bytes make room.
    /// What lies at or after `keep_from` stays (`limit` comes from `room`).
    pub fn fill(
        &mut self,
        limit: usize,
        keep_from: Option<u64>,
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let held = (self.end - self.start) as usize;
        // What must stay: in a small ring all of it, in a large one what a reader still wants.
        let wanted = self.end.saturating_sub(keep_from.unwrap_or(self.end).max(self.start)) as usize;
        if self.data.len() < RING_BYTES_MAX {
            if held >= self.data.len() {
                self.grow(RING_BYTES_MAX);
            }
        } else if wanted >= self.data.len() {
            self.grow(HELD_BYTES_MAX);
        }
        let size = self.data.len();
        let at = (self.end % size as u64) as usize;
        let free = size - if size < RING_BYTES_MAX { held } else { wanted.min(size) };
        let length = (size - at).min(free).min(limit).min(READ_BYTES_MAX);
        let place = self.data.get_mut(at..at + length).unwrap_or_default();
        let count = read(place)?.min(length);
        self.end += count as u64;
        self.start = self.start.max(self.end.saturating_sub(size as u64));
        Ok(count)
    }

    fn grow(&mut self, most: usize) {
        let size = (self.data.len() * 4).clamp(RING_BYTES_MIN, most);
        let mut data = vec![0; size];
        let (first, second) = self.slices(self.start, usize::MAX);
        for (offset, byte) in (self.start..).zip(first.iter().chain(second)) {
            if let Some(place) = data.get_mut((offset % size as u64) as usize) {
                *place = *byte;
            }
        }
        self.data = data;
    }

    /// Up to `max` bytes from `offset` on, in two parts where they wrap round.
    pub fn slices(&self, offset: u64, max: usize) -> (&[u8], &[u8]) {
        let from = offset.max(self.start);
        let size = self.data.len();
        let length = (self.end.saturating_sub(from) as usize).min(max);
        if length == 0 || size == 0 {
            return (&[], &[]);
        }
        let at = (from % size as u64) as usize;
        let first = length.min(size - at);
        (self.data.get(at..at + first).unwrap_or_default(), self.data.get(..length - first).unwrap_or_default())
    }

    /// Gives the memory back; the numbering stays.
    pub fn forget(&mut self) {
        self.data = Vec::new();
        self.start = self.end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(ring: &mut Ring, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let count = ring
                .fill(ring.room(None), None, |place| {
                    let count = place.len().min(bytes.len());
                    place.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
                    Ok(count)
                })
                .unwrap_or_default();
            assert!(count > 0);
            bytes = bytes.get(count..).unwrap_or_default();
        }
    }

    fn all(ring: &Ring, from: u64) -> Vec<u8> {
        let (first, second) = ring.slices(from, usize::MAX);
        [first, second].concat()
    }

    #[test]
    fn keeps_the_last_bytes_under_their_offsets() {
        let bytes: Vec<u8> = (0..1_000_003u32).map(|n| (n % 251) as u8).collect();
        let mut ring = Ring::default();
        for chunk in bytes.chunks(777) {
            put(&mut ring, chunk);
        }
        assert_eq!(ring.end(), bytes.len() as u64);
        assert_eq!(ring.start(), (bytes.len() - RING_BYTES_MAX) as u64);
        assert_eq!(Some(all(&ring, 0).as_slice()), bytes.get(bytes.len() - RING_BYTES_MAX..));
        assert_eq!(Some(all(&ring, 999_999).as_slice()), bytes.get(999_999..));
        assert_eq!(all(&ring, 1_000_003), b"");
    }

    #[test]
    fn holds_all_of_a_short_output_in_little_memory() {
        let mut ring = Ring::default();
        put(&mut ring, b"hello");
        assert_eq!(ring.memory(), RING_BYTES_MIN);
        let rest = vec![7; 200_000];
        put(&mut ring, &rest);
        assert_eq!(ring.start(), 0);
        assert_eq!(all(&ring, 0), [b"hello".as_slice(), &rest].concat());
    }

    #[test]
    fn holds_twice_as_much_for_a_reader_that_is_behind_and_then_has_no_room() {
        let mut ring = Ring::default();
        while ring.room(Some(0)) > 0 {
            let at = ring.end();
            ring.fill(ring.room(Some(0)), Some(0), |place| {
                place.iter_mut().enumerate().for_each(|(n, byte)| *byte = ((at as usize + n) % 251) as u8);
                Ok(place.len())
            })
            .expect("fills");
        }
        assert_eq!((ring.start(), ring.end()), (0, HELD_BYTES_MAX as u64));
        assert!(all(&ring, 0).iter().enumerate().all(|(n, byte)| *byte == (n % 251) as u8));
        assert_eq!(ring.room(Some(100)), 100);
        assert_eq!(ring.room(None), READ_BYTES_MAX);
    }
}
