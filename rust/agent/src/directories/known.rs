//! What is known of a directory of the host without asking there:
//!
//! - Which names are not there: for a moment after a directory was made by this machine, or its names were asked for, every
//!   name in it is known (what is made here in the meantime is added), so that looking for another needs no answer.
//! - That a write will be done: it is sent, and its program goes on. Never more than 1 MiB is under way, and nothing where the
//!   host has said that it may have no room. If one fails all the same, the next write to that file fails, or its fsync.
//!
//! - What a directory is like after a change that was made in it from here: that comes with the answer, as the kernel asks for it
//!   before the next one.
//!
//! Messages go and come in order and are done one after another, so whatever is asked later sees what was written before.
use super::port::PREFIX;
use rustix::io::Errno;
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

/// The longest for which the guest's kernel believes what it was told (`VALID_MS` of `hutch-files`).
pub const VALID: Duration = Duration::from_secs(5);
/// Until the names of a directory are asked for again that has too many.
const RESTS: Duration = Duration::from_secs(1);
const HEADER: usize = 40;
const REPLY_HEADER: usize = 16;
const DIRECTORIES_MAX: usize = 512;
const NAMES_MAX: usize = 64 * 1024;
const BEHIND_BYTES_MAX: usize = 1 << 20;
/// After a write has failed that nobody waited for.
const CAREFUL: Duration = Duration::from_secs(10);
const FAILED_MAX: usize = 1024;
const SEEN_MAX: usize = 512;

const LOOKUP: u32 = 1;
const GETATTR: u32 = 3;
const SETATTR: u32 = 4;
const SYMLINK: u32 = 6;
const MKNOD: u32 = 8;
const MKDIR: u32 = 9;
const UNLINK: u32 = 10;
const RMDIR: u32 = 11;
const RENAME: u32 = 12;
const LINK: u32 = 13;
const READ: u32 = 15;
const WRITE: u32 = 16;
const FSYNC: u32 = 20;
const CREATE: u32 = 35;
const FALLOCATE: u32 = 43;
const RENAME2: u32 = 45;
/// Our own, to `hutch-files` alone.
const NAMES: u32 = 0x4855_0001;
const INSIDE: u32 = 0x4855_0002;
const TELL: u32 = 0x4855_0003;
/// Set in what no kernel has asked.
const OURS: u64 = 1 << 63;
/// What a directory is like now, by itself, in front of the answer to the request that changed it.
const SEEN: u64 = OURS | 1 << 62;
/// What others have changed, and what is in a file that will be read next.
const CHANGED: u64 = SEEN | 1;
const AHEAD: u64 = SEEN | 2;
/// Set in what asks to be told of changes.
const TELLS: u64 = OURS | 1 << 61;
/// Where attributes say for how long they hold, in seconds and nanoseconds.
const HOLDS: std::ops::Range<usize> = REPLY_HEADER..REPLY_HEADER + 12;
/// The same of an entry, for attributes.
const ENTRY_HOLDS: [usize; 2] = [24, 36];
/// Files that are read at a time, and what is sent after them.
const READS_MAX: usize = 32;

/// What becomes of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// The kernel is told this, and nobody else is asked.
    Answer(Vec<u8>),
    /// It is sent, `also` behind it, and the kernel is told `answer` already.
    Send { also: Option<Vec<u8>>, answer: Option<Vec<u8>> },
}

/// What becomes of a message of the host.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// The kernel waits for it.
    Answer,
    Nothing,
    Changed(Vec<u8>),
    Content {
        changes: u64,
        body: Vec<u8>,
    },
    Told {
        number: u64,
        left_ms: u32,
    },
}

#[derive(Debug)]
enum Asked {
    Lookup {
        parent: u64,
    },
    /// By ourselves, all names in it.
    Names {
        directory: u64,
        at: Instant,
    },
    MakeDirectory {
        at: Instant,
    },
    /// In a directory.
    Change {
        at: Instant,
    },
    Write,
    /// Nobody waits for it.
    Behind {
        node: u64,
        bytes: usize,
    },
    Synchronize {
        node: u64,
    },
}

#[derive(Debug, Default)]
struct Names {
    /// All that are there, and perhaps some that are not any more.
    names: HashSet<Vec<u8>>,
    until: Option<Instant>,
    /// The request for them that is under way.
    asked: Option<u64>,
    /// Not asked for before.
    rests: Option<Instant>,
}

