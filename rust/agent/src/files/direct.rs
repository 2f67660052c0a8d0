//! The rest of a large file goes to its disk past the page cache. Making a page of cache for each 4 KiB,
//! and writing them back one by one, is most of what a large file costs where the processor is emulated:
//! five times what its disk costs.
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// So much of a file goes through the cache as ever: most files are smaller, and are read again soon.
pub const DIRECT_FROM: u64 = 4 * 1024 * 1024;
/// Written at once.
const GATHERED_BYTES: usize = 1024 * 1024;
/// Memory, offset and length are whole blocks, of whatever size a disk may have.
const BLOCK_BYTES: usize = 4096;
/// So many files at one time: the machine's memory is small.
const PLACES_MAX: usize = 8;

static PLACES: AtomicUsize = AtomicUsize::new(0);

/// Bytes that wait to be written as whole blocks, to a file that is open for that.
#[derive(Debug)]
pub struct Gathered {
    memory: Vec<u8>,
    /// Of the first whole block.
    at: usize,
    held: usize,
}

impl Drop for Gathered {
    fn drop(&mut self) {
        PLACES.fetch_sub(1, Relaxed);
    }
}

impl Gathered {
    /// From now on the file takes whole blocks only. None: it goes on as it did.
    pub fn begin(file: &OwnedFd) -> Option<Gathered> {
        let more = |count: usize| Some(count + 1).filter(|count| *count <= PLACES_MAX);
        PLACES.fetch_update(Relaxed, Relaxed, more).ok()?;
        let memory = vec![0; GATHERED_BYTES + BLOCK_BYTES];
        let at = memory.as_ptr().align_offset(BLOCK_BYTES);
        let gathered = Gathered { memory, at, held: 0 };
        fcntl_setfl(file, fcntl_getfl(file).ok()? | OFlags::DIRECT).ok()?;
        Some(gathered)
    }

    /// Takes what there is room for.
    pub fn take(&mut self, bytes: &[u8]) -> usize {
        let room = self.memory.get_mut(self.at + self.held..self.at + GATHERED_BYTES).unwrap_or_default();
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
        self.held >= GATHERED_BYTES
    }

    /// Writes all at `offset`; true: the file takes whole blocks still.
    pub fn put(&mut self, file: &OwnedFd, offset: u64) -> Result<bool, Errno> {
        let mut direct = self.is_full();
        if !direct {
            end(file)?;
        }
        let all = self.memory.get(self.at..self.at + self.held).unwrap_or_default();
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

fn end(file: &OwnedFd) -> Result<(), Errno> {
    fcntl_setfl(file, fcntl_getfl(file)? - OFlags::DIRECT)
}
