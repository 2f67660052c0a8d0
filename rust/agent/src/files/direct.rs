//! The rest of a large file goes to its disk, and comes from it, past the page cache. Making a page of cache
//! for each 4 KiB, and writing them back one by one, is most of what a large file costs where the processor is
//! emulated: three to five times what its disk costs. What lies in the cache already is taken from there.
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// So much of a file goes through the cache as ever: most files are smaller, and are read again soon.
pub const DIRECT_FROM: u64 = 4 * 1024 * 1024;
/// Written or read at once.
pub const PLACE_BYTES: usize = 1024 * 1024;
/// Memory, offset and length are whole blocks, of whatever size a disk may have.
const BLOCK_BYTES: usize = 4096;
/// So many files at one time: the machine's memory is small.
const PLACES_MAX: usize = 8;

static PLACES: AtomicUsize = AtomicUsize::new(0);

/// Memory for whole blocks.
struct Place {
    memory: Vec<u8>,
    /// Of the first whole block.
    at: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        PLACES.fetch_sub(1, Relaxed);
    }
}

impl Place {
    /// None: so many others have one.
    fn take() -> Option<Place> {
        let more = |count: usize| Some(count + 1).filter(|count| *count <= PLACES_MAX);
        PLACES.fetch_update(Relaxed, Relaxed, more).ok()?;
        let memory = vec![0; PLACE_BYTES + BLOCK_BYTES];
        let at = memory.as_ptr().align_offset(BLOCK_BYTES);
        Some(Place { memory, at })
    }

    fn bytes(&self, range: std::ops::Range<usize>) -> &[u8] {
        self.memory.get(self.at + range.start..self.at + range.end).unwrap_or_default()
    }

    fn bytes_mut(&mut self, range: std::ops::Range<usize>) -> &mut [u8] {
        self.memory.get_mut(self.at + range.start..self.at + range.end).unwrap_or_default()
    }
}

/// Bytes that wait to be written as whole blocks, to a file that is open for that.
pub struct Gathered {
    place: Place,
    held: usize,
}

impl Gathered {
    /// From now on the file takes whole blocks only. None: it goes on as it did.
    pub fn begin(file: &OwnedFd) -> Option<Gathered> {
        let gathered = Gathered { place: Place::take()?, held: 0 };
        begin(file).ok()?;
        Some(gathered)
    }

    /// Takes what there is room for.
    pub fn take(&mut self, bytes: &[u8]) -> usize {
        let room = self.place.bytes_mut(self.held..PLACE_BYTES);
        let count = bytes.len().min(room.len());
        if let (Some(to), Some(from)) = (room.get_mut(..count), bytes.get(..count)) {
            to.copy_from_slice(from);
        }
        self.held += count;
        count
    }

    pub fn held(&self) -> usize {
        self.held
    }

    pub fn is_full(&self) -> bool {
        self.held >= PLACE_BYTES
    }

    /// Writes all at `offset`; true: the file takes whole blocks still.
    pub fn put(&mut self, file: &OwnedFd, offset: u64) -> Result<bool, Errno> {
        let mut direct = self.is_full();
        if !direct {
            end(file)?;
        }
        let all = self.place.bytes(0..self.held);
        let mut done = 0;
        while let Some(rest) = all.get(done..).filter(|rest| !rest.is_empty()) {
            match rustix::io::pwrite(file, rest, offset + done as u64) {
                Ok(count) => {
                    done += count;
                    // A part of a block: the next one would not begin where it must.
                    if direct && count % BLOCK_BYTES != 0 {
                        direct = false;
                        end(file)?;
                    }
                }
                Err(Errno::INTR) => {}
                // The file system said yes, and cannot.
                Err(Errno::INVAL) if direct => {
                    direct = false;
                    end(file)?;
                }
                Err(errno) => return Err(errno),
            }
        }
        self.held = 0;
        Ok(direct)
    }
}

/// Whole blocks of a file, read past the cache, that are on their way to the host.
pub struct Block {
    place: Place,
    /// In the file, of the first byte.
    from: u64,
    held: usize,
}

impl Block {
    /// For a file that is open for reading. None: it is read as ever.
    pub fn begin() -> Option<Block> {
        Some(Block { place: Place::take()?, from: 0, held: 0 })
    }

    /// Whether blocks of it are worth reading: it has as much from `offset` on, and the cache has not.
    pub fn is_worth(file: &OwnedFd, offset: u64, end: u64) -> bool {
        offset % BLOCK_BYTES as u64 == 0
            && end.saturating_sub(offset) >= PLACE_BYTES as u64
            && !hutch_sys::is_cached(file.as_fd(), offset, PLACE_BYTES).unwrap_or(true)
    }

    /// So many of `most` bytes from `offset` on that what comes after them begins a block.
    pub fn up_to_a_block(offset: u64, most: usize) -> usize {
        let over = (offset + most as u64) % BLOCK_BYTES as u64;
        most.checked_sub(over as usize).filter(|count| *count > 0).unwrap_or(most)
    }

    /// Reads what lies at `offset`. Fewer bytes than a whole place: the file ends there.
    pub fn read(&mut self, file: &OwnedFd, offset: u64) -> Result<usize, Errno> {
        (self.from, self.held) = (offset, 0);
        begin(file)?;
        let read = rustix::io::pread(file, self.place.bytes_mut(0..PLACE_BYTES), offset);
        end(file)?;
        self.held = read?;
        Ok(self.held)
    }

    /// Up to `most` of the bytes that were read from `offset` of the file on.
    pub fn from(&self, offset: u64, most: usize) -> &[u8] {
        let at = usize::try_from(offset.saturating_sub(self.from)).unwrap_or(usize::MAX).min(self.held);
        self.place.bytes(at..self.held.min(at.saturating_add(most)))
    }
}

fn begin(file: &OwnedFd) -> Result<(), Errno> {
    fcntl_setfl(file, fcntl_getfl(file)? | OFlags::DIRECT)
}

fn end(file: &OwnedFd) -> Result<(), Errno> {
    fcntl_setfl(file, fcntl_getfl(file)? - OFlags::DIRECT)
}