#[derive(Debug, Default)]
pub struct Known {
    asked: HashMap<u64, Asked>,
    directories: HashMap<u64, Names>,
    /// Attributes of directories as an answer has them, and since when they hold.
    seen: HashMap<u64, (Instant, Vec<u8>)>,
    /// Of all that this machine has changed: what was asked before the last one says nothing of what is now.
    changes: u64,
    /// The last reads, and how many changes there had been by then.
    reads: VecDeque<(u64, u64)>,
    /// Of names.
    count: usize,
    /// Our own requests so far.
    ours: u64,
    behind_bytes: usize,
    /// The host has said so with its last answer to a write.
    roomy: bool,
    careful_until: Option<Instant>,
    failed: HashMap<u64, i32>,
}

/// The fields of a request that matter here.
struct Request<'a> {
    opcode: u32,
    unique: u64,
    node: u64,
    body: &'a [u8],
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}

/// No longer than anything is believed.
fn held_at(bytes: &[u8], seconds: usize, nanoseconds: usize) -> Option<Duration> {
    let held =
        Duration::from_secs(u64_at(bytes, seconds)?).saturating_add(Duration::from_nanos(u32_at(bytes, nanoseconds)?.into()));
    Some(held.min(VALID))
}

fn text_at(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let rest = bytes.get(at..)?;
    rest.get(..rest.iter().position(|byte| *byte == 0)?)
}

impl<'a> Request<'a> {
    fn parse(message: &'a [u8]) -> Option<Request<'a>> {
        let (opcode, unique, node) = (u32_at(message, 4)?, u64_at(message, 8)?, u64_at(message, 16)?);
        Some(Request { opcode, unique, node, body: message.get(HEADER..)? })
    }

    /// The directory in which this makes a name, and the name.
    fn makes(&self) -> Option<(u64, &'a [u8])> {
        let Request { opcode, node, body, .. } = *self;
        match opcode {
            SYMLINK => Some((node, text_at(body, 0)?)),
            MKNOD | CREATE => Some((node, text_at(body, 16)?)),
            MKDIR | LINK => Some((node, text_at(body, 8)?)),
            RENAME | RENAME2 => {
                let from = if opcode == RENAME { 8 } else { 16 };
                let to = from + text_at(body, from)?.len() + 1;
                Some((u64_at(body, 0)?, text_at(body, to)?))
            }
            _ => None,
        }
    }
}

impl Known {
    pub fn asked(&mut self, message: &[u8], now: Instant) -> Next {
        let send = Next::Send { also: None, answer: None };
        let Some(request) = Request::parse(message) else { return send };
        if let Some((directory, name)) = request.makes() {
            self.add(directory, name);
            self.seen.remove(&directory);
        }
        match request.opcode {
            READ => {
                if self.reads.len() >= READS_MAX {
                    self.reads.pop_front();
                }
                self.reads.push_back((request.unique, self.changes));
            }
            SETATTR | MKNOD | UNLINK | RMDIR | RENAME | LINK | WRITE | CREATE | FALLOCATE | RENAME2 => self.changes += 1,
            _ => {}
        }
        match request.opcode {
            // What nobody answers there: open, flush, access, attributes by name, locks, ioctl, and what is newer.
            7 | 14 | 18 | 19 | 21..=25 | 31..=34 | 36 | 37 | 39 | 40 | 47.. => {
                Next::Answer(reply(request.unique, -Errno::NOSYS.raw_os_error(), &[]))
            }
            GETATTR => match self.attributes(&request, now) {
                Some(answer) => Next::Answer(answer),
                None => send,
            },
            SETATTR | RENAME | RENAME2 => {
                self.seen.remove(&request.node);
                send
            }
            SYMLINK | MKNOD | UNLINK | RMDIR | LINK | CREATE => {
                self.seen.remove(&request.node);
                self.asked.insert(request.unique, Asked::Change { at: now });
                send
            }
            LOOKUP => self.look_up(&request, now),
            MKDIR => {
                self.asked.insert(request.unique, Asked::MakeDirectory { at: now });
                send
            }
            WRITE => self.write(&request, now),
            FSYNC => {
                self.asked.insert(request.unique, Asked::Synchronize { node: request.node });
                send
            }
            _ => send,
        }
    }

    fn add(&mut self, directory: u64, name: &[u8]) {
        if let Some(known) = self.directories.get_mut(&directory)
            && (known.until.is_some() || known.asked.is_some())
            && known.names.insert(name.to_vec())
        {
            self.count += 1;
        }
    }

    fn attributes(&mut self, request: &Request<'_>, now: Instant) -> Option<Vec<u8>> {
        let (at, attributes) = self.seen.get(&request.node)?;
        let mut answer = reply(request.unique, 0, attributes);
        let held = held_at(&answer, HOLDS.start, HOLDS.start + 8)?;
        let left = held.checked_sub(now.saturating_duration_since(*at)).filter(|left| !left.is_zero())?;
        let holds = [left.as_secs().to_le_bytes().as_slice(), &left.subsec_nanos().to_le_bytes()].concat();
        answer.get_mut(HOLDS)?.copy_from_slice(&holds);
        Some(answer)
    }

