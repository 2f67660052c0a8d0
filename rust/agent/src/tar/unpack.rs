//! `tar.unpack`: an archive becomes files below one directory, and nothing outside of it: names are
//! resolved by the kernel with that directory as their root, so that neither `..` nor a symbolic link
//! (of the archive, or there before) leads out.
use super::header::{Header, Kind};
use super::reader::{Reader, Source};
use crate::agent::Agent;
use crate::fault::{Fault, Outcome};
use crate::files::simple::make_directories;
use crate::files::stream::{NAMES_TRIED, name_beside};
use crate::files::{Scene, failed};
use crate::jobs::{JobPort, Ticket};
use crate::wire::fields::{Fields, PATH_BYTES_MAX};
use crate::wire::value::Value;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, Uid, chmodat, chownat, fchmod,
    ftruncate, linkat, makedev, mkdirat, mknodat, open, openat, openat2, renameat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use std::os::fd::OwnedFd;

/// Directories whose mode and time are set at the end; further ones get them at once.
const DIRECTORIES_MAX: usize = 65_536;

impl Agent {
    pub fn tar_unpack(&mut self, ticket: Ticket, p: Fields<'_>, scene: Scene) -> Result<(), Fault> {
        let path = self.path_of(p, "path", &scene)?;
        let keep_owner = p.bool_or("preserveOwner", false)?;
        let make = p.bool_or("mkdirs", false)?;
        self.stream_from_thread(ticket, move |port| {
            let _acting = scene.act()?;
            if make {
                make_directories(&path, 0o755).map_err(failed(&path))?;
            }
            let target = open_target(&path).map_err(failed(&path))?;
            port.reply(Value::Nil);
            unpack(FromHost(port), &target, keep_owner)
        })
    }
}

struct FromHost<'a>(&'a JobPort);

impl Source for FromHost<'_> {
    fn next(&mut self) -> Result<Option<Vec<u8>>, Fault> {
        Ok(self.0.receive()?)
    }
}

pub fn open_target(path: &[u8]) -> Result<OwnedFd, Errno> {
    open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

pub fn unpack<S: Source>(source: S, target: &OwnedFd, keep_owner: bool) -> Outcome {
    let mut reader = Reader::new(source);
    let mut unpacker = Unpacker { target, keep_owner, directories: Vec::new(), entries: 0, cached: None };
    while let Some(header) = reader.entry()? {
        let name = header.path.clone();
        unpacker.entry(&header, &mut reader).map_err(|fault| in_entry(&name, fault))?;
        unpacker.entries += 1;
    }
    unpacker.finish_directories();
    Ok(Value::map([("entries", unpacker.entries.into()), ("bytes", reader.bytes.into())]))
}

fn in_entry(name: &[u8], fault: Fault) -> Fault {
    let shown: String = String::from_utf8_lossy(name).chars().take(256).collect();
    Fault { message: format!("{shown}: {}", fault.message), ..fault }
}

struct Unpacker<'a> {
    target: &'a OwnedFd,
    keep_owner: bool,
    directories: Vec<(Vec<Vec<u8>>, Header)>,
    entries: u64,
    /// The directory of the last entry: the next one mostly lies in it too.
    cached: Option<(Vec<Vec<u8>>, OwnedFd)>,
}

/// The names in a path. `..` is refused rather than resolved: it is never innocent in an archive.
pub fn names(path: &[u8]) -> Result<Vec<Vec<u8>>, Fault> {
    if path.len() > PATH_BYTES_MAX {
        return Err(Fault::invalid_argument(format!("the name has more than {PATH_BYTES_MAX} bytes")));
    }
    if path.contains(&0) {
        return Err(Fault::invalid_argument("the name has a NUL byte"));
    }
    let names: Vec<Vec<u8>> =
        path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".").map(<[u8]>::to_vec).collect();
    if names.iter().any(|name| name == b"..") {
        return Err(Fault::invalid_argument("the name leads out of the archive by \"..\""));
    }
    Ok(names)
}

fn system(errno: Errno) -> Fault {
    Fault { message: crate::fault::describe(errno), ..Fault::system("", errno) }
}

