//! `file.read` and `file.write`. They are opened on a thread; the content of local files then goes
//! between descriptor and connection directly, without another copy or thread between.
use super::direct::{Block, DIRECT_FROM, Gathered};
use super::entry::entry;
use super::simple::{make_parent, mode_of};
use super::{Scene, failed, name_of, parent_of};
use crate::agent::Agent;
use crate::fault::{Fault, Outcome};
use crate::jobs::Ticket;
use crate::output::{BODY_BYTES_MAX, Body, DATA_BYTES_MAX, Output, Source};
use crate::stream::Kind;
use crate::users::Users;
use crate::wire::fields::Fields;
use crate::wire::value::Value;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, fchmod, fstat, fsync, futimens, open, openat, renameat,
    stat, unlinkat,
};
use rustix::io::Errno;
use std::os::fd::{AsRawFd, OwnedFd};

/// A file that is smaller is sent as ever.
const LENT_FROM: u64 = 1024 * 1024;
/// Content that the host may send before it hears that some was written, beyond what any stream may.
const WRITE_WINDOW_BYTES: u32 = 768 * 1024;

pub struct FileReader {
    file: OwnedFd,
    offset: u64,
    end: u64,
    sent: u64,
    path: Vec<u8>,
    /// As large as the file was when it was opened.
    size: u64,
    /// What was read past the cache. None: nothing yet, or no more.
    block: Option<Block>,
    /// Its file system cannot.
    never_direct: bool,
}

impl FileReader {
    /// One frame. Err: the stream is over, with this outcome.
    pub fn emit(&mut self, stream: u32, credit: u64, output: &mut Output) -> Result<(usize, bool), Outcome> {
        let done = |sent: u64| Err(Ok(Value::map([("bytes", sent.into())])));
        let left = self.end.saturating_sub(self.offset);
        if left == 0 {
            return done(self.sent);
        }
        let limit = usize::try_from(left.min(credit)).unwrap_or(usize::MAX);
        if limit == 0 {
            return Ok((0, false));
        }
        if self.reads_block() {
            let count = self.block.as_ref().map_or(0, |block| block.from(self.offset, limit.min(BODY_BYTES_MAX)).len());
            output.data_of(0, Body { stream, source: Source::Block, offset: self.offset, left: count });
            self.offset += count as u64;
            self.sent += count as u64;
            return Ok((count, true));
        }
        let (file, offset) = (&self.file, self.offset);
        let limit = Block::up_to_a_block(offset, limit.min(DATA_BYTES_MAX));
        match output.data_from(stream, 0, limit, |place| Ok(rustix::io::pread(file, place, offset)?)) {
            Ok(0) => done(self.sent),
            Ok(count) => {
                self.offset += count as u64;
                self.sent += count as u64;
                Ok((count, true))
            }
            Err(error) => Err(Err(failed(&self.path)(Errno::from_io_error(&error).unwrap_or(Errno::IO)))),
        }
    }

    /// Whether the next bytes lie in the block. They are read into it, where that is worth it.
    fn reads_block(&mut self) -> bool {
        if self.block.as_ref().is_some_and(|block| !block.from(self.offset, 1).is_empty()) {
            return true;
        }
        // A small file is read again soon more often than not.
        if self.never_direct || self.size < DIRECT_FROM || !Block::is_worth(&self.file, self.offset, self.end.min(self.size)) {
            return false;
        }
        let Some(mut block) = self.block.take().or_else(Block::begin) else { return false };
        match block.read(&self.file, self.offset) {
            Ok(count) if count > 0 => self.block = Some(block),
            // Whatever it is, it is found out once more by reading as ever.
            Ok(_) => {}
            Err(_) => self.never_direct = true,
        }
        self.block.is_some()
    }

    /// For a frame that is under way: up to `most` bytes from `offset` of the file on.
    pub fn held_from(&self, offset: u64, most: usize) -> Option<&[u8]> {
        Some(self.block.as_ref()?.from(offset, most))
    }
}

/// The file that takes the place of another once it is whole. Dropped before that, it is removed.
struct Beside {
    directory: OwnedFd,
    name: String,
    final_name: Vec<u8>,
}

impl Drop for Beside {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            let _ = unlinkat(&self.directory, self.name.as_str(), AtFlags::empty());
        }
    }
}

pub struct FileWriter {
    file: OwnedFd,
    beside: Option<Beside>,
    /// None: at the end of a pipe or device.
    offset: Option<u64>,
    /// What comes at the offset, of a large new file.
    gathered: Option<Gathered>,
    mode: Option<u32>,
    mtime_ms: Option<u64>,
    path: Vec<u8>,
    scene: Scene,
}

