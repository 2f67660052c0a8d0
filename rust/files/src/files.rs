//! Files that are open just now. The guest opens nothing itself (`FUSE_NO_OPEN_SUPPORT`): it names a node, and what it used last stays open.
use rustix::io::Errno;
use std::collections::HashMap;
use std::os::fd::OwnedFd;

const FILES_MAX: usize = 256;
const DIRECTORIES_MAX: usize = 512;

struct Open {
    file: OwnedFd,
    is_writable: bool,
    used: u64,
}

#[derive(Default)]
pub struct Files {
    open: HashMap<u64, Open>,
    clock: u64,
    directories: HashMap<u64, OwnedFd>,
    next: u64,
    closed: Vec<u64>,
}

impl Files {
    pub fn get(&mut self, node: u64, to_write: bool) -> Option<&OwnedFd> {
        self.clock += 1;
        let open = self.open.get_mut(&node).filter(|open| open.is_writable || !to_write)?;
        open.used = self.clock;
        Some(&open.file)
    }

    pub fn keep(&mut self, node: u64, file: OwnedFd, is_writable: bool) {
        if self.open.len() >= FILES_MAX && !self.open.contains_key(&node) {
            let oldest = self.open.iter().min_by_key(|(_, open)| open.used).map(|(node, _)| *node);
            if let Some(oldest) = oldest {
                self.close(oldest);
            }
        }
        self.clock += 1;
        if self.open.insert(node, Open { file, is_writable, used: self.clock }).is_some() {
            self.closed.push(node);
        }
    }

    /// Of which the kernel says that somebody has closed them, who was this program.
    pub fn take_closed(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.closed)
    }

    pub fn close(&mut self, node: u64) {
        if self.open.remove(&node).is_some() {
            self.closed.push(node);
        }
    }

    pub fn open_directory(&mut self, fd: OwnedFd) -> Result<u64, Errno> {
        if self.directories.len() >= DIRECTORIES_MAX {
            return Err(Errno::MFILE);
        }
        self.next += 1;
        self.directories.insert(self.next, fd);
        Ok(self.next)
    }

    pub fn directory(&self, handle: u64) -> Result<&OwnedFd, Errno> {
        self.directories.get(&handle).ok_or(Errno::BADF)
    }

    pub fn close_directory(&mut self, handle: u64) {
        self.directories.remove(&handle);
    }
}
