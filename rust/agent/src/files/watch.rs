//! `file.watch`: inotify as a stream of changes. New directories are watched as they appear, and what
//! was put into them before the watch stood is told as created.
use super::{Scene, failed};
use crate::agent::Agent;
use crate::fault::{Fault, Outcome};
use crate::jobs::{Cancelled, JobPort, Ticket};
use crate::wire::fields::Fields;
use crate::wire::value::Value;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{FileType, lstat};
use rustix::io::Errno;
use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

const DIRECTORIES_MAX: usize = 65_536;
/// The other half of a rename follows at once, unless it is outside of what is watched.
const OTHER_HALF: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

impl Agent {
    pub fn file_watch(&mut self, ticket: Ticket, p: Fields<'_>, scene: Scene) -> Result<(), Fault> {
        let path = self.path_of(p, "path", &scene)?;
        let recursive = p.bool_or("recursive", false)?;
        self.stream_from_thread(ticket, move |port| watch(&scene, path, recursive, port))
    }
}

/// One event of the kernel's, owned.
struct Raw {
    watch: i32,
    flags: ReadFlags,
    cookie: u32,
    name: Option<Vec<u8>>,
}

struct Watcher<'a> {
    fd: OwnedFd,
    paths: HashMap<i32, Vec<u8>>,
    recursive: bool,
    port: &'a JobPort,
    last_write: Option<Vec<u8>>,
}

fn wanted() -> WatchFlags {
    WatchFlags::CREATE
        | WatchFlags::MODIFY
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::DELETE
        | WatchFlags::MOVED_FROM
        | WatchFlags::MOVED_TO
        | WatchFlags::ATTRIB
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let slash: &[u8] = if directory.ends_with(b"/") { b"" } else { b"/" };
    [directory, slash, name].concat()
}

