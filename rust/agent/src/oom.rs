//! Which processes the kernel killed for want of memory: in a machine from the kernel's log, in a
//! container from its cgroup's counter.
use crate::agent::{Agent, Place};
use crate::wire::value::Value;
use rustix::fs::{Mode, OFlags, SeekFrom, open, seek};
use std::collections::VecDeque;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// A shell ends with 137 this soon after its child was killed.
const RECENT: Duration = Duration::from_secs(2);
const RECENT_MAX: usize = 16;
const COUNTERS: [&str; 2] = ["/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"];

#[derive(Debug, Default)]
pub struct Oom {
    kernel_log: Option<OwnedFd>,
    counter: Option<&'static str>,
    counted: u64,
    pub kills: u64,
    /// Kills of processes that are not ours by pid: a descendant of one of ours.
    unowned: VecDeque<Instant>,
}

impl Oom {
    pub fn open(place: Place) -> Oom {
        let mut oom = Oom::default();
        if place == Place::Machine {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            oom.kernel_log = open("/dev/kmsg", flags, Mode::empty()).ok();
            if let Some(log) = &oom.kernel_log {
                let _ = seek(log, SeekFrom::End(0));
            }
        } else {
            oom.counter = COUNTERS.into_iter().find(|path| read_counter(path).is_some());
            oom.counted = oom.counter.and_then(read_counter).unwrap_or(0);
        }
        oom
    }

    /// All kills until now.
    pub fn count(&self) -> u64 {
        self.counter.and_then(read_counter).unwrap_or(0).max(self.kills)
    }

    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.kernel_log.as_ref().map(|fd| fd.as_fd())
    }

    /// Whether a process that was not started here was killed a moment ago.
    pub fn recent_unowned(&mut self, now: Instant) -> bool {
        self.unowned.retain(|at| now.duration_since(*at) < RECENT);
        !self.unowned.is_empty()
    }

    fn note_unowned(&mut self) {
        if self.unowned.len() >= RECENT_MAX {
            self.unowned.pop_front();
        }
        self.unowned.push_back(Instant::now());
    }
}

fn read_counter(path: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// The agent is the last to be killed; children get back what was before. Returns what to write for
/// them. PID 1 of a machine is never chosen by the kernel, so nothing need be done there.
pub fn protect_self(place: Place) -> Option<CString> {
    if place == Place::Machine {
        return None;
    }
    let path = "/proc/self/oom_score_adj";
    let before: i32 = std::fs::read_to_string(path).ok()?.trim().parse().ok()?;
    let wanted = if std::fs::write(path, "-900").is_ok() { before } else { (before + 100).min(1000) };
    CString::new(wanted.to_string()).ok()
}

/// `Out of memory: Killed process 123 (name) …`, or the same of a cgroup.
pub fn parse_kill(record: &str) -> Option<(i32, String)> {
    let (_, rest) = record.split_once("illed process ")?;
    let (pid, rest) = rest.split_once(" (")?;
    let (name, _) = rest.split_once(')')?;
    Some((pid.trim_end_matches(',').parse().ok()?, name.chars().take(64).collect()))
}

impl Agent {
    pub fn read_oom_kills(&mut self) {
        let mut victims = Vec::new();
        if let Some(log) = &self.oom.kernel_log {
            let mut record = [0; 1024];
            // One record a read. A lost record (EPIPE) is skipped, the end is EAGAIN.
            for _ in 0..4096 {
                match rustix::io::read(log, &mut record) {
                    Ok(length) => {
                        let text = String::from_utf8_lossy(record.get(..length).unwrap_or_default()).into_owned();
                        victims.extend(parse_kill(&text));
                    }
                    Err(rustix::io::Errno::PIPE | rustix::io::Errno::INTR) => {}
                    Err(_) => break,
                }
            }
        } else if let Some(count) = self.oom.counter.and_then(read_counter) {
            for _ in self.oom.counted..count.min(self.oom.counted + 64) {
                victims.push((0, String::new()));
            }
            self.oom.counted = count;
        }
        for (pid, name) in victims {
            self.oom.kills += 1;
            let key = self.processes.key_of_pid(pid).or_else(|| self.session_of(pid));
            match key.and_then(|key| self.processes.get_mut(key)) {
                Some(process) if process.pid == Some(pid) => process.oom_killed = true,
                _ => self.oom.note_unowned(),
            }
            let id = key.and_then(|key| self.processes.get(key)).map(|process| process.id.as_str().into());
            let event =
                Value::map([("victimPid", pid.into()), ("victimName", name.into()), ("totalKills", self.oom.kills.into())]);
            self.tell("oom", &event.with("processId", id));
        }
    }

    /// The process of ours in whose session `pid` is, if that can still be seen.
    fn session_of(&self, pid: i32) -> Option<u64> {
        let session = rustix::process::getsid(Some(rustix::process::Pid::from_raw(pid)?)).ok()?;
        self.processes.key_of_pid(session.as_raw_nonzero().get())
    }
}

#[cfg(test)]
mod tests {
    use super::parse_kill;

    #[test]
    fn the_victim_is_read_from_the_kernels_line() {
        let line = "3,901,1244,-;Out of memory: Killed process 512 (python3) total-vm:1kB, anon-rss:2kB, UID:0";
        assert_eq!(parse_kill(line), Some((512, "python3".to_owned())));
        let line = "3,9,1,-;Memory cgroup out of memory: Killed process 7 (a b) total-vm:1kB";
        assert_eq!(parse_kill(line), Some((7, "a b".to_owned())));
        for line in ["", "oom-kill:constraint=NONE,task=python3,pid=512", "Killed process x (y)", "Killed process 1"] {
            assert_eq!(parse_kill(line), None);
        }
    }
}
