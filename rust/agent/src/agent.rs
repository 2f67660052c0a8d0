//! The agent: one loop over everything that can happen. All state is here and changes only here;
//! threads (see `jobs`) hand their results in as notes. The loop never waits for anything but events.
use crate::console::say;
use crate::fault::Fault;
use crate::fault::Outcome;
use crate::jobs::{Notes, Pool, Ticket};
use crate::kernel::Kernel;
use crate::link::Link;
use crate::oom::Oom;
use crate::output::Output;
use crate::process::log::DIRECTORIES;
use crate::process::table::Processes;
use crate::resets::Resets;
use crate::settings::Settings;
use crate::shutdown::Shutdown;
use crate::stream::Stream;
use crate::timers::{Timer, Timers};
use crate::users::Users;
use crate::wire::decoder::Decoder;
use crate::wire::value::Value;
use hutch_sys::{Credentials, Sent, SignalFd};
use rustix::event::epoll;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::process::WaitStatus;
use std::collections::{HashMap, VecDeque};
use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What an event is about, packed into epoll's 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    Link,
    Signals,
    Notes,
    KernelLog,
    Resets,
    Output { process: u64, channel: usize },
    Input { process: u64 },
    Tunnel { stream: u32 },
}

impl Token {
    pub fn pack(self) -> u64 {
        let (kind, low) = match self {
            Token::Link => (0, 0),
            Token::Signals => (1, 0),
            Token::Notes => (2, 0),
            Token::KernelLog => (3, 0),
            Token::Output { process, channel } => (4 + channel as u64, process),
            Token::Input { process } => (6, process),
            Token::Tunnel { stream } => (7, u64::from(stream)),
            Token::Resets => (8, 0),
        };
        kind << 56 | low
    }

    fn unpack(bits: u64) -> Token {
        let low = bits & ((1 << 56) - 1);
        match bits >> 56 {
            0 => Token::Link,
            1 => Token::Signals,
            2 => Token::Notes,
            3 => Token::KernelLog,
            4 => Token::Output { process: low, channel: 0 },
            5 => Token::Output { process: low, channel: 1 },
            6 => Token::Input { process: low },
            8 => Token::Resets,
            _ => Token::Tunnel { stream: low as u32 },
        }
    }
}

/// Where the agent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// PID 1 of a virtual machine, which it has set up.
    Machine,
    /// The first process of a container.
    Init,
    /// One process among others.
    Process,
}

pub struct Agent {
    pub place: Place,
    pub epoll: OwnedFd,
    signals: SignalFd,
    pub notes: Arc<Notes>,
    pub pool: Pool,
    pub timers: Timers,
    pub link: Link,
    pub decoder: Decoder,
    pub output: Output,
    /// Counts connections: what belongs to an earlier one is dropped.
    pub connection: u64,
    pub streams: HashMap<u32, Stream>,
    /// So many have come to a port that the host answers; the number of the last.
    pub arrivals: u64,
    /// Streams that have something to send, each once.
    pub turns: VecDeque<u32>,
    pub pongs: VecDeque<[u8; 8]>,
    /// A call whose OPEN has not come yet: its stream, and its parts.
    pub opening: Option<(u32, Vec<u8>)>,
    pub settings: Settings,
    pub configuring: bool,
    /// What the last `configure` was answered.
    pub configured: Value,
    /// What it set.
    pub before: crate::identity::Before,
    pub etc: Arc<std::sync::Mutex<crate::etc::Etc>>,
    pub boot_id: Arc<std::sync::Mutex<crate::boot_id::BootId>>,
    pub users: Users,
    pub processes: Processes,
    /// Programs that are being started by a thread just now.
    pub starting: usize,
    /// Ends of children whose starter has not come back yet.
    pub early_exits: HashMap<i32, WaitStatus>,
    /// Outputs to read once more, as a turn was over or room was made.
    pub later: VecDeque<(u64, usize)>,
    pub oom: Oom,
    pub oom_score_adj: Option<CString>,
    pub own_credentials: Credentials,
    pub shutdown: Shutdown,
    pub machine: crate::machine::Machine,
    pub kernel: Arc<Kernel>,
    /// Where logs are kept, the first that can be written; none where nobody said where.
    pub log_directories: Vec<String>,
    disk_failure_told: Option<Instant>,
    /// /dev/null, also when the sandbox has lost it.
    pub null: OwnedFd,
}

const EVENTS_PER_TURN: usize = 32;
const LINK_IN: epoll::EventFlags = epoll::EventFlags::IN.union(epoll::EventFlags::RDHUP);
const LINK_OUT: epoll::EventFlags = epoll::EventFlags::OUT.union(epoll::EventFlags::ET);
const DISK_FAILURE_AGAIN: Duration = Duration::from_secs(30);