impl Unpacker<'_> {
    fn entry<S: Source>(&mut self, header: &Header, reader: &mut Reader<S>) -> Result<(), Fault> {
        let names = names(&header.path)?;
        let Some((base, parents)) = names.split_last() else {
            // The target itself.
            if header.kind == Kind::Directory {
                self.remember(Vec::new(), header);
            }
            reader.skip(header.size)?;
            return reader.skip_padding(header.size);
        };
        let directory = self.directory(parents)?;
        let result = self.make(&directory, base, &names, header, reader);
        self.cached = Some((parents.to_vec(), directory));
        result
    }

    fn make<S: Source>(
        &mut self,
        directory: &OwnedFd,
        base: &[u8],
        names: &[Vec<u8>],
        header: &Header,
        reader: &mut Reader<S>,
    ) -> Result<(), Fault> {
        if header.kind == Kind::Directory {
            return self.make_directory(directory, base, names, header);
        }
        if header.kind == Kind::File {
            return self.file(directory, base, header, reader);
        }
        match unlinkat(directory, base, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) => return Err(Fault::conflict("there is a directory of that name")),
            Err(errno) => return Err(system(errno)),
        }
        match header.kind {
            Kind::HardLink => {
                let linked = names_of_link(&header.link)?;
                let (name, parents) = linked.split_last().ok_or_else(|| Fault::invalid_argument("a link to nothing"))?;
                let from = self.resolve(parents).map_err(system)?;
                // Whatever it is a link to has its mode and time already.
                return linkat(&from, name.as_slice(), directory, base, AtFlags::empty()).map_err(system);
            }
            Kind::Symlink => symlinkat(header.link.as_slice(), directory, base).map_err(system)?,
            Kind::Fifo => mknodat(directory, base, FileType::Fifo, Mode::from_raw_mode(0o600), 0).map_err(system)?,
            Kind::Char | Kind::Block => {
                let kind = if header.kind == Kind::Char { FileType::CharacterDevice } else { FileType::BlockDevice };
                let (major, minor) = header.device;
                mknodat(directory, base, kind, Mode::from_raw_mode(0o600), makedev(major, minor)).map_err(system)?;
            }
            _ => return Err(Fault::invalid_argument("an entry that makes no file")),
        }
        self.dress(directory, base, header);
        Ok(())
    }

    /// Owner, then mode (a change of owner takes the set-uid bits away), then time.
    fn dress(&self, directory: &OwnedFd, base: &[u8], header: &Header) {
        if self.keep_owner {
            let (uid, gid) = (Uid::from_raw(header.uid), Gid::from_raw(header.gid));
            let _ = chownat(directory, base, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW);
        }
        if header.kind != Kind::Symlink {
            let _ = chmodat(directory, base, Mode::from_raw_mode(header.mode), AtFlags::empty());
        }
        let _ = utimensat(directory, base, &times(header), AtFlags::SYMLINK_NOFOLLOW);
    }

    /// Under its own name only when it is whole: an archive that is cut off leaves what was there before.
    fn file<S: Source>(&self, directory: &OwnedFd, base: &[u8], header: &Header, reader: &mut Reader<S>) -> Result<(), Fault> {
        let (file, beside) = open_beside(directory).map_err(system)?;
        let written = self.fill(&file, header, reader);
        let placed = written.and_then(|()| {
            renameat(directory, beside.as_str(), directory, base).map_err(|errno| match errno {
                Errno::ISDIR => Fault::conflict("there is a directory of that name"),
                errno => system(errno),
            })
        });
        if placed.is_err() {
            let _ = unlinkat(directory, beside.as_str(), AtFlags::empty());
        }
        placed
    }

    fn fill<S: Source>(&self, file: &OwnedFd, header: &Header, reader: &mut Reader<S>) -> Result<(), Fault> {
        match &header.sparse {
            None => write_at(file, 0, header.size, reader)?,
            Some(sparse) => {
                for piece in &sparse.pieces {
                    write_at(file, piece.offset, piece.bytes, reader)?;
                }
                ftruncate(file, sparse.size).map_err(system)?;
            }
        }
        if self.keep_owner {
            let _ = rustix::fs::fchown(file, Some(Uid::from_raw(header.uid)), Some(Gid::from_raw(header.gid)));
        }
        fchmod(file, Mode::from_raw_mode(header.mode)).map_err(system)?;
        rustix::fs::futimens(file, &times(header)).map_err(system)?;
        reader.skip_padding(header.size)
    }

    fn make_directory(&mut self, directory: &OwnedFd, base: &[u8], names: &[Vec<u8>], header: &Header) -> Result<(), Fault> {
        match mkdirat(directory, base, Mode::from_raw_mode(header.mode | 0o700)) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let stat = statat(directory, base, AtFlags::SYMLINK_NOFOLLOW).map_err(system)?;
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => {}
                    // A link to a directory of the target stays: /lib may be /usr/lib there.
                    FileType::Symlink if self.resolve(names).is_ok() => return Ok(()),
                    _ => {
                        unlinkat(directory, base, AtFlags::empty()).map_err(system)?;
                        mkdirat(directory, base, Mode::from_raw_mode(header.mode | 0o700)).map_err(system)?;
                    }
                }
            }
            Err(errno) => return Err(system(errno)),
        }
        if self.keep_owner {
            let (uid, gid) = (Uid::from_raw(header.uid), Gid::from_raw(header.gid));
            let _ = chownat(directory, base, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW);
        }
        self.remember(names.to_vec(), header);
        Ok(())
    }

    /// Mode and time of a directory come last: files are still put into it.
    fn remember(&mut self, names: Vec<Vec<u8>>, header: &Header) {
        self.directories.push((names, header.clone()));
        if self.directories.len() > DIRECTORIES_MAX {
            self.finish_directories();
        }
    }

    fn finish_directories(&mut self) {
        for (names, header) in std::mem::take(&mut self.directories).into_iter().rev() {
            // By its own descriptor: the last name may have become a link meanwhile.
            let Ok(parent) = self.resolve(names.split_last().map_or(&[], |(_, parents)| parents)) else { continue };
            let base = names.last().map_or(b".".as_slice(), Vec::as_slice);
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let Ok(directory) = openat(&parent, base, flags, Mode::empty()) else { continue };
            let _ = fchmod(&directory, Mode::from_raw_mode(header.mode));
            let _ = rustix::fs::futimens(&directory, &times(&header));
        }
    }

    /// The directory of an entry; what is missing is made.
    fn directory(&mut self, parents: &[Vec<u8>]) -> Result<OwnedFd, Fault> {
        if let Some((known, fd)) = self.cached.take()
            && known == parents
        {
            return Ok(fd);
        }
        match self.resolve(parents) {
            Err(Errno::NOENT) => {}
            result => return result.map_err(system),
        }
        for count in 1..=parents.len() {
            let (path, above) = (parents.get(..count).unwrap_or_default(), parents.get(..count - 1).unwrap_or_default());
            if matches!(self.resolve(path), Err(Errno::NOENT)) {
                let above = self.resolve(above).map_err(system)?;
                let name = path.last().map(Vec::as_slice).unwrap_or_default();
                match mkdirat(&above, name, Mode::from_raw_mode(0o755)) {
                    Ok(()) => {}
                    Err(Errno::EXIST) => return Err(Fault::invalid_argument("a symbolic link on the way leads nowhere")),
                    Err(errno) => return Err(system(errno)),
                }
            }
        }
        self.resolve(parents).map_err(system)
    }

    /// Opens a directory below the target. Links are followed as if the target were the root.
    fn resolve(&self, names: &[Vec<u8>]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let path = if names.is_empty() { b".".to_vec() } else { names.join(b"/".as_slice()) };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        match openat2(self.target, path.as_slice(), flags, Mode::empty(), resolve) {
            Err(Errno::NOSYS | Errno::PERM) => walk(self.target, names),
            result => result,
        }
    }
}

