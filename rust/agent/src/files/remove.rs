//! Removing a tree without following links out of it, however deep it is: no recursion, and a
//! bounded number of open directories.
use super::{name_of, parent_of};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, open, openat, renameat, unlinkat};
use rustix::io::Errno;
use std::ffi::CString;
use std::os::fd::OwnedFd;

/// Deeper directories are moved up to the top of the tree first.
const OPEN_MAX: usize = 64;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

pub fn remove(path: &[u8], recursive: bool) -> Result<(), Errno> {
    let parent = open(parent_of(path), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let name = name_of(path);
    match unlinkat(&parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        result => return result,
    }
    match unlinkat(&parent, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) if recursive => {}
        result => return result,
    }
    empty(&parent, name)?;
    unlinkat(&parent, name, AtFlags::REMOVEDIR)
}

struct Level {
    fd: OwnedFd,
    entries: Dir,
    name: CString,
}

fn level(parent: &OwnedFd, name: CString) -> Result<Level, Errno> {
    let fd = openat(parent, name.as_c_str(), DIRECTORY, Mode::empty())?;
    let entries = Dir::read_from(&fd)?;
    Ok(Level { fd, entries, name })
}

/// Removes what is in a directory.
fn empty(parent: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    let top_name = CString::new(name).map_err(|_| Errno::INVAL)?;
    let mut moved = 0u64;
    loop {
        let mut levels = vec![level(parent, top_name.clone())?];
        let top = rustix::io::fcntl_dupfd_cloexec(&levels.first().ok_or(Errno::IO)?.fd, 3)?;
        let moved_before = moved;
        while let Some(current) = levels.last_mut() {
            let Some(entry) = current.entries.next() else {
                let done = levels.pop();
                if let (Some(done), Some(above)) = (done, levels.last()) {
                    match unlinkat(&above.fd, done.name.as_c_str(), AtFlags::REMOVEDIR) {
                        Ok(()) | Err(Errno::NOENT) => {}
                        Err(errno) => return Err(errno),
                    }
                }
                continue;
            };
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let is_directory = match entry.file_type() {
                FileType::Directory => true,
                _ => match unlinkat(&current.fd, name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => false,
                    Err(Errno::ISDIR) => true,
                    Err(errno) => return Err(errno),
                },
            };
            if !is_directory || unlinkat(&current.fd, name, AtFlags::REMOVEDIR).is_ok() {
                continue;
            }
            if levels.len() < OPEN_MAX {
                let next = level(&levels.last().ok_or(Errno::IO)?.fd, name.to_owned())?;
                levels.push(next);
            } else {
                moved += 1;
                let away = format!(".removing-{}-{moved}", rustix::process::getpid().as_raw_nonzero());
                renameat(&levels.last().ok_or(Errno::IO)?.fd, name, &top, away.as_str())?;
            }
        }
        if moved == moved_before {
            return Ok(());
        }
    }
}
