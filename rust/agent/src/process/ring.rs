//! The last 256 KiB of one output channel, and beside them what a reader has not taken (up to 512 KiB, or 2 MiB of a program that
//! writes much), numbered by byte offset from the start of the process.
//! `start ≤ end` always; the bytes `start..end` are held. Memory grows with what was written.
use std::io::{self, IoSliceMut};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Kept in any case.
pub const RING_BYTES_MAX: usize = 256 * 1024;
/// Kept of what a reader has taken: it may be lost on its way from the host to whoever asked for it.
pub const TAKEN_KEPT_BYTES: usize = 512 * 1024;
/// Held for a reader that is behind; then the program waits.
pub const HELD_BYTES_MAX: usize = 512 * 1024;
/// The same for a program that writes much: what a reader may be granted, and as much again.
pub const LARGE_HELD_BYTES_MAX: usize = 2 * 1024 * 1024;
/// So many may be large at one time: the machine's memory is small.
const LARGE_MAX: usize = 16;
const RING_BYTES_MIN: usize = 4 * 1024;
/// With less room than this it grows, where it may.
const ROOM_BYTES_MIN: usize = 64 * 1024;
/// Read at once, at most: all of the largest pipe, so that a program that waits for room is woken once for it.
pub const READ_BYTES_MAX: usize = 1024 * 1024;

static LARGE: AtomicUsize = AtomicUsize::new(0);

/// The right to be large, given back when it is dropped.
#[derive(Debug)]
struct Large;

impl Large {
    fn take() -> Option<Large> {
        let more = |count: usize| Some(count + 1).filter(|count| *count <= LARGE_MAX);
        LARGE.fetch_update(Relaxed, Relaxed, more).is_ok().then(|| Large)
    }
}

impl Drop for Large {
    fn drop(&mut self) {
        LARGE.fetch_sub(1, Relaxed);
    }
}

#[derive(Debug, Default)]
pub struct Ring {
    data: Vec<u8>,
    start: u64,
    end: u64,
    large: Option<Large>,
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

    /// From here on it may hold more for a reader that is behind. False: too many others do.
    pub fn enlarge(&mut self) -> bool {
        self.large = self.large.take().or_else(Large::take);
        self.large.is_some()
    }

    /// Nobody reads any more: what is kept in any case is all that stays.
    pub fn settle(&mut self) {
        if self.data.len() > RING_BYTES_MAX {
            let start = self.start.max(self.end.saturating_sub(RING_BYTES_MAX as u64));
            let mut data = vec![0; RING_BYTES_MAX];
            self.copy_to(&mut data, start);
            self.data = data;
            self.start = start;
        }
        self.large = None;
    }

    fn held_max(&self) -> usize {
        if self.large.is_some() { LARGE_HELD_BYTES_MAX } else { HELD_BYTES_MAX }
    }

    /// How much may be added without losing what lies at or after `keep_from`.
    pub fn room(&self, keep_from: Option<u64>) -> usize {
        match keep_from {
            None => READ_BYTES_MAX,
            Some(offset) => self.held_max().saturating_sub(self.end.saturating_sub(offset) as usize),
        }
    }

