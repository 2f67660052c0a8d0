//! `file.list`: the entries of a directory, and of those in it down to a depth.
use super::entry::entry_at;
use super::{Scene, failed};
use crate::agent::Agent;
use crate::fault::{Fault, Outcome};
use crate::jobs::{Cancelled, JobPort, Ticket};
use crate::users::Users;
use crate::wire::fields::Fields;
use crate::wire::value::Value;
use rustix::fs::{Dir, Mode, OFlags, open, openat};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};

const DEPTH_MAX: u64 = 64;
const ENTRIES_PER_EVENT: usize = 256;
/// An event is one frame.
const EVENT_BYTES: usize = 48 * 1024;

impl Agent {
    pub fn file_list(&mut self, ticket: Ticket, p: Fields<'_>, scene: Scene) -> Result<(), Fault> {
        let path = self.path_of(p, "path", &scene)?;
        let depth = p.opt_in("depth", 1, DEPTH_MAX)?.unwrap_or(1);
        self.stream_from_thread(ticket, move |port| list(&scene, &path, depth, port))
    }
}

struct Batch<'a> {
    port: &'a JobPort,
    entries: Vec<Value>,
    bytes: usize,
}

impl Batch<'_> {
    fn add(&mut self, entry: Value) -> Result<(), Cancelled> {
        let bytes = entry.encode().len();
        if self.entries.len() >= ENTRIES_PER_EVENT || self.bytes + bytes > EVENT_BYTES {
            self.send()?;
        }
        self.bytes += bytes;
        self.entries.push(entry);
        Ok(())
    }

    fn send(&mut self) -> Result<(), Cancelled> {
        self.bytes = 0;
        let entries = std::mem::take(&mut self.entries);
        if entries.is_empty() { Ok(()) } else { self.port.event("entries", Value::map([("entries", Value::Array(entries))])) }
    }
}

const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

struct Level {
    fd: OwnedFd,
    entries: Dir,
    path: Vec<u8>,
}

fn list(scene: &Scene, path: &[u8], depth: u64, port: &JobPort) -> Outcome {
    let _acting = scene.act()?;
    let users = &mut Users::default();
    let fd = open(path, FLAGS, Mode::empty()).map_err(failed(path))?;
    let entries = Dir::read_from(&fd).map_err(failed(path))?;
    port.reply(Value::Nil);
    let mut batch = Batch { port, entries: Vec::new(), bytes: 0 };
    let mut levels = vec![Level { fd, entries, path: path.to_vec() }];
    while let Some(level) = levels.last_mut() {
        let Some(entry) = level.entries.next() else {
            levels.pop();
            continue;
        };
        let entry = entry.map_err(failed(&level.path))?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let slash: &[u8] = if level.path.ends_with(b"/") { b"" } else { b"/" };
        let child = [level.path.as_slice(), slash, name].concat();
        match entry_at(level.fd.as_fd(), name, &child, false, users) {
            Ok(value) => {
                let is_directory = value.get("type") == Some(&Value::from("dir"));
                batch.add(value)?;
                if is_directory
                    && (levels.len() as u64) < depth
                    && let Some(next) = descend(levels.last(), name, child)?
                {
                    levels.push(next);
                }
            }
            // Gone between the two looks at it.
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(failed(&child)(errno)),
        }
    }
    batch.send()?;
    Ok(Value::Nil)
}

/// None: a directory that is gone, or that the user may not read, is listed but not entered.
fn descend(level: Option<&Level>, name: &[u8], path: Vec<u8>) -> Result<Option<Level>, Fault> {
    let Some(level) = level else { return Ok(None) };
    match openat(&level.fd, name, FLAGS | OFlags::NOFOLLOW, Mode::empty()) {
        Ok(fd) => {
            let entries = Dir::read_from(&fd).map_err(failed(&path))?;
            Ok(Some(Level { fd, entries, path }))
        }
        Err(Errno::NOENT | Errno::ACCESS | Errno::PERM | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(errno) => Err(failed(&path)(errno)),
    }
}
