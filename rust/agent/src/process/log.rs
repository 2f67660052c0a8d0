//! The kept log of a process: records in files that are named by the offset of their first byte, so
//! that offsets go on counting over restarts. A record is never split over two files.
use crate::output::Output;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, fstat, ftruncate, mkdirat, open, openat, unlinkat};
use rustix::io::{Errno, pread, pwritev};
use std::io::IoSlice;
use std::os::fd::OwnedFd;

const RECORD_HEADER_BYTES: usize = 13;
/// On the private disk, or in memory where that cannot be written.
pub const DIRECTORIES: [&str; 2] = ["/var/log/hutch", "/run/hutch/log"];

pub struct Log {
    directory: OwnedFd,
    id: String,
    /// First offsets of the files, oldest first; the last is the one that is written.
    files: Vec<u64>,
    file: OwnedFd,
    end: u64,
    bytes_max: u64,
    files_max: usize,
    followers: Vec<u32>,
    failure: Option<Errno>,
}

fn file_name(id: &str, start: u64) -> String {
    format!("{id}-{start:020}.log")
}

fn open_directory(path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at = open("/", flags, Mode::empty())?;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        match mkdirat(&at, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST | Errno::ROFS) => {}
            Err(errno) => return Err(errno),
        }
        at = openat(&at, name, flags, Mode::empty())?;
    }
    Ok(at)
}

impl Log {
    /// Opens the log of `id` in the first of `directories` that can be written.
    pub fn open(directories: &[String], id: &str, bytes_max: u64, files_max: usize) -> Result<Log, Errno> {
        let mut failure = Errno::NOENT;
        for path in directories {
            match open_directory(path).and_then(|directory| Log::open_in(directory, id, bytes_max, files_max)) {
                Ok(log) => return Ok(log),
                Err(errno) => failure = errno,
            }
        }
        Err(failure)
    }

    pub fn open_in(directory: OwnedFd, id: &str, bytes_max: u64, files_max: usize) -> Result<Log, Errno> {
        let mut files: Vec<u64> = Dir::read_from(&directory)?
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let name = entry.file_name().to_str().ok()?;
                name.strip_prefix(id)?.strip_prefix('-')?.strip_suffix(".log")?.parse().ok()
            })
            .collect();
        files.sort_unstable();
        let start = files.last().copied().unwrap_or(0);
        if files.is_empty() {
            files.push(start);
        }
        let file = open_file(&directory, id, start)?;
        // A power loss may have left a record half written.
        let whole = walk(&file, u64::MAX);
        if u64::try_from(fstat(&file)?.st_size) != Ok(whole) {
            ftruncate(&file, whole)?;
        }
        let mut log = Log {
            directory,
            id: id.to_owned(),
            files,
            file,
            end: start + whole,
            bytes_max: bytes_max.max(1),
            files_max: files_max.max(1),
            followers: Vec::new(),
            failure: None,
        };
        log.remove_oldest();
        Ok(log)
    }

    pub fn start(&self) -> u64 {
        self.files.first().copied().unwrap_or(self.end)
    }

    pub fn end(&self) -> u64 {
        self.end
    }

    /// Adds one record. A failure is kept for `take_failure` and never stops the process.
    pub fn append(&mut self, channel: u8, wall_ms: u64, parts: &[&[u8]]) {
        let start = self.files.last().copied().unwrap_or(self.end);
        if self.end - start >= self.bytes_max {
            match open_file(&self.directory, &self.id, self.end) {
                Ok(file) => {
                    self.file = file;
                    self.files.push(self.end);
                    self.remove_oldest();
                }
                Err(errno) => self.failure = Some(errno),
            }
        }
        let start = self.files.last().copied().unwrap_or(self.end);
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let mut header = vec![channel];
        header.extend_from_slice(&wall_ms.to_le_bytes());
        header.extend_from_slice(&(length as u32).to_le_bytes());
        let record: Vec<u8>;
        let mut slices = vec![IoSlice::new(&header)];
        slices.extend(parts.iter().map(|part| IoSlice::new(part)));
        let whole = RECORD_HEADER_BYTES + length;
        let mut result = pwritev(&self.file, &slices, self.end - start);
        if let Ok(written) = result
            && written < whole
        {
            // A disk that is nearly full takes a part: try the whole once more, for its errno.
            record = [header.as_slice(), &parts.concat()].concat();
            let rest = record.get(written..).unwrap_or_default();
            result = rustix::io::pwrite(&self.file, rest, self.end - start + written as u64).map(|more| written + more);
        }
        match result {
            Ok(written) if written == whole => self.end += whole as u64,
            other => {
                self.failure = Some(other.err().unwrap_or(Errno::NOSPC));
                let _ = ftruncate(&self.file, self.end - start);
            }
        }
    }

    pub fn take_failure(&mut self) -> Option<Errno> {
        self.failure.take()
    }

    fn remove_oldest(&mut self) {
        while self.files.len() > self.files_max {
            let oldest = self.files.remove(0);
            let _ = unlinkat(&self.directory, file_name(&self.id, oldest), AtFlags::empty());
        }
    }

    pub fn follow(&mut self, stream: u32) {
        self.followers.push(stream);
    }

    /// Those who wait for more: each is told once.
    pub fn take_followers(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.followers)
    }

    /// The offset of the first record in the last `bytes`.
    pub fn tail(&self, bytes: u64) -> u64 {
        let wanted = self.end.saturating_sub(bytes).max(self.start());
        let Some(start) = self.files.iter().rev().find(|start| **start <= wanted) else { return self.start() };
        let Ok(file) = open_file(&self.directory, &self.id, *start) else { return self.end };
        start + walk(&file, wanted - start)
    }
}

