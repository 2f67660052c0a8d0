//! The small files that say who this machine is: hostname, hosts, resolv.conf, machine-id. In a machine
//! they lie in memory and are bound over those of the image, as Docker does it: the private layer has
//! no identity that a fork could inherit, and changing one is a single write to an open file.
use rustix::fs::{AtFlags, CWD, Mode, OFlags, fstat, ftruncate, mkdirat, open, openat, unlinkat};
use rustix::io::{Errno, pwrite};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use std::os::fd::OwnedFd;

struct EtcFile {
    name: &'static str,
    content: Vec<u8>,
    /// The file in memory, which is bound over the image's.
    bound: Option<OwnedFd>,
}

/// What was written so far, in this root.
#[derive(Default)]
pub struct Etc {
    files: Vec<EtcFile>,
}

pub type Content = (&'static str, Vec<u8>);

impl Etc {
    /// Another root has its own files.
    pub fn forget(&mut self) {
        self.files.clear();
    }

    /// Writes what differs from the last time. `memory` is the directory (in the initramfs) for files
    /// in memory; None writes the image's own files.
    pub fn write(&mut self, contents: Vec<Content>, memory: Option<&OwnedFd>, warn: &mut dyn FnMut(&str, Result<(), Errno>)) {
        for (name, content) in contents {
            let index = match self.files.iter().position(|file| file.name == name) {
                Some(index) => index,
                None => {
                    let bound = memory.and_then(|memory| bind(memory, name).ok());
                    self.files.push(EtcFile { name, content: Vec::new(), bound });
                    self.files.len() - 1
                }
            };
            let Some(file) = self.files.get_mut(index).filter(|file| file.content != content) else { continue };
            let written = match &file.bound {
                Some(fd) => overwrite(fd, &content),
                None => replace(name, &content),
            };
            warn(&format!("/etc/{name}"), written);
            file.content = content;
        }
    }
}

/// Makes a file in memory and binds it over `/etc/NAME`, which is made if it is missing.
fn bind(memory: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let file = openat(memory, format!("etc-{name}"), flags, Mode::from_raw_mode(0o644))?;
    let etc = open_etc()?;
    let place = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match openat(&etc, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
        Ok(there) if fstat(&there)?.st_mode & 0o170_000 == 0o100_000 => {}
        there => {
            // A link to where a resolver keeps its own, or nothing.
            if there.is_ok() {
                unlinkat(&etc, name, AtFlags::empty())?;
            }
            openat(&etc, name, place, Mode::from_raw_mode(0o644))?;
        }
    }
    let tree =
        open_tree(&file, "", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH)?;
    move_mount(&tree, "", &etc, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(file)
}

fn open_etc() -> Result<OwnedFd, Errno> {
    let open_it = || open("/etc", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    match open_it() {
        Err(Errno::NOENT) => {
            mkdirat(CWD, "/etc", Mode::from_raw_mode(0o755))?;
            open_it()
        }
        result => result,
    }
}

/// Writes the image's own file anew. A symbolic link is replaced by it.
fn replace(name: &str, content: &[u8]) -> Result<(), Errno> {
    let etc = open_etc()?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mode = Mode::from_raw_mode(0o644);
    let file = match openat(&etc, name, flags, mode) {
        Err(Errno::LOOP | Errno::NXIO) => {
            unlinkat(&etc, name, AtFlags::empty())?;
            openat(&etc, name, flags, mode)?
        }
        result => result?,
    };
    overwrite(&file, content)
}

/// In place, and cut only if it was longer: the least work for a file system.
fn overwrite(file: &OwnedFd, content: &[u8]) -> Result<(), Errno> {
    pwrite(file, content, 0)?;
    let length = content.len() as u64;
    if u64::try_from(fstat(file)?.st_size) != Ok(length) { ftruncate(file, length) } else { Ok(()) }
}

/// `/etc/localtime` leads to the zone, if the image has it.
pub fn set_timezone(zone: &str) -> Result<(), Errno> {
    let target = format!("/usr/share/zoneinfo/{zone}");
    rustix::fs::stat(&target)?;
    let etc = open_etc()?;
    let _ = unlinkat(&etc, "localtime", AtFlags::empty());
    rustix::fs::symlinkat(&target, &etc, "localtime")
}
