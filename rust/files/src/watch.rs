//! Word from the kernel of what others change in directories that the guest knows something of.
//!
//! Not heard of: a file by a name elsewhere, and what lies on another file system or on one of the network. That is told for a moment
//! alone (`VALID_UNHEARD_MS`). What a program writes through a map of memory is heard when it closes the file.
use crate::opcode;
use crate::tree::Tree;
use crate::wire::{Fields, Header};
use rustix::fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, init, remove_watch};
use rustix::fs::{AtFlags, fstat, statat};
use rustix::io::Errno;
use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Of one sandbox's directory; others of this machine want some too.
const WATCHES_MAX: usize = 8192;
/// That are told at once: with more the guest is told that there were many.
const CHANGES_MAX: usize = 4096;
const BUFFER_BYTES: usize = 16 * 1024;

/// In the directory that is that node, of that name; of itself where the name is empty.
type Place = (u64, Vec<u8>);

#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// What that name leads to, if it does.
    Name(Place),
    /// What is there by that name is the same file, and has something else in it or about it.
    Inside(Place),
    /// More than are told.
    Many,
}

#[derive(Default)]
pub struct Watches {
    /// None where the kernel gives none.
    fd: Option<OwnedFd>,
    by_node: HashMap<u64, i32>,
    nodes: HashMap<i32, u64>,
}

impl Watches {
    pub fn new() -> Watches {
        Watches { fd: init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok(), ..Watches::default() }
    }

    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }

    pub fn has(&self, node: u64) -> bool {
        self.by_node.contains_key(&node)
    }

    /// To be asked before what is told of it is looked at. False where no word will come.
    pub fn add(&mut self, node: u64, directory: BorrowedFd<'_>) -> bool {
        let Some(fd) = self.fd.as_ref().filter(|_| self.by_node.len() < WATCHES_MAX) else { return false };
        let what = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVE
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::CLOSE_WRITE;
        let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
        let Ok(watch) = add_watch(fd, path, what | WatchFlags::ONLYDIR) else { return false };
        if let Some(before) = self.nodes.insert(watch, node) {
            self.by_node.remove(&before);
        }
        self.by_node.insert(node, watch);
        true
    }

    pub fn remove(&mut self, node: u64) {
        if let (Some(watch), Some(fd)) = (self.by_node.remove(&node), &self.fd) {
            self.nodes.remove(&watch);
            let _ = remove_watch(fd, watch);
        }
    }

    /// All that has happened by now, each once.
    pub fn take(&mut self) -> Vec<Change> {
        let mut changes: Vec<Change> = Vec::new();
        let mut is_many = false;
        let mut gone = Vec::new();
        let Some(fd) = &self.fd else { return changes };
        let mut buffer = [MaybeUninit::uninit(); BUFFER_BYTES];
        let mut reader = Reader::new(fd, &mut buffer);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::INTR) => continue,
                Err(_) => break,
            };
            let flags = event.events();
            is_many |= flags.contains(ReadFlags::QUEUE_OVERFLOW) || changes.len() >= CHANGES_MAX;
            let Some(node) = self.nodes.get(&event.wd()).copied() else { continue };
            if flags.contains(ReadFlags::IGNORED) {
                gone.push(node);
                continue;
            }
            let place = (node, event.file_name().map_or_else(Vec::new, |name| name.to_bytes().to_vec()));
            let inside = ReadFlags::MODIFY | ReadFlags::ATTRIB | ReadFlags::CLOSE_WRITE;
            let change = if flags.intersects(inside) { Change::Inside(place) } else { Change::Name(place) };
            if !is_many && changes.last() != Some(&change) {
                changes.push(change);
            }
        }
        for node in gone {
            if let Some(watch) = self.by_node.remove(&node) {
                self.nodes.remove(&watch);
            }
        }
        if is_many { vec![Change::Many] } else { changes }
    }
}

impl Tree {
    /// Whether word comes of what others change in that directory. To be asked before it is looked at.
    pub fn hears_of(&mut self, node: u64, directory: impl AsFd) -> bool {
        let is_own = || fstat(&directory).is_ok_and(|stat| Some(stat.st_dev) == self.own_device);
        self.watches.has(node) || self.is_told && is_own() && self.watches.add(node, directory.as_fd())
    }

    /// As messages for the guest: of which node there is something new, or in which directory, and of which name. All zeros: of anything.
    pub fn changes(&mut self, but: &[Place]) -> Vec<Vec<u8>> {
        let changes = self.watches.take();
        changes.into_iter().filter_map(|change| self.told(change, but)).collect()
    }

    fn told(&mut self, change: Change, but: &[Place]) -> Option<Vec<u8>> {
        let body =
            |node: u64, directory: u64, name: &[u8]| [node.to_le_bytes().as_slice(), &directory.to_le_bytes(), name].concat();
        match change {
            Change::Name(place) | Change::Inside(place) if but.contains(&place) => None,
            Change::Name((directory, name)) => Some(body(0, directory, &name)),
            Change::Inside((directory, name)) if name.is_empty() => Some(body(directory, 0, b"")),
            Change::Inside((directory, name)) => {
                let fd = self.directory(directory).ok()?;
                let stat = statat(&fd, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW).ok()?;
                // Nothing was told of it otherwise.
                let node = self.nodes.named(crate::tree::identity(&stat))?;
                Some(body(node, 0, b""))
            }
            Change::Many => {
                self.told_for_moments();
                Some(body(0, 0, b""))
            }
        }
    }
}

/// Under which names others hear of what this request does. What is not well formed does nothing.
pub fn touches(tree: &Tree, header: &Header, mut fields: Fields<'_>) -> Vec<(u64, Vec<u8>)> {
    let node = header.node;
    let known = |node: u64| {
        let names = tree.nodes.names(node).unwrap_or_default().iter().cloned();
        names.chain([(node, Vec::new())]).collect::<Vec<_>>()
    };
    let fields = &mut fields;
    let mut named = |skipped: usize| Some((node, fields.take(skipped).and_then(|_| fields.text()).ok()?.to_vec()));
    match header.opcode {
        opcode::SETATTR | opcode::WRITE | opcode::FALLOCATE => known(node),
        opcode::SYMLINK | opcode::UNLINK | opcode::RMDIR => named(0).into_iter().collect(),
        opcode::MKNOD | opcode::CREATE => {
            // One that is there already is opened, and perhaps made empty.
            named(16).into_iter().collect()
        }
        opcode::MKDIR => named(8).into_iter().collect(),
        opcode::LINK => {
            let (linked, name) = (fields.u64().unwrap_or(0), fields.text().unwrap_or_default());
            known(linked).into_iter().chain([(node, name.to_vec())]).collect()
        }
        opcode::RENAME | opcode::RENAME2 => {
            let to = fields.u64().unwrap_or(0);
            let _ = if header.opcode == opcode::RENAME2 { fields.take(8) } else { Ok(&[][..]) };
            let (name, new_name) = (fields.text().unwrap_or_default(), fields.text().unwrap_or_default());
            vec![(node, name.to_vec()), (to, new_name.to_vec())]
        }
        _ => Vec::new(),
    }
}
