//! Where the pages of now are: in a process that runs, or in a file that it writes.
use crate::layers::for_data;
use crate::map::{PAGE, Run, add, push};
use crate::sys;
use crate::writes::Writes;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
/// Of a file, or shared: still what was mapped there.
const OF_FILE: u64 = 1 << 61;
const ENTRY_BYTES: u64 = 8;
const ENTRIES_AT_ONCE: u64 = 65_536;

pub enum Source {
    /// The memory of a process that mapped files privately: it begins at this address.
    Process {
        pid: i32,
        start: u64,
        /// Where what it has mapped lies, with its map.
        dir: PathBuf,
    },
    File(File),
}

/// What lies below the pages that a process has written.
pub enum Mapped {
    Base,
    /// The base, and the layers of this directory.
    Layers(PathBuf),
}

#[derive(Default)]
pub struct Touched {
    pub all: Vec<Run>,
    /// Of a process, those that are in memory. What is not may have been swapped out, or given back: where writes are noted, the
    /// kernel leaves a note in the place of a page that was given back, which looks like one that was swapped out.
    pub present: Vec<Run>,
}

impl Source {
    /// `file` is one of those that the process mapped as its guest's memory, each at the place that it has in the file.
    pub fn process(pid: i32, file: &Path) -> Result<Source, String> {
        let found = fs::metadata(file).map_err(|error| format!("{}: {error}", file.display()))?;
        let dir = file.parent().unwrap_or(Path::new("/")).to_owned();
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).map_err(|error| format!("process {pid}: {error}"))?;
        start_among(&maps, found.dev(), found.ino())
            .map(|start| Source::Process { pid, start, dir })
            .ok_or_else(|| format!("process {pid} has not mapped {}", file.display()))
    }

    /// Which pages may differ from what was there at the beginning; all others do not.
    pub fn touched(&self, pages: u64) -> io::Result<Touched> {
        let mut touched = Touched::default();
        match self {
            Source::File(file) => for_data(file, 0, pages * PAGE, |from, until| {
                let first = touched.all.last().map_or(0, Run::end).max(from / PAGE);
                push(&mut touched.all, 0, first, until.div_ceil(PAGE).min(pages));
                Ok(())
            })?,
            Source::Process { pid, start, .. } => {
                let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
                let mut buffer = vec![0; (ENTRY_BYTES * ENTRIES_AT_ONCE) as usize];
                let mut page = 0;
                while page < pages {
                    let count = ENTRIES_AT_ONCE.min(pages - page);
                    let part = buffer.get_mut(..(count * ENTRY_BYTES) as usize).unwrap_or_default();
                    pagemap.read_exact_at(part, (start / PAGE + page) * ENTRY_BYTES)?;
                    for entry in part.as_chunks::<{ ENTRY_BYTES as usize }>().0 {
                        let entry = u64::from_le_bytes(*entry);
                        if is_private(entry) {
                            add(&mut touched.all, page);
                            if entry & PRESENT != 0 {
                                add(&mut touched.present, page);
                            }
                        }
                        page += 1;
                    }
                }
            }
        }
        Ok(touched)
    }

    /// With layers up to that one, of which 0 is none. A file has nothing below it.
    pub fn mapped(&self, layer: u32) -> Option<Mapped> {
        match self {
            Source::Process { dir, .. } => Some(if layer == 0 { Mapped::Base } else { Mapped::Layers(dir.clone()) }),
            Source::File(_) => None,
        }
    }

    /// From now on it is known what is written, where that can be.
    pub fn note_writes(&self, pages: u64) -> Option<Writes> {
        match self {
            Source::Process { pid, start, .. } => Writes::begin(*pid, *start, pages * PAGE),
            Source::File(_) => None,
        }
    }

    /// As `note_writes`, where that was asked for and kept, with what was written since.
    pub fn noted_writes(&self, pages: u64) -> Option<(Writes, Vec<Run>)> {
        match self {
            Source::Process { pid, start, .. } => Writes::resume(*pid, *start, pages * PAGE),
            Source::File(_) => None,
        }
    }

    /// What was written is not noted any more.
    pub fn forget_writes(&self, pages: u64) {
        if let Source::Process { pid, start, .. } = self {
            Writes::forget(*pid, *start, pages * PAGE);
        }
    }

    /// Fills `into` with the pages from `first` on; beyond a file's end are zeros.
    pub fn read(&self, first: u64, into: &mut [u8]) -> io::Result<()> {
        match self {
            Source::Process { pid, start, .. } => sys::read_process(*pid, start + first * PAGE, into),
            Source::File(file) => {
                let mut done = 0;
                while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
                    match file.read_at(rest, first * PAGE + done as u64)? {
                        0 => {
                            rest.fill(0);
                            break;
                        }
                        got => done += got,
                    }
                }
                Ok(())
            }
        }
    }
}

fn is_private(entry: u64) -> bool {
    entry & (PRESENT | SWAPPED) != 0 && entry & OF_FILE == 0
}

/// Of the lines of maps(5): where the first byte of that file would be. Inodes are numbered by each file system: one of the same device is
/// preferred. Not insisted on, as btrfs and overlayfs tell stat(2) of another device than maps(5).
fn start_among(maps: &str, device: u64, inode: u64) -> Option<u64> {
    let places = || maps.lines().filter_map(place_in).filter(|place| place.inode == inode);
    let same = places().find(|place| place.device == (libc::major(device), libc::minor(device)));
    same.or_else(|| places().next()).map(|place| place.start)
}

struct Place {
    /// Of the file's first byte.
    start: u64,
    device: (u32, u32),
    inode: u64,
}

/// Of a line of maps(5): the private memory that may be written.
fn place_in(line: &str) -> Option<Place> {
    let mut words = line.split_ascii_whitespace();
    let range = words.next()?;
    let rights = words.next()?;
    let offset = u64::from_str_radix(words.next()?, 16).ok()?;
    let (major, minor) = words.next()?.split_once(':')?;
    let device = (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
    let inode = words.next()?.parse().ok()?;
    let (from, _) = range.split_once('-')?;
    let start = u64::from_str_radix(from, 16).ok()?.checked_sub(offset)?;
    (rights == "rw-p").then_some(Place { start, device, inode })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_a_memory_is_found_by_its_file() {
        let line = "7f0010400000-7f0030400000 rw-p 00400000 fe:00 4711                       /var/lib/hutch/memory";
        let (device, another) = (0xfe00, 5);
        assert_eq!(start_among(line, device, 4711), Some(0x7f00_1000_0000));
        assert_eq!(start_among(line, device, 4712), None);
        assert_eq!(start_among(line, another, 4711), Some(0x7f00_1000_0000)); // on btrfs
        assert_eq!(start_among(&line.replace("rw-p", "r--p"), device, 4711), None);
        assert_eq!(start_among("7f00-7f10 rw-p 00000000 00:00 0", 0, 4711), None);
    }

    #[test]
    fn of_two_files_with_one_number_it_is_the_one_of_the_same_device() {
        let lines = "7f0000000000-7f0000001000 rw-p 00000000 fe:00 4     /usr/lib/x.so\n7f0010000000-7f0030000000 rw-p 00000000 00:05 4     /dev/zero";
        assert_eq!(start_among(lines, 5, 4), Some(0x7f00_1000_0000));
        assert_eq!(start_among(lines, 0xfe00, 4), Some(0x7f00_0000_0000));
    }

    #[test]
    fn what_was_swapped_out_was_written_before() {
        assert!(is_private(PRESENT));
        assert!(is_private(SWAPPED));
        assert!(!is_private(PRESENT | OF_FILE));
        assert!(!is_private(0));
    }
}