impl FileWriter {
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let mut rest = bytes;
        while !rest.is_empty() {
            if let Some(gathered) = self.gathered.as_mut() {
                let count = gathered.take(rest);
                rest = rest.get(count..).unwrap_or_default();
                if gathered.is_full() {
                    self.put_gathered()?;
                }
                continue;
            }
            let is_new = self.beside.is_some();
            let result = match self.offset {
                Some(offset) if is_new && offset < DIRECT_FROM => {
                    let most = usize::try_from(DIRECT_FROM - offset).unwrap_or(usize::MAX).min(rest.len());
                    rustix::io::pwrite(&self.file, rest.get(..most).unwrap_or_default(), offset)
                }
                Some(offset) => rustix::io::pwrite(&self.file, rest, offset),
                None => rustix::io::write(&self.file, rest),
            };
            match result {
                Ok(count) => {
                    self.offset = self.offset.map(|offset| offset + count as u64);
                    rest = rest.get(count..).unwrap_or_default();
                    if is_new && self.offset == Some(DIRECT_FROM) {
                        self.gathered = Gathered::begin(&self.file);
                    }
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(failed(&self.path)(errno)),
            }
        }
        Ok(())
    }

    fn put_gathered(&mut self) -> Result<(), Fault> {
        let (Some(mut gathered), Some(offset)) = (self.gathered.take(), self.offset) else { return Ok(()) };
        let count = gathered.held();
        let direct = gathered.put(&self.file, offset).map_err(failed(&self.path))?;
        self.offset = Some(offset + count as u64);
        self.gathered = direct.then_some(gathered);
        Ok(())
    }

    /// All is there: it gets its mode and time, reaches the disk, and takes its place.
    fn complete(mut self) -> Outcome {
        let users = &mut Users::default();
        self.put_gathered()?;
        let path = std::mem::take(&mut self.path);
        {
            let _acting = self.scene.act()?;
            if let Some(mode) = self.mode {
                fchmod(&self.file, Mode::from_raw_mode(mode)).map_err(failed(&path))?;
            }
            if let Some(ms) = self.mtime_ms {
                let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
                let at = Timespec { tv_sec: (ms / 1000) as i64, tv_nsec: (ms % 1000 * 1_000_000) as _ };
                futimens(&self.file, &Timestamps { last_access: omit, last_modification: at }).map_err(failed(&path))?;
            }
            if let Some(beside) = self.beside.as_mut() {
                fsync(&self.file).map_err(failed(&path))?;
                renameat(&beside.directory, beside.name.as_str(), &beside.directory, beside.final_name.as_slice())
                    .map_err(failed(&path))?;
                beside.name.clear();
            }
        }
        let stat = fstat(&self.file).map_err(failed(&path))?;
        Ok(entry(&path, &stat, None, users))
    }
}

impl Agent {
    pub fn file_read(&mut self, ticket: Ticket, p: Fields<'_>, scene: Scene) -> Result<(), Fault> {
        let path = self.path_of(p, "path", &scene)?;
        let (offset, length) = (p.opt_u64("offset")?.unwrap_or(0), p.opt_u64("length")?);
        let lend = p.bool_or("lend", false)?;
        let notes = self.notes.clone();
        self.pool.run(move || {
            let result = open_for_reading(&scene, path, offset, length);
            notes.post(move |agent| match result {
                Err(fault) => agent.finish(ticket, &Err(fault)),
                Ok((reader, entry)) if agent.ticket_is_open(ticket) => agent.with_stream(ticket.stream, |stream| {
                    let lent = lend && reader.size >= LENT_FROM;
                    stream.reply(&if lent { entry.with("lent", Some(descriptor(&reader.file))) } else { entry });
                    if !stream.is_finishing() {
                        stream.kind = if lent { Kind::Lent(reader.file) } else { Kind::Read(Box::new(reader)) };
                    }
                }),
                Ok(_) => {}
            });
        })
    }

    pub fn file_write(&mut self, ticket: Ticket, p: Fields<'_>, scene: Scene) -> Result<(), Fault> {
        let path = self.path_of(p, "path", &scene)?;
        let (mode, mtime_ms, at) = (mode_of(p)?, p.opt_u64("mtimeMs")?, p.opt_u64("at")?);
        let (parents, lend) = (p.bool_or("mkdirs", false)?, p.bool_or("lend", false)?);
        let notes = self.notes.clone();
        self.pool.run(move || {
            let opened = open_for_writing(scene, path, mode, at, parents);
            notes.post(move |agent| match opened {
                Err(fault) => agent.finish(ticket, &Err(fault)),
                Ok(writer) if agent.ticket_is_open(ticket) => {
                    let writer = FileWriter { mtime_ms, ..writer };
                    agent.with_stream(ticket.stream, |stream| {
                        let lent = lend && writer.beside.is_some();
                        stream.reply(&if lent { Value::map([("lent", descriptor(&writer.file))]) } else { Value::Nil });
                        if !stream.is_finishing() {
                            stream.kind = Kind::Write(Box::new(writer));
                            stream.widen(WRITE_WINDOW_BYTES);
                        }
                    });
                    agent.deliver_early(ticket.stream);
                }
                // Given up while it was opened.
                Ok(_) => {}
            });
        })
    }

