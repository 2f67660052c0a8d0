//! Which pages of a process were written since it was asked last, by the kernel's own note of it (userfaultfd in its asynchronous
//! mode, Linux 6.7). The process has opened the file that this takes: the library that is preloaded into QEMU does (rust/readonly).
use crate::map::{PAGE, Run, push};
use crate::sys::{self, Own, Region};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

const REGIONS_AT_ONCE: usize = 4096;
const NAME: &str = "anon_inode:[userfaultfd]";

/// While there is one, the kernel notes; after it only where it is kept.
pub struct Writes {
    faults: OwnedFd,
    pagemap: File,
    start: u64,
    bytes: u64,
    is_kept: bool,
}

impl Writes {
    /// None where the kernel or the process does not offer it: then pages are compared.
    pub fn begin(pid: i32, start: u64, bytes: u64) -> Option<Writes> {
        let writes = Writes::open(pid, start, bytes)?;
        sys::note_writes(writes.faults.as_raw_fd(), start, bytes).ok()?;
        // An earlier one may have been killed, and have left its notes.
        writes.scan(Own::All).ok()?;
        Some(writes)
    }

    /// Those that an earlier one has kept, and what was written since that asked last; none where they are not there any more.
    pub fn resume(pid: i32, start: u64, bytes: u64) -> Option<(Writes, Vec<Run>)> {
        let writes = Writes::open(pid, start, bytes)?;
        // The kernel refuses where nothing is noted.
        let written = writes.since().ok()?;
        Some((writes, written))
    }

    /// Of what an earlier one has kept.
    pub fn forget(pid: i32, start: u64, bytes: u64) {
        drop(Writes::open(pid, start, bytes));
    }

    fn open(pid: i32, start: u64, bytes: u64) -> Option<Writes> {
        let number = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten().find_map(|entry| {
            let is_it = fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == NAME);
            if is_it { entry.file_name().to_str()?.parse().ok() } else { None }
        })?;
        let faults = sys::file_of(pid, number).ok()?;
        let pagemap = File::open(format!("/proc/{pid}/pagemap")).ok()?;
        Some(Writes { faults, pagemap, start, bytes, is_kept: false })
    }

    /// The next one goes on from what was asked last.
    pub fn keep(mut self) {
        self.is_kept = true;
    }

    /// Runs of pages that were written since this or `begin` was called.
    pub fn since(&self) -> io::Result<Vec<Run>> {
        self.scan(Own::Written)
    }

    fn scan(&self, of: Own) -> io::Result<Vec<Run>> {
        let end = self.start + self.bytes;
        let mut found = vec![Region::default(); REGIONS_AT_ONCE];
        let mut runs = Vec::new();
        let mut from = self.start;
        while from < end {
            let (count, until) = sys::scan_written(self.pagemap.as_raw_fd(), from, end, of, &mut found)?;
            for region in found.iter().take(count) {
                push(&mut runs, 0, (region.start - self.start) / PAGE, (region.end - self.start) / PAGE);
            }
            if until <= from {
                return Err(io::Error::other("the kernel's notes of what was written have no end"));
            }
            from = until;
        }
        Ok(runs)
    }
}

impl Drop for Writes {
    /// A page that is noted costs its next writer a fault.
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        // Its process may have ended.
        let _ = sys::note_no_writes(self.faults.as_raw_fd(), self.start, self.bytes);
    }
}
