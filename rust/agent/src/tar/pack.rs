//! `tar.pack`: a file or a tree as an archive.
use super::header::{BLOCK, Header, Kind};
use crate::agent::Agent;
use crate::fault::{Fault, Outcome};
use crate::files::{Scene, failed, name_of, parent_of};
use crate::jobs::{JobPort, Ticket};
use crate::wire::fields::Fields;
use crate::wire::value::Value;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, major, minor, open, openat, readlinkat, statat};
use rustix::io::Errno;
use std::collections::HashMap;
use std::os::fd::OwnedFd;

const CHUNK: usize = 64 * 1024;
const PAGE_BYTES: i64 = 4096;
const MADE_BYTES_MAX: usize = 16 << 20;
/// Deeper trees are refused: each level holds a descriptor.
const DEPTH_MAX: usize = 512;
/// So many files with several names are remembered; further ones are packed once per name.
const LINKS_MAX: usize = 1 << 18;

impl Agent {
    pub fn tar_pack(&mut self, ticket: Ticket, p: Fields<'_>, scene: Scene) -> Result<(), Fault> {
        let path = self.path_of(p, "path", &scene)?;
        let follow = p.bool_or("dereference", false)?;
        let with_parent = p.bool_or("includeParent", false)?;
        self.stream_from_thread(ticket, move |port| {
            let _acting = scene.act()?;
            Packer { port, follow, buffer: Vec::new(), links: HashMap::new(), entries: 0, bytes: 0 }.pack(&path, with_parent)
        })
    }
}

struct Packer<'a> {
    port: &'a JobPort,
    follow: bool,
    buffer: Vec<u8>,
    /// The first name of files that have several, by device and inode.
    links: HashMap<(u64, u64), Vec<u8>>,
    entries: u64,
    bytes: u64,
}

struct Level {
    fd: OwnedFd,
    entries: Dir,
    name: Vec<u8>,
}

const OPEN: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

