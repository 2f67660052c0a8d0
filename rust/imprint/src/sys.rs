//! The system calls that std lacks: all of this program's `unsafe`.
use crate::map::{PAGE, Run};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;

fn check(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A range of addresses of our own, for reading: zeros, and files laid over them.
pub struct Mapping {
    start: *mut libc::c_void,
    bytes: usize,
}

impl Mapping {
    pub fn new(bytes: u64) -> io::Result<Mapping> {
        let bytes = usize::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping, wherever the kernel likes.
        let start = unsafe { libc::mmap(ptr::null_mut(), bytes, libc::PROT_READ, flags, -1, 0) };
        if start == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Mapping { start, bytes }) }
    }

    /// Shows those pages of `file` at their own place. What is beyond its end must not be looked at.
    pub fn lay(&mut self, file: &File, first: u64, pages: u64) -> io::Result<()> {
        let (from, length) = (first * PAGE, pages * PAGE);
        if length == 0 {
            return Ok(());
        }
        let end = from.checked_add(length).filter(|&end| end <= self.bytes as u64);
        let is_there = from.checked_add(length).is_some_and(|end| file.metadata().is_ok_and(|found| end <= found.len()));
        if end.is_none() || !is_there {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a layer is shorter than the map says"));
        }
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        // SAFETY: the range lies in the mapping, and `&mut` says that nobody looks at it now.
        let laid = unsafe {
            libc::mmap(
                self.start.add(from as usize),
                length as usize,
                libc::PROT_READ,
                flags,
                file.as_raw_fd(),
                from as libc::off_t,
            )
        };
        if laid == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    pub fn lay_run(&mut self, file: &File, run: &Run) -> io::Result<()> {
        self.lay(file, run.first, u64::from(run.pages))
    }

    /// Looks its pages up now, so that nobody waits for that later. An older kernel does not.
    pub fn populate(&self, run: &Run) {
        let from = (run.first * PAGE) as usize;
        let length = (u64::from(run.pages) * PAGE) as usize;
        if from.checked_add(length).is_some_and(|end| end <= self.bytes) {
            // SAFETY: within the mapping; its content stays as it is.
            unsafe { libc::madvise(self.start.add(from), length, libc::MADV_POPULATE_READ) };
        }
    }

    /// Empty where there is no such page.
    pub fn page(&self, page: u64) -> &[u8] {
        match page.checked_mul(PAGE).filter(|&at| at.saturating_add(PAGE) <= self.bytes as u64) {
            // SAFETY: within the mapping, which lives as long as the slice. The files are immutable, or written by us alone.
            Some(at) => unsafe { std::slice::from_raw_parts(self.start.cast::<u8>().add(at as usize), PAGE as usize) },
            None => &[],
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nobody can look at any more.
        unsafe { libc::munmap(self.start, self.bytes) };
    }
}

/// Fills `into` from another process's memory, whole.
pub fn read_process(pid: i32, address: u64, into: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let local = libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() };
        let remote = libc::iovec { iov_base: (address + done as u64) as *mut libc::c_void, iov_len: rest.len() };
        // SAFETY: the local range is ours to write; the remote one the kernel checks.
        let got = check(unsafe { libc::process_vm_readv(pid, &local, 1, &remote, 1, 0) } as i64)?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        done += got as usize;
    }
    Ok(())
}

/// The next data, or the next hole, from there on; None where there is none.
pub fn seek(file: &File, from: u64, whence: Whence) -> io::Result<Option<u64>> {
    let whence = match whence {
        Whence::Data => libc::SEEK_DATA,
        Whence::Hole => libc::SEEK_HOLE,
    };
    // SAFETY: numbers only.
    let found = unsafe { libc::lseek(file.as_raw_fd(), from as libc::off_t, whence) };
    match check(found) {
        Ok(found) => Ok(Some(found as u64)),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

#[derive(Clone, Copy)]
pub enum Whence {
    Data,
    Hole,
}

/// Copies a range to the same place of another file, in the kernel, without copying where the file system can.
pub fn copy_range(from: RawFd, to: RawFd, offset: u64, bytes: u64) -> io::Result<()> {
    let (mut source, mut target) = (offset as libc::off64_t, offset as libc::off64_t);
    let mut left = bytes;
    while left > 0 {
        // SAFETY: both offsets are ours.
        let got = check(unsafe { libc::copy_file_range(from, &mut source, to, &mut target, left as usize, 0) } as i64)?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        left -= got as u64;
    }
    Ok(())
}