    /// The host has sent all: the rest may block, and is done on a thread.
    pub fn end_write(&mut self, number: u32) {
        let ticket = Ticket { connection: self.connection, stream: number };
        let Some(stream) = self.streams.get_mut(&number) else { return };
        if let Kind::Write(writer) = std::mem::replace(&mut stream.kind, Kind::Pending) {
            let began = self.reply_from_thread(ticket, move || writer.complete());
            if let Err(fault) = began {
                self.finish(ticket, &Err(fault));
            }
        }
    }
}

/// By which a host that sees our processes opens the same file.
fn descriptor(file: &OwnedFd) -> Value {
    Value::from(u64::try_from(file.as_raw_fd()).unwrap_or(0))
}

fn open_for_reading(scene: &Scene, path: Vec<u8>, offset: u64, length: Option<u64>) -> Result<(FileReader, Value), Fault> {
    let users = &mut Users::default();
    let _acting = scene.act()?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = open(path.as_slice(), flags, Mode::empty()).map_err(failed(&path))?;
    let stat = fstat(&file).map_err(failed(&path))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => return Err(failed(&path)(Errno::ISDIR)),
        _ => return Err(Fault::invalid_argument(format!("{} is no regular file", String::from_utf8_lossy(&path)))),
    }
    let entry = entry(&path, &stat, None, users);
    let end = length.map_or(u64::MAX, |length| offset.saturating_add(length));
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    Ok((FileReader { file, offset, end, sent: 0, path, size, block: None, never_direct: false }, entry))
}

fn open_for_writing(scene: Scene, path: Vec<u8>, mode: Option<u32>, at: Option<u64>, parents: bool) -> Result<FileWriter, Fault> {
    let opened = {
        let _acting = scene.act()?;
        if parents {
            make_parent(&path).map_err(failed(&path))?;
        }
        match at {
            Some(_) => open_in_place(&path, mode, OFlags::empty()).map(|file| (file, None)),
            None => open_beside(&path, mode),
        }
    };
    let (file, beside) = opened.map_err(failed(&path))?;
    let stat = fstat(&file).map_err(failed(&path))?;
    let seekable = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    Ok(FileWriter {
        file,
        beside,
        offset: seekable.then_some(at.unwrap_or(0)),
        gathered: None,
        mode,
        mtime_ms: None,
        path,
        scene,
    })
}

fn open_in_place(path: &[u8], mode: Option<u32>, extra: OFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK | extra;
    open(path, flags, Mode::from_raw_mode(mode.unwrap_or(0o644)))
}

/// A new file beside the old one. What is no regular file is written in place, and so is a file in a
/// directory that the user may not change.
fn open_beside(path: &[u8], mode: Option<u32>) -> Result<(OwnedFd, Option<Beside>), Errno> {
    let (path, old) = match stat(path) {
        Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => (real_path(path)?, Some(stat)),
            FileType::Directory => return Err(Errno::ISDIR),
            _ => return Ok((open_in_place(path, mode, OFlags::empty())?, None)),
        },
        Err(Errno::NOENT) => (path.to_vec(), None),
        Err(errno) => return Err(errno),
    };
    if path.ends_with(b"/") {
        return Err(Errno::ISDIR);
    }
    let directory = open(parent_of(&path), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mode = mode.or(old.map(|stat| stat.st_mode & 0o7777));
    for attempt in 0..NAMES_TRIED {
        let name = name_beside(attempt);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match openat(&directory, name.as_str(), flags, Mode::from_raw_mode(mode.unwrap_or(0o644) & 0o777)) {
            Ok(file) => {
                // The umask does not count where a mode was given, or was there before.
                if let Some(mode) = mode {
                    fchmod(&file, Mode::from_raw_mode(mode))?;
                }
                let final_name = name_of(&path).to_vec();
                return Ok((file, Some(Beside { directory, name, final_name })));
            }
            Err(Errno::EXIST) => {}
            Err(Errno::ACCESS | Errno::PERM) if old.is_some() => return Ok((open_in_place(&path, None, OFlags::TRUNC)?, None)),
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::EXIST)
}

/// Follows symbolic links to the file itself: they stay, the file behind them is replaced.
fn real_path(path: &[u8]) -> Result<Vec<u8>, Errno> {
    let fd = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
    match rustix::fs::readlink(link, Vec::new()) {
        Ok(real) if real.as_bytes().starts_with(b"/") => Ok(real.into_bytes()),
        _ => Ok(path.to_vec()),
    }
}

/// How many names are tried for a file beside another, before that is given up.
pub const NAMES_TRIED: u32 = 100;

/// What a file is called until it is whole.
pub fn name_beside(attempt: u32) -> String {
    format!(".hutch-{}-{:08x}.tmp", rustix::process::getpid().as_raw_nonzero(), random_name(attempt))
}

/// Names that are not guessed: whoever could plant one only delays us.
fn random_name(attempt: u32) -> u32 {
    use std::hash::{BuildHasher, Hasher};
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u32(attempt);
    hasher.finish() as u32
}