impl Packer<'_> {
    fn pack(mut self, path: &[u8], with_parent: bool) -> Outcome {
        let parent =
            open(parent_of(path), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(failed(path))?;
        let last = name_of(path);
        let last: &[u8] = if last == b"/" { b"." } else { last };
        // What is asked for by a path with a slash at its end is what the link leads to.
        let stat = self.stat(&parent, last, path.ends_with(b"/")).map_err(failed(path))?;
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let name: &[u8] = if is_directory && !with_parent || last == b"." { b"." } else { last };
        self.port.reply(Value::Nil);
        let first = self.add(&parent, last, name, &stat)?;
        let mut levels: Vec<Level> = first.into_iter().collect();
        while let Some(level) = levels.last_mut() {
            let Some(entry) = level.entries.next() else {
                levels.pop();
                continue;
            };
            let entry = entry.map_err(failed(&level.name))?;
            let base = entry.file_name().to_bytes();
            if base == b"." || base == b".." {
                continue;
            }
            let name = if level.name == b"." { base.to_vec() } else { [level.name.as_slice(), b"/", base].concat() };
            let stat = match self.stat(&level.fd, base, false) {
                Ok(stat) => stat,
                // Gone since the directory was read.
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(failed(&name)(errno)),
            };
            let depth = levels.len();
            let Some(level) = levels.last() else { break };
            let next = self.add(&level.fd, base, &name, &stat)?;
            if let Some(next) = next {
                if depth >= DEPTH_MAX {
                    return Err(Fault::invalid_argument(format!(
                        "directories more than {DEPTH_MAX} levels deep cannot be packed"
                    )));
                }
                levels.push(next);
            }
        }
        // Two blocks of zeros, and the customary record of 10 KiB filled up.
        self.buffer.resize(self.buffer.len() + 2 * BLOCK, 0);
        self.flush(0)?;
        Ok(Value::map([("entries", self.entries.into()), ("bytes", self.bytes.into())]))
    }

    fn stat(&self, directory: &OwnedFd, name: &[u8], follow: bool) -> Result<Stat, Errno> {
        let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let is_link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
        if is_link && (self.follow || follow) {
            // A link that leads nowhere is packed as the link it is.
            return statat(directory, name, AtFlags::empty()).or(Ok(stat));
        }
        Ok(stat)
    }

    /// Packs one entry. For a directory: what is to be packed next.
    fn add(&mut self, directory: &OwnedFd, base: &[u8], name: &[u8], stat: &Stat) -> Result<Option<Level>, Fault> {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink,
            FileType::Fifo => Kind::Fifo,
            FileType::CharacterDevice => Kind::Char,
            FileType::BlockDevice => Kind::Block,
            // A socket means nothing anywhere else.
            _ => return Ok(None),
        };
        let path = if kind == Kind::Directory { [name, b"/"].concat() } else { name.to_vec() };
        let mut header = Header {
            kind,
            path,
            link: Vec::new(),
            size: 0,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
            device: (0, 0),
            sparse: None,
        };
        self.entries += 1;
        match kind {
            Kind::File => {
                if stat.st_nlink > 1 {
                    let key = (stat.st_dev, stat.st_ino);
                    if let Some(first) = self.links.get(&key) {
                        header.kind = Kind::HardLink;
                        header.link.clone_from(first);
                        return self.header(&header).map(|()| None);
                    }
                    if self.links.len() < LINKS_MAX {
                        self.links.insert(key, name.to_vec());
                    }
                }
                self.file(directory, base, header).map(|()| None)
            }
            Kind::Directory => {
                self.header(&header)?;
                let fd = openat(directory, base, OPEN | OFlags::DIRECTORY, Mode::empty()).map_err(failed(name))?;
                let entries = Dir::read_from(&fd).map_err(failed(name))?;
                Ok(Some(Level { fd, entries, name: name.to_vec() }))
            }
            Kind::Symlink => {
                header.link = readlinkat(directory, base, Vec::new()).map_err(failed(name))?.into_bytes();
                self.header(&header).map(|()| None)
            }
            _ => {
                header.device = (major(stat.st_rdev), minor(stat.st_rdev));
                self.header(&header).map(|()| None)
            }
        }
    }

    fn header(&mut self, header: &Header) -> Result<(), Fault> {
        self.buffer.extend_from_slice(&header.encode());
        self.flush(CHUNK)
    }

    fn flush(&mut self, keep_below: usize) -> Result<(), Fault> {
        if self.buffer.len() > keep_below {
            self.bytes += self.buffer.len() as u64;
            self.port.send(std::mem::take(&mut self.buffer))?;
        }
        Ok(())
    }

    fn file(&mut self, directory: &OwnedFd, base: &[u8], mut header: Header) -> Result<(), Fault> {
        let flags = if self.follow { OPEN } else { OPEN | OFlags::NOFOLLOW };
        let name = header.path.clone();
        let file = match openat(directory, base, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(failed(&name)(errno)),
        };
        // What was opened decides, not what was there a moment before.
        let stat = fstat(&file).map_err(failed(&name))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(());
        }
        if stat.st_blocks == 0 && stat.st_size <= PAGE_BYTES {
            let content = read_made(&file).map_err(failed(&name))?.ok_or_else(|| too_long(&name))?;
            header.size = content.len() as u64;
            self.header(&header)?;
            self.buffer.extend_from_slice(&content);
            return self.pad(header.size);
        }
        header.size = u64::try_from(stat.st_size).unwrap_or(0);
        self.header(&header)?;
        let mut left = header.size;
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK);
            let start = self.buffer.len();
            self.buffer.resize(start + want, 0);
            let place = self.buffer.get_mut(start..).unwrap_or_default();
            let count = match rustix::io::read(&file, place) {
                // It was cut while we read: the archive still has the announced length.
                Ok(0) => want,
                Ok(count) => count,
                Err(Errno::INTR) => 0,
                Err(errno) => return Err(failed(&name)(errno)),
            };
            self.buffer.truncate(start + count);
            left -= count as u64;
            self.flush(CHUNK)?;
        }
        self.pad(header.size)
    }

    fn pad(&mut self, size: u64) -> Result<(), Fault> {
        let padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        self.buffer.resize(self.buffer.len() + padding as usize, 0);
        self.flush(CHUNK)
    }
}

/// The whole of a file that the kernel makes as it is read: those in /proc say that they have no bytes, those in /sys
/// a page. None: it does not end.
fn read_made(file: &OwnedFd) -> Result<Option<Vec<u8>>, Errno> {
    let mut content = Vec::new();
    let mut chunk = vec![0; CHUNK];
    while content.len() <= MADE_BYTES_MAX {
        match rustix::io::read(file, &mut chunk) {
            // What would only come later does not belong to it.
            Ok(0) | Err(Errno::AGAIN) => return Ok(Some(content)),
            Ok(count) => content.extend_from_slice(chunk.get(..count).unwrap_or_default()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(None)
}

fn too_long(name: &[u8]) -> Fault {
    Fault::invalid_argument(format!(
        "{} does not say its size and has more than {MADE_BYTES_MAX} bytes",
        String::from_utf8_lossy(name)
    ))
}