fn open_file(directory: &OwnedFd, id: &str, start: u64) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = openat(directory, file_name(id, start), flags, Mode::from_raw_mode(0o640))?;
    match FileType::from_raw_mode(fstat(&file)?.st_mode) {
        FileType::RegularFile => Ok(file),
        _ => Err(Errno::INVAL),
    }
}

/// Goes from record to record: to the first that begins at or after `until`, or to the end of the
/// last whole one.
fn walk(file: &OwnedFd, until: u64) -> u64 {
    let size = fstat(file).map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0));
    if size == 0 {
        return 0;
    }
    let mut buffer = vec![0; 64 * 1024];
    let (mut buffer_at, mut buffer_length) = (0u64, 0usize);
    let mut at = 0;
    while at < until {
        let mut skip = usize::try_from(at - buffer_at).unwrap_or(usize::MAX);
        if skip.saturating_add(RECORD_HEADER_BYTES) > buffer_length {
            buffer_length = pread(file, &mut buffer, at).unwrap_or(0);
            (buffer_at, skip) = (at, 0);
        }
        let header = buffer.get(skip..buffer_length).and_then(|rest| rest.first_chunk::<RECORD_HEADER_BYTES>());
        let Some([_, _, _, _, _, _, _, _, _, length @ ..]) = header else { return at };
        let next = at + RECORD_HEADER_BYTES as u64 + u64::from(u32::from_le_bytes(*length));
        if next > size {
            return at;
        }
        at = next;
    }
    at
}

/// A stream that reads the log.
pub struct LogReader {
    pub process: u64,
    pub offset: u64,
    pub follow: bool,
    file: Option<(u64, OwnedFd)>,
}

impl LogReader {
    pub fn new(process: u64, offset: u64, follow: bool) -> LogReader {
        LogReader { process, offset, follow, file: None }
    }

    /// One frame of what follows. Returns the bytes sent; 0 at the end of what there is.
    pub fn emit(&mut self, log: &Log, stream: u32, credit: u64, output: &mut Output) -> Result<usize, Errno> {
        self.offset = self.offset.max(log.start());
        if self.offset >= log.end || credit == 0 {
            return Ok(0);
        }
        let index = log.files.partition_point(|start| *start <= self.offset).saturating_sub(1);
        let start = log.files.get(index).copied().unwrap_or(0);
        let end = log.files.get(index + 1).copied().unwrap_or(log.end);
        if self.file.as_ref().is_none_or(|(known, _)| *known != start) {
            self.file = Some((start, open_file(&log.directory, &log.id, start)?));
        }
        let Some((_, file)) = &self.file else { return Ok(0) };
        let limit = (end - self.offset).min(credit);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let count = output
            .data_from(stream, 1, limit, |place| Ok(pread(file, place, self.offset - start)?))
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        if count == 0 {
            // Somebody cut the file short: go on where the next one begins.
            self.offset = end;
        }
        self.offset += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(std::path::PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let path = std::env::temp_dir().join(format!("hutch-log-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).expect("a scratch directory");
            Scratch(path)
        }

        fn log(&self, bytes_max: u64) -> Log {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let directory = open(&self.0, flags, Mode::empty()).expect("opens");
            Log::open_in(directory, "main", bytes_max, 3).expect("a log")
        }

        fn names(&self) -> Vec<String> {
            let entries = std::fs::read_dir(&self.0).expect("lists");
            let mut names: Vec<String> =
                entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            names
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn all(log: &Log, offset: u64) -> Vec<u8> {
        let mut reader = LogReader::new(1, offset, false);
        let mut output = Output::default();
        while reader.emit(log, 1, 1 << 20, &mut output).expect("reads") > 0 {}
        let mut frames = output.waiting().to_vec();
        let mut bytes = Vec::new();
        while !frames.is_empty() {
            let length = u32::from_le_bytes(frames[0..4].try_into().expect("four")) as usize;
            bytes.extend_from_slice(&frames[12..12 + length]);
            frames.drain(..length + 16);
        }
        bytes
    }

    #[test]
    fn rotates_and_keeps_counting_offsets() {
        let scratch = Scratch::new("rotate");
        let mut log = scratch.log(100);
        for _ in 0..20 {
            log.append(1, 0, &[b"0123456789"]);
        }
        // A file is ended when it has 100 bytes or more: five records of 23.
        assert_eq!(scratch.names(), [115, 230, 345].map(|start| file_name("main", start)));
        assert_eq!((log.start(), log.end()), (115, 460));
        assert_eq!(all(&log, 0).len(), 345);
        assert_eq!(all(&log, 437)[13..], *b"0123456789");
        drop(log);
        let mut again = scratch.log(100);
        again.append(2, 0, &[b"x"]);
        assert_eq!(again.end(), 474);
    }

    #[test]
    fn a_record_that_was_cut_by_a_power_loss_is_dropped() {
        let scratch = Scratch::new("torn");
        let mut log = scratch.log(1000);
        log.append(1, 0, &[b"whole"]);
        log.append(1, 0, &[b"torn"]);
        drop(log);
        let path = scratch.0.join(file_name("main", 0));
        let bytes = std::fs::read(&path).expect("reads");
        std::fs::write(&path, &bytes[..bytes.len() - 1]).expect("writes");
        assert_eq!(scratch.log(1000).end(), 18);
    }

    #[test]
    fn the_tail_begins_with_a_whole_record() {
        let scratch = Scratch::new("tail");
        let mut log = scratch.log(1000);
        for text in [b"aaaa".as_slice(), b"bbbb", b"cccc"] {
            log.append(1, 0, &[text]);
        }
        assert_eq!([0, 1, 17, 18, 51, 500].map(|bytes| log.tail(bytes)), [51, 51, 34, 34, 0, 0]);
    }
}
