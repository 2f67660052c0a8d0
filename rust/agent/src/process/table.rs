//! What is known of each process. `pid` is only signalled while `status` is None: the kernel keeps a
//! pid until we have waited for it.
use super::log::Log;
use super::ring::Ring;
use crate::wire::value::Value;
use rustix::process::WaitStatus;
use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::time::Instant;

pub const ENDED_MAX: usize = 256;
/// The outputs of all ended processes may hold so much memory; the oldest lose theirs first.
pub const ENDED_OUTPUT_BYTES_MAX: usize = 8 << 20;
pub const MAIN: &str = "main";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenUnread {
    Block,
    Drop,
}

/// Why the process was killed by us, if it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    Own,
    Lifetime,
}

/// stdout or stderr; of a terminal there is stdout only.
#[derive(Debug, Default)]
pub struct Channel {
    pub fd: Option<OwnedFd>,
    pub ring: Ring,
    /// The descriptor may have more: no event will come for it.
    pub readable: bool,
    /// Nothing more is put into the ring. What others still write (`fd` is kept) is dropped.
    pub closed: bool,
    /// The pipe was made larger, as the program writes much.
    pub enlarged: bool,
}

/// A stream that follows the output.
#[derive(Debug)]
pub struct Subscriber {
    pub stream: u32,
    /// Where it began, per channel.
    pub first: [u64; 2],
    /// The next byte to send, per channel.
    pub position: [u64; 2],
    /// Bytes of both channels that were sent, and of those the ones that the host has granted again.
    pub sent: u64,
    pub granted: u64,
    pub ended: [bool; 2],
    /// The connection is lost: it keeps its place until then, for whoever resumes.
    pub lost_until: Option<Instant>,
}

impl Subscriber {
    pub fn new(stream: u32, position: [u64; 2], ended: [bool; 2]) -> Subscriber {
        Subscriber { stream, first: position, position, sent: 0, granted: 0, ended, lost_until: None }
    }

    /// The first byte that the reader has perhaps not taken.
    pub fn taken(&self, channel: usize) -> u64 {
        let (Some(first), Some(position)) = (self.first.get(channel), self.position.get(channel)) else { return 0 };
        position.saturating_sub(self.sent.saturating_sub(self.granted)).max(*first)
    }

    /// A reader that goes on at `from` is the one that was lost here.
    pub fn is_resumed_by(&self, from: [Option<u64>; 2]) -> bool {
        self.lost_until.is_some()
            && from
                .iter()
                .zip(self.position)
                .enumerate()
                .all(|(channel, (from, position))| from.is_some_and(|from| (self.taken(channel)..=position).contains(&from)))
    }
}

/// The one stream whose input is taken.
#[derive(Debug)]
pub struct InputStream {
    pub stream: u32,
    /// Received, not yet written: at most what the stream had credit for.
    pub buffer: VecDeque<u8>,
    pub ended: bool,
}

#[derive(Debug, Clone)]
pub struct Exit {
    pub code: Option<i32>,
    pub signal: Option<String>,
    pub core_dumped: bool,
    pub oom_killed: bool,
    pub ended_at_ms: u64,
    pub bytes: [u64; 2],
    pub reason: &'static str,
}

impl Exit {
    pub fn to_value(&self) -> Value {
        let [stdout, stderr] = self.bytes;
        Value::map([
            ("code", self.code.map_or(Value::Nil, Value::from)),
            ("signal", self.signal.as_deref().map_or(Value::Nil, Value::from)),
            ("coreDumped", self.core_dumped.into()),
            ("oomKilled", self.oom_killed.into()),
            ("endedAtMs", self.ended_at_ms.into()),
            ("stdoutBytes", stdout.into()),
            ("stderrBytes", stderr.into()),
            ("reason", self.reason.into()),
        ])
    }
}

pub struct Process {
    pub id: String,
    pub argv: Vec<Vec<u8>>,
    pub tag: Option<String>,
    /// None while it is being started.
    pub pid: Option<i32>,
    pub started_at_ms: u64,
    pub terminal: bool,
    pub when_unread: WhenUnread,
    pub channels: [Channel; 2],
    pub subscribers: Vec<Subscriber>,
    /// Streams of `process.start` that wait for it to run.
    pub starting: Vec<Starter>,
    pub waiters: Vec<u32>,
    pub stdin: Option<OwnedFd>,
    /// The descriptor is known to epoll.
    pub stdin_watched: bool,
    /// Bytes that were written to the program, or dropped because it reads no more.
    pub input_offset: u64,
    pub input: Option<InputStream>,
    pub lifetime_ms: Option<u64>,
    pub cause: Cause,
    pub oom_killed: bool,
    /// What the kernel's wait said, and when.
    pub status: Option<(WaitStatus, Instant)>,
    /// Last time that output came.
    pub last_output: Instant,
    pub ended_at_ms: u64,
    /// Set when the process has ended *and* its output is complete.
    pub exit: Option<Exit>,
    pub exited_at: Option<Instant>,
    pub log: Option<Log>,
}

