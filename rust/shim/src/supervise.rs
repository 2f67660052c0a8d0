//! The loop: copies the log, serves the socket, passes on SIGTERM, reaps; and, when the program has
//! ended, records that before anything else and then sees to it that nothing of it is left.
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::clients::{Clients, Request};
use crate::descendants;
use crate::log::Log;
use crate::record::{self, Json, RunDir};
use crate::rules;
use crate::start::{Birth, DESCENDANTS_GONE};
use crate::sys::{self, Reaped};

/// After accepting failed for want of descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);
/// Who removes a directory removes what is in it first, and the directory itself right after that.
const REMOVAL_LOOKS: u32 = 20;
const REMOVAL_LOOK_EVERY: Duration = Duration::from_millis(250);
/// Between the ways of ending a program whose run directory is gone.
const ORPHAN_GRACE: Duration = Duration::from_secs(5);
/// A pipe holds far less than this many turns copy.
const LAST_LOG_TURNS: usize = 8;

pub struct Programs {
    pub signals: File,
    pub log: Log,
    /// The guest's console.
    pub console: Option<Log>,
    pub clients: Clients,
    /// The pid of the program that the shim is for; ours to signal until it is reaped.
    pub main: i32,
    /// In the order of the options.
    pub companions: Vec<i32>,
    pub cgroups: Vec<PathBuf>,
    pub oom_kills: u64,
}

pub struct Supervised {
    pub dir: RunDir,
    pub birth: Birth,
    pub programs: Programs,
}

impl Supervised {
    pub fn until_the_end(self, greeting: &str, told: bool) {
        let Self { dir, birth, programs } = self;
        let Programs { signals, mut log, mut console, mut clients, main, companions, cgroups, oom_kills } = programs;
        let mut asked = None;
        let mut ask = |signal: i32| {
            asked = Some(signal);
            // Not reaped yet, for then this loop is over: the pid is still its own.
            sys::kill(main, signal).map_err(|error| error.to_string())
        };
        if !told {
            drop(ask(libc::SIGKILL));
        }
        dir.hear_removals();
        let mut orphan = Orphan::Not;
        let end = loop {
            orphan = orphan.next(&dir, &mut log, &mut ask);
            let mut fds = vec![sys::readable(signals.as_raw_fd())];
            let sources = [log.source(), console.as_ref().and_then(Log::source)];
            fds.extend(sources.iter().flatten().map(|source| sys::readable(source.as_raw_fd())));
            fds.extend(clients.fds().map(sys::readable));
            sys::poll(&mut fds, [clients.is_full().then_some(ACCEPT_AGAIN), orphan.wait()].into_iter().flatten().min());
            let ready: Vec<RawFd> = fds.iter().filter(|fd| fd.revents != 0).map(|fd| fd.fd).collect();

            let mut heard_child = false;
            while let Some(signal) = sys::next_signal(&signals) {
                match signal {
                    libc::SIGCHLD => heard_child = true,
                    sys::REMOVED => orphan.heard(),
                    _ => drop(ask(libc::SIGTERM)),
                }
            }
            if heard_child {
                let mut others = Vec::new();
                if let Some(end) = reap_until(main, &mut others) {
                    break end;
                }
                for (index, _) in companions.iter().enumerate().filter(|(_, pid)| others.contains(pid)) {
                    clients.tell(companion_json(index));
                }
            }
            log.copy();
            console.as_mut().map(Log::copy);
            if clients.is_full() {
                clients.try_again();
            }
            clients.serve(&ready, |request| match request {
                Request::Signal(signal) => ask(signal).map(|()| None),
                Request::Rules => rules::generation().map(Some).map_err(|error| error.to_string()),
            });
            clients.accept(greeting);
        };

        let oom_killed = end.signal == Some(libc::SIGKILL) && record::oom_kills(&cgroups) > oom_kills;
        let line = record::exit_json(&birth, end.code, end.signal)
            .truth("coreDumped", end.core_dumped)
            .truth("oomKilled", oom_killed)
            .text_or_null("asked", asked.map(record::signal_name).as_deref())
            .number("maxRssBytes", end.max_rss_bytes)
            .number("userUs", end.user_us)
            .number("systemUs", end.system_us)
            .end();
        descendants::kill_all();
        if let Err(error) = dir.write_exit(&line) {
            log.say(&format!("cannot write exit.json: {error}: {line}"));
        }
        if !descendants::end_all(DESCENDANTS_GONE) {
            log.say("some process does not end even by SIGKILL");
        }
        for _ in 0..LAST_LOG_TURNS {
            log.copy();
            console.as_mut().map(Log::copy);
        }
        dir.forget_socket();
        drop(dir); // whoever hears the last line may start anew there
        clients.dismiss(greeting, &line);
    }
}

/// Whether the run directory is there still. Without it no daemon finds this sandbox, so nothing would ever end it,
/// and who deleted Hutch's directories wanted it gone: it is ended like a machine whose power button is pressed.
#[derive(Clone, Copy)]
enum Orphan {
    Not,
    /// Something in the directory was removed; so many looks are left.
    Maybe(u32),
    Asked(Instant),
    Killed,
}

impl Orphan {
    fn heard(&mut self) {
        if matches!(self, Self::Not | Self::Maybe(_)) {
            *self = Self::Maybe(REMOVAL_LOOKS);
        }
    }

    fn wait(self) -> Option<Duration> {
        match self {
            Self::Not | Self::Killed => None,
            Self::Maybe(_) => Some(REMOVAL_LOOK_EVERY),
            Self::Asked(at) => Some(ORPHAN_GRACE.saturating_sub(at.elapsed()) + REMOVAL_LOOK_EVERY),
        }
    }

    fn next(self, dir: &RunDir, log: &mut Log, ask: &mut impl FnMut(i32) -> Result<(), String>) -> Self {
        match self {
            Self::Maybe(_) if dir.is_gone() => {
                log.say("the run directory was removed: nobody can find this sandbox any more, so it is ended");
                drop(ask(libc::SIGTERM));
                Self::Asked(Instant::now())
            }
            Self::Maybe(0) => Self::Not,
            Self::Maybe(looks) => Self::Maybe(looks.saturating_sub(1)),
            Self::Asked(at) if at.elapsed() > ORPHAN_GRACE => {
                drop(ask(libc::SIGKILL));
                Self::Killed
            }
            Self::Not | Self::Asked(_) | Self::Killed => self,
        }
    }
}

/// Reaps all that has ended; gives the end of `main` if it is among them, and leaves the rest for later.
/// The pids of the others go to `others`.
fn reap_until(main: i32, others: &mut Vec<i32>) -> Option<Reaped> {
    while let Ok(Some(end)) = sys::reap(-1) {
        if end.pid == main {
            return Some(end);
        }
        others.push(end.pid);
    }
    None
}

/// A companion has ended while PROGRAM goes on.
fn companion_json(index: usize) -> String {
    let index = i64::try_from(index).unwrap_or(i64::MAX);
    Json::new().number("companion", index).number("endedAtMs", sys::clocks_ms().1).end()
}