    /// Lets `read` fill the place of the next bytes, at most `limit` of them, which lies in two parts where it
    /// wraps round. The oldest bytes make room. What lies at or after `keep_from` stays (`limit` comes from `room`), and the
    /// 512 KiB before it.
    pub fn fill(
        &mut self,
        limit: usize,
        keep_from: Option<u64>,
        read: impl FnOnce(&mut [IoSliceMut<'_>]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let held = (self.end - self.start) as usize;
        if self.data.len() < RING_BYTES_MAX && held >= self.data.len() {
            self.grow(RING_BYTES_MAX);
        }
        // What must stay: all of a small ring, of a large one what a reader still wants and what it took last.
        let stays = keep_from.map_or(0, |from| self.end.saturating_sub(from.max(self.start)) as usize + TAKEN_KEPT_BYTES);
        let most = self.held_max() + TAKEN_KEPT_BYTES;
        if (RING_BYTES_MAX..most).contains(&self.data.len()) && stays.min(held) + ROOM_BYTES_MIN > self.data.len() {
            self.grow(most);
        }
        let size = self.data.len();
        let at = (self.end % size as u64) as usize;
        let free = size - if size < RING_BYTES_MAX { held } else { stays.min(held) };
        let length = free.min(limit).min(READ_BYTES_MAX);
        let (before, after) = self.data.split_at_mut(at);
        let first = length.min(after.len());
        let parts = [after.get_mut(..first), before.get_mut(..length - first)];
        let mut places = parts.map(|part| IoSliceMut::new(part.unwrap_or_default()));
        let count = read(&mut places)?.min(length);
        self.end += count as u64;
        self.start = self.start.max(self.end.saturating_sub(size as u64));
        Ok(count)
    }

    fn grow(&mut self, most: usize) {
        let size = (self.data.len() * 4).clamp(RING_BYTES_MIN, most);
        let mut data = vec![0; size];
        self.copy_to(&mut data, self.start);
        self.data = data;
    }

    /// Puts the bytes from `start` on where they belong in a ring of the size of `data`, into which they fit.
    fn copy_to(&self, data: &mut [u8], start: u64) {
        let size = data.len() as u64;
        let mut offset = start;
        let (first, second) = self.slices(start, usize::MAX);
        for mut part in [first, second] {
            while !part.is_empty() {
                let place = data.get_mut((offset % size) as usize..).unwrap_or_default();
                let (now, later) = part.split_at(part.len().min(place.len()));
                place.iter_mut().zip(now).for_each(|(to, from)| *to = *from);
                part = later;
                offset += now.len() as u64;
            }
        }
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
        self.large = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(ring: &mut Ring, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let count = ring
                .fill(ring.room(None), None, |places| {
                    let room = places.iter().map(|place| place.len()).sum::<usize>();
                    let to = places.iter_mut().flat_map(|place| place.iter_mut());
                    to.zip(bytes).for_each(|(to, from)| *to = *from);
                    Ok(room.min(bytes.len()))
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
    fn holds_more_for_a_reader_that_is_behind_and_then_has_no_room() {
        let mut ring = Ring::default();
        while ring.room(Some(0)) > 0 {
            let at = ring.end();
            ring.fill(ring.room(Some(0)), Some(0), |places| {
                let bytes = places.iter_mut().flat_map(|place| place.iter_mut());
                Ok(bytes.enumerate().map(|(n, byte)| *byte = ((at as usize + n) % 251) as u8).count())
            })
            .expect("fills");
        }
        assert_eq!((ring.start(), ring.end()), (0, HELD_BYTES_MAX as u64));
        assert!(all(&ring, 0).iter().enumerate().all(|(n, byte)| *byte == (n % 251) as u8));
        assert_eq!(ring.room(Some(100)), 100);
        assert_eq!(ring.room(None), READ_BYTES_MAX);
    }

    #[test]
    fn a_large_one_holds_more_and_gives_it_back_when_nobody_reads_any_more() {
        let mut ring = Ring::default();
        assert!(ring.enlarge() && ring.enlarge());
        while ring.room(Some(100)) > 0 {
            let at = ring.end();
            ring.fill(ring.room(Some(100)), Some(100), |places| {
                let bytes = places.iter_mut().flat_map(|place| place.iter_mut());
                Ok(bytes.enumerate().map(|(n, byte)| *byte = ((at as usize + n) % 251) as u8).count())
            })
            .expect("fills");
        }
        assert_eq!((ring.start(), ring.end()), (0, 100 + LARGE_HELD_BYTES_MAX as u64));
        let kept = all(&ring, ring.end() - RING_BYTES_MAX as u64);
        ring.settle();
        assert_eq!((ring.memory(), ring.start()), (RING_BYTES_MAX, ring.end() - RING_BYTES_MAX as u64));
        assert_eq!(all(&ring, 0), kept);
        let mut others: Vec<Ring> = (0..LARGE_MAX + 1).map(|_| Ring::default()).collect();
        assert!(!others.iter_mut().all(Ring::enlarge), "so many cannot all be large");
    }

    #[test]
    fn what_a_reader_took_last_stays_however_much_waits_for_it() {
        for large in [false, true] {
            let mut ring = Ring::default();
            let large = large && ring.enlarge(); // another test may have them all just now
            let (mut taken, mut seed) = (0, 7u64);
            for turn in 0..4_000 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let room = ring.room(Some(taken));
                if room > 0 {
                    let most = ((seed >> 40) as usize % 300_000).min(room) + 1;
                    let filled = ring
                        .fill(room, Some(taken), |places| Ok(places.iter().map(|place| place.len()).sum::<usize>().min(most)));
                    assert!(filled.expect("fills") > 0, "a read of nothing would be taken for the end");
                }
                assert!(ring.start() <= taken.saturating_sub(TAKEN_KEPT_BYTES as u64), "turn {turn}");
                assert!(ring.memory() <= LARGE_HELD_BYTES_MAX + TAKEN_KEPT_BYTES);
                // A reader that takes little, nothing, or all that is there.
                taken += [0, 1_000, 100_000, ring.end()][(seed >> 33) as usize % 4].min(ring.end() - taken);
            }
            assert!(ring.end() > 100_000_000 / if large { 1 } else { 4 }, "{}", ring.end());
        }
    }
}