impl Agent {
    pub fn new(place: Place, machine: crate::machine::Machine, link: Link, signals: SignalFd) -> Result<Agent, Errno> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let notes = Notes::new()?;
        let mut agent = Agent {
            place,
            epoll,
            signals,
            notes,
            pool: Pool::default(),
            timers: Timers::default(),
            link,
            decoder: Decoder::default(),
            output: Output::default(),
            connection: 0,
            streams: HashMap::new(),
            arrivals: 0,
            turns: VecDeque::new(),
            pongs: VecDeque::new(),
            opening: None,
            settings: Settings::default(),
            configuring: false,
            configured: Value::Nil,
            before: crate::identity::Before::default(),
            etc: Arc::default(),
            boot_id: Arc::default(),
            users: Users::default(),
            processes: Processes::default(),
            starting: 0,
            early_exits: HashMap::new(),
            later: VecDeque::new(),
            oom: Oom::open(place),
            oom_score_adj: crate::oom::protect_self(place),
            own_credentials: own_credentials(),
            shutdown: Shutdown::default(),
            machine,
            kernel: Arc::new(Kernel::open()),
            log_directories: if place == Place::Process { Vec::new() } else { DIRECTORIES.map(str::to_owned).to_vec() },
            disk_failure_told: None,
            null: open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?,
        };
        agent.watch_own()?;
        Ok(agent)
    }

    fn watch_own(&mut self) -> Result<(), Errno> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        let data = |token: Token| epoll::EventData::new_u64(token.pack());
        epoll::add(&self.epoll, &self.signals, data(Token::Signals), flags)?;
        epoll::add(&self.epoll, self.notes.fd(), data(Token::Notes), flags)?;
        if let Some(fd) = self.oom.fd() {
            epoll::add(&self.epoll, fd, data(Token::KernelLog), flags)?;
        }
        if let Some(resets) = &self.machine.resets {
            epoll::add(&self.epoll, resets.fd(), data(Token::Resets), flags)?;
        }
        Ok(())
    }

    /// Watches a descriptor for everything, edge by edge. Closing it ends that.
    pub fn watch(&self, fd: BorrowedFd<'_>, token: Token) -> Result<(), Fault> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token.pack()), flags)
            .map_err(|errno| Fault::system("a descriptor cannot be watched", errno))
    }

    /// Watches the link for what comes, and for room only while that is missing: a port wakes whoever waits for
    /// room after each write.
    pub fn watch_link(&self) -> Result<(), Fault> {
        let both = self.link.fds().count() == 1;
        for (index, fd) in self.link.fds().enumerate() {
            let flags = if index == 0 { self.link_in() } else { LINK_OUT };
            let flags = if both && !self.link.writable { self.link_in() | LINK_OUT } else { flags };
            epoll::add(&self.epoll, fd, epoll::EventData::new_u64(Token::Link.pack()), flags)
                .map_err(|errno| Fault::system("the link cannot be watched", errno))?;
        }
        Ok(())
    }

    fn link_in(&self) -> epoll::EventFlags {
        if self.link.is_told_again() { LINK_IN } else { LINK_IN | epoll::EventFlags::ET }
    }

    /// The link takes no more: an event tells when it does.
    pub fn await_link(&mut self) {
        self.link.writable = false;
        self.watch_link_room(true);
    }

    fn watch_link_room(&self, wanted: bool) {
        let mut fds = self.link.fds();
        // Two descriptors: the second is watched for room all the time.
        let (Some(fd), None) = (fds.next(), fds.next()) else { return };
        let flags = if wanted { self.link_in() | LINK_OUT } else { self.link_in() };
        if let Err(errno) = epoll::modify(&self.epoll, fd, epoll::EventData::new_u64(Token::Link.pack()), flags) {
            say(&format!("the link cannot be watched: {}", crate::fault::describe(errno)));
        }
    }

    /// Runs until the end of all that is in its care; the exit code says whose wish that was.
    pub fn run(&mut self) -> u8 {
        self.open_link();
        while !self.shutdown.is_over() {
            // A mistake of ours must not be the end of the machine: the connection is dropped, the loop goes on.
            if catch_unwind(AssertUnwindSafe(|| self.turn())).is_err() {
                say("something failed unexpectedly; the connection starts anew");
                self.disconnect("an unexpected failure");
            }
        }
        self.shutdown.exit_code()
    }

    fn turn(&mut self) {
        let busy = !self.later.is_empty() || (self.link.writable && self.has_output());
        let timeout = if busy { Some(Duration::ZERO) } else { self.timers.next_in() };
        let timeout = timeout.and_then(|timeout| {
            // Rounded up: a timer must be due when the wait is over.
            rustix::event::Timespec::try_from(timeout + Duration::from_micros(50)).ok()
        });
        let timeout = if busy { Some(rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 }) } else { timeout };
        let mut buffer = [MaybeUninit::<epoll::Event>::uninit(); EVENTS_PER_TURN];
        let events = match epoll::wait(&self.epoll, &mut buffer, timeout.as_ref()) {
            Ok((events, _)) => events,
            Err(_) => return,
        };
        for event in events {
            let flags = event.flags;
            self.happened(Token::unpack(event.data.u64()), flags);
        }
        while let Some(timer) = self.timers.pop_due() {
            self.due(timer);
        }
        for _ in 0..self.later.len() {
            if let Some((process, channel)) = self.later.pop_front() {
                self.output_readable(process, channel);
            }
        }
        self.flush();
    }

    fn happened(&mut self, token: Token, flags: epoll::EventFlags) {
        use epoll::EventFlags;
        match token {
            Token::Link => {
                if flags.contains(EventFlags::OUT) && !self.link.writable {
                    self.link.writable = true;
                    self.watch_link_room(false);
                }
                if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR | EventFlags::RDHUP) {
                    self.receive();
                }
            }
            Token::Signals => {
                while let Some(signal) = self.signals.next() {
                    self.signalled(signal);
                }
            }
            Token::Notes => {
                for note in self.notes.take() {
                    note(self);
                }
            }
            Token::KernelLog => self.read_oom_kills(),
            Token::Resets => self.machine.resets.iter().for_each(Resets::pass_on),
            Token::Output { process, channel } => {
                // A terminal is one descriptor for both directions; what can be written is no news here.
                if flags != EventFlags::OUT {
                    self.output_readable(process, channel);
                }
            }
            Token::Input { process } => self.input_writable(process),
            Token::Tunnel { stream } => self.tunnel_event(stream, flags),
        }
    }

    fn due(&mut self, timer: Timer) {
        match timer {
            Timer::Lifetime(process) => self.lifetime_over(process),
            Timer::Settle(process) => self.settle_timer(process),
            Timer::Lost(process) => self.forget_lost(process),
            Timer::Expire => self.expire_processes(),
            Timer::Reconnect => self.open_link(),
            Timer::ShutdownKill => self.shutdown_kill(),
            Timer::ShutdownEnd => self.shutdown_end(),
        }
    }

    fn signalled(&mut self, signal: Sent) {
        match signal.number {
            17 => self.reap(),
            // A container is stopped by TERM; INT is what the kernel sends init for ctrl-alt-del.
            _ => self.shutdown_asked(signal),
        }
    }

    /// Tells `diskError`, but not for each of a row of failures.
    pub fn disk_failed(&mut self, errno: Errno) {
        if self.disk_failure_told.is_none_or(|told| told.elapsed() >= DISK_FAILURE_AGAIN) {
            self.disk_failure_told = Some(Instant::now());
            let message = format!("the log cannot be written: {}", crate::fault::describe(errno));
            say(&message);
            self.tell("diskError", &Value::map([("message", message.into())]));
        }
    }

    // Streams, for those who have a result for one

    pub fn ticket_is_open(&self, ticket: Ticket) -> bool {
        ticket.connection == self.connection && self.streams.contains_key(&ticket.stream)
    }

    /// Changes a stream, if it is still there, and lets it send.
    pub fn with_stream(&mut self, number: u32, change: impl FnOnce(&mut Stream)) {
        if let Some(stream) = self.streams.get_mut(&number) {
            change(stream);
            self.ready(number);
        }
    }

    pub fn ready(&mut self, number: u32) {
        if let Some(stream) = self.streams.get_mut(&number)
            && !stream.queued
        {
            stream.queued = true;
            self.turns.push_back(number);
        }
    }

    pub fn touch(&mut self, ticket: Ticket) {
        if ticket.connection == self.connection {
            self.ready(ticket.stream);
        }
    }

    pub fn taken(&mut self, ticket: Ticket, bytes: usize) {
        if ticket.connection == self.connection {
            self.with_stream(ticket.stream, |stream| stream.take(bytes));
        }
    }

    pub fn reply(&mut self, ticket: Ticket, value: &Value) {
        if ticket.connection == self.connection {
            self.with_stream(ticket.stream, |stream| stream.reply(value));
        }
    }

    pub fn finish(&mut self, ticket: Ticket, outcome: &Outcome) {
        if ticket.connection == self.connection {
            self.finish_stream(ticket.stream, outcome);
        }
    }

    pub fn finish_stream(&mut self, number: u32, outcome: &Outcome) {
        self.with_stream(number, |stream| stream.finish(outcome));
    }

    pub fn event_to(&mut self, number: u32, name: &'static str, value: Value) {
        self.with_stream(number, |stream| stream.event(name, value));
    }
}

fn own_credentials() -> Credentials {
    let groups = rustix::process::getgroups().unwrap_or_default();
    Credentials {
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        groups: groups.into_iter().map(|gid| gid.as_raw()).filter(|gid| *gid != rustix::process::getgid().as_raw()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::Token;

    #[test]
    fn tokens_survive_the_way_through_the_kernel() {
        for token in [
            Token::Link,
            Token::Signals,
            Token::Notes,
            Token::KernelLog,
            Token::Output { process: 1, channel: 0 },
            Token::Output { process: (1 << 56) - 1, channel: 1 },
            Token::Input { process: 77 },
            Token::Tunnel { stream: u32::MAX },
        ] {
            assert_eq!(Token::unpack(token.pack()), token);
        }
    }
}