fn open_beside(directory: &OwnedFd) -> Result<(OwnedFd, String), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for attempt in 0..NAMES_TRIED {
        let name = name_beside(attempt);
        match openat(directory, name.as_str(), flags, Mode::from_raw_mode(0o600)) {
            Ok(file) => return Ok((file, name)),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::EXIST)
}

/// Writes the next `bytes` of the content.
fn write_at<S: Source>(file: &OwnedFd, mut offset: u64, bytes: u64, reader: &mut Reader<S>) -> Result<(), Fault> {
    let mut left = bytes;
    while left > 0 {
        let mut rest = reader.some(usize::try_from(left).unwrap_or(usize::MAX))?;
        if rest.is_empty() {
            return Err(Fault::invalid_argument("the archive ends in the middle of it"));
        }
        left -= rest.len() as u64;
        while !rest.is_empty() {
            match rustix::io::pwrite(file, rest, offset) {
                Ok(count) => {
                    offset += count as u64;
                    rest = rest.get(count..).unwrap_or_default();
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(system(errno)),
            }
        }
    }
    Ok(())
}

/// Where the kernel has no openat2: name by name, and no link is followed at all.
pub fn walk(target: &OwnedFd, names: &[Vec<u8>]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at = rustix::io::fcntl_dupfd_cloexec(target, 3)?;
    for name in names {
        at = openat(&at, name.as_slice(), flags, Mode::empty())?;
    }
    Ok(at)
}

fn names_of_link(link: &[u8]) -> Result<Vec<Vec<u8>>, Fault> {
    names(link).map_err(|fault| Fault { message: format!("its link target: {}", fault.message), ..fault })
}

fn times(header: &Header) -> Timestamps {
    let (seconds, nanos) = header.mtime;
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanos.into() },
    }
}