    fn look_up(&mut self, request: &Request<'_>, now: Instant) -> Next {
        let parent = request.node;
        let mut also = None;
        if let Some(known) = self.directories.get_mut(&parent) {
            if let Some(left) = known.until.and_then(|until| until.checked_duration_since(now)).filter(|left| !left.is_zero()) {
                if text_at(request.body, 0).is_some_and(|name| !known.names.contains(name)) {
                    return Next::Answer(not_there(request.unique, left));
                }
            } else if known.asked.is_none() && known.rests.is_none_or(|rests| now >= rests) {
                self.ours += 1;
                let unique = OURS | self.ours;
                self.count -= known.names.len();
                *known = Names { asked: Some(unique), ..Names::default() };
                self.asked.insert(unique, Asked::Names { directory: parent, at: now });
                also = Some(message(NAMES, unique, parent, &[]));
            }
        }
        self.asked.insert(request.unique, Asked::Lookup { parent });
        Next::Send { also, answer: None }
    }

    fn write(&mut self, request: &Request<'_>, now: Instant) -> Next {
        let Request { unique, node, body, .. } = *request;
        if let Some(errno) = self.failed.remove(&node) {
            return Next::Answer(reply(unique, errno, &[]));
        }
        let (size, how, flags) = (u32_at(body, 16), u32_at(body, 20), u32_at(body, 32));
        let (Some(size), Some(0), Some(flags)) = (size, how, flags) else { return self.waited_for(unique) };
        // O_DIRECT, O_DSYNC, O_SYNC and O_APPEND, which only the host knows the place of.
        let waits = flags & (0o40_000 | 0o10_000 | 0o4_000_000 | 0o2_000) != 0;
        let bytes = size as usize;
        let careful = self.careful_until.is_some_and(|until| now < until);
        if waits || careful || !self.roomy || self.behind_bytes + bytes > BEHIND_BYTES_MAX {
            return self.waited_for(unique);
        }
        self.behind_bytes += bytes;
        self.asked.insert(unique, Asked::Behind { node, bytes });
        let written = [size.to_le_bytes(), [0; 4]].concat();
        Next::Send { also: None, answer: Some(reply(unique, 0, &written)) }
    }

    fn waited_for(&mut self, unique: u64) -> Next {
        self.asked.insert(unique, Asked::Write);
        Next::Send { also: None, answer: None }
    }

    pub fn changes(&self) -> u64 {
        self.changes
    }

    pub fn answered(&mut self, message: &mut [u8], now: Instant) -> Said {
        let (Some(errno), Some(unique)) = (u32_at(message, 4), u64_at(message, 8)) else { return Said::Nothing };
        let errno = errno as i32;
        let body = message.get(REPLY_HEADER..).unwrap_or_default();
        match unique {
            SEEN => {
                self.see(body);
                return Said::Nothing;
            }
            CHANGED => {
                self.changed(body);
                return Said::Changed(body.to_vec());
            }
            AHEAD => {
                let found = u64_at(body, 0).and_then(|read| self.reads.iter().find(|(unique, _)| *unique == read));
                return found.map_or(Said::Nothing, |(_, changes)| Said::Content { changes: *changes, body: body.to_vec() });
            }
            unique if unique & TELLS == TELLS => {
                return Said::Told { number: unique & !TELLS, left_ms: u32_at(body, 0).unwrap_or(0) };
            }
            _ => {}
        }
        match self.asked.remove(&unique) {
            Some(Asked::Lookup { parent }) => {
                if errno == 0 && u64_at(body, 0) == Some(0) {
                    self.open(parent);
                }
            }
            Some(Asked::MakeDirectory { at }) => {
                if let Some(node) = u64_at(body, 0).filter(|_| errno == 0) {
                    self.open(node);
                    if let Some(made) = self.directories.get_mut(&node) {
                        self.count -= made.names.len();
                        let holds = held_at(body, ENTRY_HOLDS[0], ENTRY_HOLDS[1]).unwrap_or_default();
                        *made = Names { until: Some(at + holds), ..Names::default() };
                    }
                }
            }
            Some(Asked::Write) => self.roomy = errno == 0 && u32_at(body, 4) == Some(1),
            Some(Asked::Behind { node, bytes }) => {
                self.behind_bytes -= bytes;
                let whole = u32_at(body, 0).is_some_and(|done| done as usize == bytes);
                self.roomy = errno == 0 && whole && u32_at(body, 4) == Some(1);
                if errno != 0 || !whole {
                    let errno = if errno == 0 { -Errno::NOSPC.raw_os_error() } else { errno };
                    self.careful_until = Some(now + CAREFUL);
                    if self.failed.len() < FAILED_MAX {
                        self.failed.insert(node, errno);
                    }
                    crate::console::say("a write to a directory of the host has failed after its program went on");
                }
                return Said::Nothing;
            }
            Some(Asked::Synchronize { node }) => {
                if let Some(failed) = self.failed.remove(&node).filter(|_| errno == 0)
                    && let Some(field) = message.get_mut(4..8)
                {
                    field.copy_from_slice(&failed.to_le_bytes());
                }
            }
            Some(Asked::Names { directory, at }) => self.named(unique, directory, at, errno, body, now),
            Some(Asked::Change { .. }) | None => {}
        }
        if unique & OURS == 0 { Said::Answer } else { Said::Nothing }
    }

