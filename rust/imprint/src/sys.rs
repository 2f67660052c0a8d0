//! The system calls that std lacks: all of this program's `unsafe`.
use crate::map::{PAGE, Run};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

fn check(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A range of addresses of our own, for reading: zeros, and files laid over them.
pub struct Mapping {
    start: *mut libc::c_void,
    bytes: usize,
}

// SAFETY: through a shared reference it is only read; whatever changes it takes it mutably.
unsafe impl Sync for Mapping {}

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

/// A file of another process's, as it has it open.
pub fn file_of(pid: i32, number: i32) -> io::Result<OwnedFd> {
    // SAFETY: numbers only; what is got is ours alone.
    unsafe {
        let process = OwnedFd::from_raw_fd(check(libc::syscall(libc::SYS_pidfd_open, pid, 0))? as RawFd);
        let file = check(libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0))?;
        Ok(OwnedFd::from_raw_fd(file as RawFd))
    }
}

/// linux/userfaultfd.h
const UFFDIO_API: u64 = 0xc018_aa3f;
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const UFFDIO_UNREGISTER: u64 = 0x8010_aa01;
const UFFD_API: u64 = 0xaa;
const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;
const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;
/// linux/fs.h
const PAGEMAP_SCAN: u64 = 0xc060_6610;
const PM_SCAN_WP_MATCHING: u64 = 1;
const PM_SCAN_CHECK_WPASYNC: u64 = 1 << 1;
const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;

#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Region {
    pub start: u64,
    pub end: u64,
    categories: u64,
}

#[repr(C)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

fn control<T>(file: RawFd, request: u64, argument: &mut T) -> io::Result<i64> {
    // SAFETY: each request is given the structure that the kernel's headers say, for as long as the call takes.
    check(i64::from(unsafe { libc::ioctl(file, request as _, ptr::from_mut(argument)) }))
}

/// From now on the kernel notes what is written there, without telling anybody (Linux 6.7).
pub fn note_writes(faults: RawFd, start: u64, bytes: u64) -> io::Result<()> {
    // Refused where it was asked before.
    if let Err(error) = control(faults, UFFDIO_API, &mut [UFFD_API, UFFD_FEATURE_WP_ASYNC, 0])
        && error.raw_os_error() != Some(libc::EINVAL)
    {
        return Err(error);
    }
    control(faults, UFFDIO_REGISTER, &mut [start, bytes, UFFDIO_REGISTER_MODE_WP, 0]).map(drop)
}

pub fn note_no_writes(faults: RawFd, start: u64, bytes: u64) -> io::Result<()> {
    control(faults, UFFDIO_UNREGISTER, &mut [start, bytes]).map(drop)
}

/// Of pages that are a process's own: all of them, or those that were written since this was asked last. Gives where it ended.
pub fn scan_written(pagemap: RawFd, from: u64, end: u64, of: Own, into: &mut [Region]) -> io::Result<(usize, u64)> {
    let mut scan = Scan {
        size: size_of::<Scan>() as u64,
        flags: PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
        start: from,
        end,
        walk_end: 0,
        vec: into.as_mut_ptr() as u64,
        vec_len: into.len() as u64,
        max_pages: 0,
        category_inverted: PAGE_IS_FILE,
        category_mask: PAGE_IS_FILE | if of == Own::Written { PAGE_IS_WRITTEN } else { 0 },
        category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
        return_mask: PAGE_IS_PRESENT,
    };
    let count = control(pagemap, PAGEMAP_SCAN, &mut scan)?;
    Ok((count as usize, scan.walk_end))
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Own {
    All,
    Written,
}

#[cfg(test)]
pub mod testing {
    use super::*;
    use crate::map::PAGE;

    /// A file's pages as a guest has them: its own as soon as it writes them.
    pub struct Memory {
        start: *mut u8,
        pages: u64,
        faults: Option<OwnedFd>,
    }

    impl Memory {
        pub fn of(file: &File, pages: u64) -> Memory {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: a new mapping, and a new file.
            unsafe {
                let start = libc::mmap(ptr::null_mut(), (pages * PAGE) as usize, access, libc::MAP_PRIVATE, file.as_raw_fd(), 0);
                assert_ne!(start, libc::MAP_FAILED);
                let faults = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | 1);
                let faults = (faults >= 0).then(|| OwnedFd::from_raw_fd(faults as RawFd));
                Memory { start: start.cast(), pages, faults }
            }
        }

        pub fn has_faults(&self) -> bool {
            self.faults.is_some()
        }

        pub fn page(&self, page: u64) -> &[u8] {
            assert!(page < self.pages);
            // SAFETY: within the mapping; nobody writes it meanwhile.
            unsafe { std::slice::from_raw_parts(self.start.add((page * PAGE) as usize), PAGE as usize) }
        }

        pub fn write(&mut self, page: u64, byte: u8) {
            assert!(page < self.pages);
            // SAFETY: within the mapping, which is ours to write.
            unsafe { ptr::write_bytes(self.start.add((page * PAGE) as usize), byte, PAGE as usize) };
        }

        /// A layer over the file.
        pub fn map(&mut self, file: &File, first: u64, pages: u64) {
            assert!(first + pages <= self.pages);
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_FIXED;
            let at = (first * PAGE) as usize;
            // SAFETY: within the mapping; nobody looks at it meanwhile.
            let laid = unsafe {
                libc::mmap(self.start.add(at).cast(), (pages * PAGE) as usize, access, flags, file.as_raw_fd(), at as libc::off_t)
            };
            assert_ne!(laid, libc::MAP_FAILED);
        }

        /// As QEMU does with what the guest has freed.
        pub fn give_back(&mut self, page: u64) {
            assert!(page < self.pages);
            // SAFETY: within the mapping; nobody looks at it meanwhile.
            let done =
                unsafe { libc::madvise(self.start.add((page * PAGE) as usize).cast(), PAGE as usize, libc::MADV_DONTNEED) };
            assert_eq!(done, 0);
        }
    }

    impl Drop for Memory {
        fn drop(&mut self) {
            // SAFETY: our own mapping.
            unsafe { libc::munmap(self.start.cast(), (self.pages * PAGE) as usize) };
        }
    }
}