/// Who asked for a process that is not running yet.
#[derive(Debug, Clone, Copy)]
pub struct Starter {
    pub stream: u32,
    pub subscribe: bool,
    pub input: bool,
    pub existing: bool,
}

impl Process {
    pub fn is_running(&self) -> bool {
        self.status.is_none()
    }

    /// The oldest byte that a subscriber has yet to take; None with no subscriber.
    pub fn slowest(&self, channel: usize) -> Option<u64> {
        if self.pid.is_none() {
            // It runs already, perhaps, but those who wait for its start are not subscribed yet.
            return Some(0);
        }
        self.subscribers.iter().map(|subscriber| subscriber.taken(channel)).min()
    }

    pub fn live_streams(&self) -> Vec<u32> {
        self.subscribers.iter().filter(|s| s.lost_until.is_none()).map(|s| s.stream).collect()
    }
}

#[derive(Default)]
pub struct Processes {
    table: HashMap<u64, Process>,
    ids: HashMap<String, u64>,
    pids: HashMap<i32, u64>,
    ended: VecDeque<u64>,
    /// Output that is held open by what forgotten processes left behind: read, so that nobody is
    /// killed by SIGPIPE, and dropped.
    drains: HashMap<(u64, usize), OwnedFd>,
    last_key: u64,
}

const DRAINS_MAX: usize = 1_024;

impl Processes {
    pub fn get(&self, key: u64) -> Option<&Process> {
        self.table.get(&key)
    }

    pub fn get_mut(&mut self, key: u64) -> Option<&mut Process> {
        self.table.get_mut(&key)
    }

    pub fn key_of(&self, id: &str) -> Option<u64> {
        self.ids.get(id).copied()
    }

    pub fn key_of_pid(&self, pid: i32) -> Option<u64> {
        self.pids.get(&pid).copied()
    }

    pub fn all(&self) -> impl Iterator<Item = (u64, &Process)> {
        self.table.iter().map(|(key, process)| (*key, process))
    }

    pub fn keys(&self) -> Vec<u64> {
        self.table.keys().copied().collect()
    }

    pub fn next_key(&mut self) -> u64 {
        self.last_key += 1;
        self.last_key
    }

    pub fn insert(&mut self, key: u64, process: Process) {
        self.ids.insert(process.id.clone(), key);
        self.table.insert(key, process);
    }

    pub fn started(&mut self, key: u64, pid: i32) {
        self.pids.insert(pid, key);
        if let Some(process) = self.table.get_mut(&key) {
            process.pid = Some(pid);
        }
    }

    pub fn waited(&mut self, pid: i32) {
        self.pids.remove(&pid);
    }

    pub fn remove(&mut self, key: u64) -> Option<Process> {
        let process = self.table.remove(&key)?;
        if self.ids.get(&process.id) == Some(&key) {
            self.ids.remove(&process.id);
        }
        Some(process)
    }

    /// Notes the end of a process and forgets the oldest ended ones beyond the bounds.
    pub fn ended(&mut self, key: u64) {
        self.ended.push_back(key);
        while self.ended.len() > ENDED_MAX {
            self.forget_oldest();
        }
        let mut memory = 0;
        for key in self.ended.iter().rev() {
            let Some(process) = self.table.get_mut(key) else { continue };
            memory += process.channels.iter().map(|channel| channel.ring.memory()).sum::<usize>();
            if memory > ENDED_OUTPUT_BYTES_MAX && process.subscribers.is_empty() {
                process.channels.iter_mut().for_each(|channel| channel.ring.forget());
            }
        }
    }

    /// Forgets those that ended before `limit`; says when the next one is due.
    pub fn expire(&mut self, limit: Instant) -> Option<Instant> {
        while let Some(key) = self.ended.front() {
            match self.table.get(key).and_then(|process| process.exited_at) {
                Some(at) if at > limit => return Some(at),
                _ => self.forget_oldest(),
            }
        }
        None
    }

    fn forget_oldest(&mut self) {
        let Some(key) = self.ended.pop_front() else { return };
        let is_main = self.table.get(&key).is_some_and(|process| process.id == MAIN);
        let Some(process) = (if is_main { None } else { self.remove(key) }) else { return };
        for (index, channel) in process.channels.into_iter().enumerate() {
            if let Some(fd) = channel.fd.filter(|_| self.drains.len() < DRAINS_MAX) {
                self.drains.insert((key, index), fd);
            }
        }
    }

    /// Reads what the left-behind of a forgotten process writes.
    pub fn drain(&mut self, key: u64, channel: usize) {
        let Some(fd) = self.drains.get(&(key, channel)) else { return };
        let mut scratch = [0; 4096];
        // Bounded: a flood gets its next turn with the next event, which its next write brings.
        for _ in 0..64 {
            match rustix::io::read(fd, &mut scratch) {
                Ok(count) if count > 0 => {}
                Err(errno) if super::output::is_transient(errno) => return,
                Ok(_) | Err(_) => {
                    self.drains.remove(&(key, channel));
                    return;
                }
            }
        }
    }
}