    /// By others.
    fn changed(&mut self, body: &[u8]) {
        let (Some(node), Some(directory), Some(name)) = (u64_at(body, 0), u64_at(body, 8), body.get(16..)) else { return };
        if node == 0 && directory == 0 {
            self.seen.clear();
            self.directories.clear();
            self.count = 0;
            return;
        }
        self.seen.remove(&node);
        self.seen.remove(&directory);
        self.add(directory, name);
    }

    fn see(&mut self, body: &[u8]) {
        let (Some(request), Some(node), Some(attributes)) = (u64_at(body, 0), u64_at(body, 8), body.get(16..)) else { return };
        let Some(Asked::Change { at } | Asked::MakeDirectory { at }) = self.asked.get(&request) else { return };
        if self.seen.len() >= SEEN_MAX {
            self.seen.clear();
        }
        self.seen.insert(node, (*at, attributes.to_vec()));
    }

    /// From now on it is worth to know its names.
    fn open(&mut self, directory: u64) {
        if self.directories.len() >= DIRECTORIES_MAX || self.count >= NAMES_MAX {
            // What is under way comes back to nothing, and is asked for again.
            self.directories.clear();
            self.count = 0;
        }
        self.directories.entry(directory).or_default();
    }

    fn named(&mut self, unique: u64, directory: u64, at: Instant, errno: i32, mut names: &[u8], now: Instant) {
        // It may have been forgotten since.
        let Some(known) = self.directories.get_mut(&directory).filter(|known| known.asked == Some(unique)) else { return };
        known.asked = None;
        if errno != 0 {
            self.count -= known.names.len();
            *known = Names { rests: Some(now + RESTS), ..Names::default() };
            return;
        }
        let Some((valid_ms, rest)) = names.split_first_chunk::<4>() else { return };
        let valid = Duration::from_millis(u32::from_le_bytes(*valid_ms).into()).min(VALID);
        names = rest;
        while let Some((length, rest)) = names.split_first_chunk::<2>() {
            let Some((name, rest)) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length))) else { break };
            self.count += usize::from(known.names.insert(name.to_vec()));
            names = rest;
        }
        known.until = Some(at + valid);
    }
}

/// Asks what others have changed by now.
pub fn tell(number: u64) -> Vec<u8> {
    message(TELL, TELLS | number, 0, &[])
}

/// What opens a connection: who the owner on the host is inside, and that it is heard here what others change.
pub fn inside(index: usize, (uid, gid): (u32, u32)) -> Vec<u8> {
    let mut opening = message(INSIDE, OURS, 0, &[uid, gid, 1].map(u32::to_le_bytes).concat());
    super::port::address(&mut opening, index);
    opening
}

/// Behind room for its prefix.
fn message(opcode: u32, unique: u64, node: u64, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let fields = [length.to_le_bytes(), opcode.to_le_bytes()].concat();
    [&[0; PREFIX], fields.as_slice(), &unique.to_le_bytes(), &node.to_le_bytes(), &[0; 16], body].concat()
}

fn reply(unique: u64, errno: i32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(REPLY_HEADER + body.len()).unwrap_or(u32::MAX);
    [length.to_le_bytes().as_slice(), &errno.to_le_bytes(), &unique.to_le_bytes(), body].concat()
}

/// An entry without a node.
fn not_there(unique: u64, valid: Duration) -> Vec<u8> {
    let mut entry = [0; 128];
    if let Some(field) = entry.get_mut(16..24) {
        field.copy_from_slice(&valid.as_secs().to_le_bytes());
    }
    if let Some(field) = entry.get_mut(32..36) {
        field.copy_from_slice(&valid.subsec_nanos().to_le_bytes());
    }
    reply(unique, 0, &entry)
}