fn is_real_directory(path: &[u8]) -> bool {
    lstat(path).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

fn watch(scene: &Scene, path: Vec<u8>, recursive: bool, port: &JobPort) -> Outcome {
    let _acting = scene.act()?;
    let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(failed(&path))?;
    let mut watcher = Watcher { fd, paths: HashMap::new(), recursive, port, last_write: None };
    let top = inotify::add_watch(&watcher.fd, path.as_slice(), wanted()).map_err(failed(&path))?;
    watcher.paths.insert(top, path.clone());
    if recursive && is_real_directory(&path) {
        watcher.descend(&path, false)?;
    }
    port.reply(Value::Nil);
    let alarm = port.alarm().map_err(failed(&path))?;
    loop {
        let ready = {
            let mut fds = [PollFd::new(&watcher.fd, PollFlags::IN), PollFd::new(&alarm, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(failed(&path)(errno)),
            }
            fds.iter().any(|fd| fd.revents().contains(PollFlags::IN))
        };
        if port.is_cancelled() {
            return Err(Cancelled.into());
        }
        if ready {
            let events = watcher.read().map_err(failed(&path))?;
            watcher.tell(events)?;
        }
        if !watcher.paths.contains_key(&top) {
            // What was watched is gone.
            return Ok(Value::Nil);
        }
    }
}

impl Watcher<'_> {
    fn read(&self) -> Result<Vec<Raw>, Errno> {
        let mut buffer = [MaybeUninit::<u8>::uninit(); 16 * 1024];
        let mut reader = inotify::Reader::new(&self.fd, &mut buffer);
        let mut events = Vec::new();
        loop {
            match reader.next() {
                Ok(event) => events.push(Raw {
                    watch: event.wd(),
                    flags: event.events(),
                    cookie: event.cookie(),
                    name: event.file_name().map(|name| name.to_bytes().to_vec()),
                }),
                Err(Errno::AGAIN | Errno::INTR) => return Ok(events),
                Err(errno) => return Err(errno),
            }
            // The rest stays in the kernel: what is told now must not pile up here.
            if reader.is_buffer_empty() && events.len() > 256 {
                return Ok(events);
            }
        }
    }

    fn tell(&mut self, events: Vec<Raw>) -> Result<(), Cancelled> {
        let mut events = events.into_iter().peekable();
        while let Some(event) = events.next() {
            if event.flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                self.port.event("overflow", Value::Map(Vec::new()))?;
                continue;
            }
            if event.flags.contains(ReadFlags::IGNORED) {
                self.paths.remove(&event.watch);
                continue;
            }
            let Some(directory) = self.paths.get(&event.watch).cloned() else { continue };
            let path = match &event.name {
                Some(name) => join(&directory, name),
                None => directory,
            };
            if event.flags.contains(ReadFlags::MOVED_FROM) {
                if events.peek().is_none() {
                    events = self.other_half().into_iter().peekable();
                }
                let other = events.next_if(|next| next.flags.contains(ReadFlags::MOVED_TO) && next.cookie == event.cookie);
                let target = other.and_then(|other| Some(join(self.paths.get(&other.watch)?, other.name.as_deref()?)));
                self.moved(&event, &path, target)?;
                continue;
            }
            self.one(&event, path)?;
        }
        Ok(())
    }

    /// What follows a first half that was the last event read.
    fn other_half(&self) -> Vec<Raw> {
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        let _ = poll(&mut fds, Some(&OTHER_HALF));
        self.read().unwrap_or_default()
    }

    fn one(&mut self, event: &Raw, path: Vec<u8>) -> Result<(), Cancelled> {
        let is_directory = event.flags.contains(ReadFlags::ISDIR);
        let kind = if event.flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
            "create"
        } else if event.flags.intersects(ReadFlags::MODIFY | ReadFlags::CLOSE_WRITE) {
            if self.last_write.as_ref() == Some(&path) && event.flags.contains(ReadFlags::MODIFY) {
                return Ok(());
            }
            // The end of writing is told once more: whoever waits for the whole file needs it.
            self.last_write = (!event.flags.contains(ReadFlags::CLOSE_WRITE)).then(|| path.clone());
            return self.change("write", &path, None);
        } else if event.flags.intersects(ReadFlags::DELETE | ReadFlags::DELETE_SELF) {
            // A directory below tells its own end twice: by itself and by its parent.
            if event.name.is_none() && self.paths.len() > 1 && self.is_watched_parent(&path) {
                return Ok(());
            }
            "remove"
        } else if event.flags.contains(ReadFlags::ATTRIB) {
            // The link count of what is being deleted changes too.
            if lstat(path.as_slice()).is_err() {
                return Ok(());
            }
            "chmod"
        } else {
            return Ok(());
        };
        self.last_write = None;
        self.change(kind, &path, None)?;
        if kind == "create" && is_directory && self.recursive {
            self.add(&path);
            self.descend(&path, true)?;
        }
        Ok(())
    }

    fn is_watched_parent(&self, path: &[u8]) -> bool {
        let parent = super::parent_of(path);
        self.paths.values().any(|known| known == parent)
    }

    fn moved(&mut self, event: &Raw, path: &[u8], target: Option<Vec<u8>>) -> Result<(), Cancelled> {
        self.last_write = None;
        let prefix = join(path, b"");
        match target {
            Some(target) => {
                if event.flags.contains(ReadFlags::ISDIR) {
                    for known in self.paths.values_mut() {
                        if known == path {
                            known.clone_from(&target);
                        } else if let Some(rest) = known.strip_prefix(prefix.as_slice()) {
                            *known = join(&target, rest);
                        }
                    }
                }
                self.change("rename", path, Some(&target))
            }
            None => {
                // Out of sight: what is below it must not be told under its old name.
                let gone: Vec<i32> = self
                    .paths
                    .iter()
                    .filter(|(_, known)| known.as_slice() == path || known.starts_with(&prefix))
                    .map(|(watch, _)| *watch)
                    .collect();
                for watch in gone {
                    let _ = inotify::remove_watch(&self.fd, watch);
                    self.paths.remove(&watch);
                }
                self.change("remove", path, None)
            }
        }
    }

    fn change(&self, kind: &'static str, path: &[u8], to: Option<&[u8]>) -> Result<(), Cancelled> {
        let value = Value::map([("kind", kind.into()), ("path", Value::text(path))]).with("to", to.map(Value::text));
        self.port.event("change", value)
    }

    fn add(&mut self, path: &[u8]) {
        if self.paths.len() >= DIRECTORIES_MAX {
            return;
        }
        let flags = wanted() | WatchFlags::ONLYDIR | WatchFlags::DONT_FOLLOW;
        if let Ok(watch) = inotify::add_watch(&self.fd, path, flags) {
            self.paths.insert(watch, path.to_vec());
        }
    }

    /// Watches all directories below `top`. Told as created: what may have come before the watch.
    fn descend(&mut self, top: &[u8], told: bool) -> Result<(), Cancelled> {
        let mut waiting = vec![top.to_vec()];
        while let Some(directory) = waiting.pop() {
            let Ok(entries) = std::fs::read_dir(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(&directory)) else {
                continue;
            };
            for entry in entries.flatten() {
                let path = join(&directory, std::os::unix::ffi::OsStrExt::as_bytes(entry.file_name().as_os_str()));
                if told {
                    self.change("create", &path, None)?;
                }
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) && self.paths.len() < DIRECTORIES_MAX {
                    self.add(&path);
                    waiting.push(path);
                }
            }
            if self.port.is_cancelled() {
                return Err(Cancelled);
            }
        }
        Ok(())
    }
}
