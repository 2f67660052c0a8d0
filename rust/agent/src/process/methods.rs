//! The other `process.*` methods: attach, signal, resize, list, wait.
use super::start::{check_id, window_size};
use super::table::{Process, Starter, Subscriber};
use super::typed;
use crate::agent::Agent;
use crate::fault::{Fault, Outcome};
use crate::jobs::Ticket;
use crate::signals::signal_of;
use crate::stream::Kind;
use crate::wire::fields::Fields;
use crate::wire::value::Value;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use rustix::termios::tcsetwinsize;

/// `process.list` shows so much of each argv.
const LISTED_ARGV_BYTES_MAX: usize = 1_024;
/// The list is one frame.
const LIST_BYTES_MAX: usize = 60_000;

impl Agent {
    fn known(&self, p: Fields<'_>) -> Result<u64, Fault> {
        let id = p.str("id")?;
        check_id(id)?;
        self.processes.key_of(id).ok_or_else(|| Fault::not_found(format!("there is no process {id} in the sandbox")))
    }

    fn started(&mut self, p: Fields<'_>) -> Result<(u64, &mut Process), Fault> {
        let key = self.known(p)?;
        match self.processes.get_mut(key).filter(|process| process.pid.is_some()) {
            Some(process) => Ok((key, process)),
            None => Err(Fault::unavailable("the process is being started")),
        }
    }

    /// Answers `process.start` for a process that runs or ran.
    pub fn greet(&mut self, key: u64, starter: Starter) {
        let Some(process) = self.processes.get_mut(key) else { return };
        let reply = Value::map([
            ("pid", process.pid.map_or(Value::Nil, Value::from)),
            ("startedAtMs", process.started_at_ms.into()),
            ("existing", starter.existing.into()),
        ]);
        if starter.subscribe {
            self.subscribe(key, starter.stream, [Some(0), Some(0)], starter.input, reply);
        } else {
            self.with_stream(starter.stream, |stream| {
                stream.reply(&reply);
                stream.finish(&Ok(Value::Nil));
            });
        }
    }

    pub fn process_attach(&mut self, ticket: Ticket, p: Fields<'_>) -> Result<(), Fault> {
        let (key, process) = self.started(p)?;
        let reply = Value::map([("pid", process.pid.map_or(Value::Nil, Value::from))]);
        let from = [p.opt_u64("stdoutOffset")?, p.opt_u64("stderrOffset")?];
        self.subscribe(key, ticket.stream, from, p.bool_or("input", false)?, reply);
        Ok(())
    }

    fn subscribe(&mut self, key: u64, stream: u32, from: [Option<u64>; 2], input: bool, reply: Value) {
        if !self.streams.contains_key(&stream) {
            // Given up while the program was being started.
            return;
        }
        let Some(process) = self.processes.get_mut(key) else { return };
        let [stdout, stderr] = &process.channels;
        let [from_stdout, from_stderr] = from;
        let place = |channel: &super::table::Channel, asked: Option<u64>| {
            asked.unwrap_or(0).clamp(channel.ring.start(), channel.ring.end())
        };
        process.subscribers.retain(|subscriber| !subscriber.is_resumed_by(from));
        let position = [place(stdout, from_stdout), place(stderr, from_stderr)];
        let [stdout_offset, stderr_offset] = position;
        let before = if input { process.take_input(stream) } else { None };
        let reply = reply
            .with("stdoutOffset", Some(stdout_offset.into()))
            .with("stderrOffset", Some(stderr_offset.into()))
            .with("inputOffset", Some(process.input_offset.into()))
            .with("running", Some(process.is_running().into()));
        // A terminal has no stderr: its channel has no END either.
        let ended = [false, process.terminal];
        process.subscribers.push(Subscriber::new(stream, position, ended));
        if let Some(before) = before {
            self.event_to(before, "inputTaken", Value::Map(Vec::new()));
        }
        self.with_stream(stream, |stream| {
            stream.kind = Kind::Process { process: key };
            stream.reply(&reply);
        });
        self.deliver_early(stream);
    }

    pub fn process_wait(&mut self, ticket: Ticket, p: Fields<'_>) -> Result<(), Fault> {
        let key = self.known(p)?;
        let Some(process) = self.processes.get_mut(key) else { return Ok(()) };
        let exit = process.exit.as_ref().map(super::table::Exit::to_value);
        if exit.is_none() {
            process.waiters.push(ticket.stream);
        }
        self.with_stream(ticket.stream, |stream| {
            stream.kind = Kind::Wait { process: key };
            stream.reply(&Value::Nil);
            if let Some(exit) = exit {
                stream.finish(&Ok(exit));
            }
        });
        Ok(())
    }

    pub fn process_signal(&mut self, p: Fields<'_>) -> Outcome {
        let signal = signal_of(p, "signal", None)?;
        let group = p.bool_or("group", true)?;
        let (_, process) = self.started(p)?;
        let pid = process.pid.filter(|_| process.is_running()).and_then(Pid::from_raw);
        let Some(pid) = pid else {
            return Err(Fault::failed_precondition(format!("process {} has ended", process.id)));
        };
        // Every process is the leader of its own session and group. The group may be empty of others.
        let sent = if group { kill_process_group(pid, signal) } else { kill_process(pid, signal) };
        match sent {
            Ok(()) | Err(Errno::SRCH) => Ok(Value::Nil),
            Err(errno) => Err(Fault::system("the signal cannot be sent", errno)),
        }
    }

    pub fn process_resize(&mut self, p: Fields<'_>) -> Outcome {
        let size = window_size(&p)?;
        let (_, process) = self.started(p)?;
        if !process.terminal {
            return Err(Fault::failed_precondition(format!("process {} has no terminal", process.id)));
        }
        match process.channels.first().and_then(|channel| channel.fd.as_ref()) {
            Some(fd) => {
                tcsetwinsize(fd, size).map_err(|errno| Fault::system("the terminal's size", errno))?;
                if typed::is_left_to_us() {
                    typed::tell(fd, process.pid, Signal::WINCH);
                }
            }
            None => return Err(Fault::failed_precondition(format!("process {} has ended", process.id))),
        }
        Ok(Value::Nil)
    }

    pub fn process_close_input(&mut self, p: Fields<'_>) -> Outcome {
        let (_, process) = self.started(p)?;
        process.close_input();
        Ok(Value::Nil)
    }

    pub fn process_list(&mut self) -> Outcome {
        // Running ones first, then the newest: where not all fit into the frame, the others are left out.
        let mut all: Vec<(u64, &Process)> = self.processes.all().collect();
        all.sort_by_key(|(key, process)| (process.exit.is_some(), std::cmp::Reverse(*key)));
        let mut left = LIST_BYTES_MAX;
        let mut list = Vec::new();
        for (_, process) in &all {
            let entry = describe(process);
            let bytes = entry.encode().len();
            if bytes > left {
                break;
            }
            left -= bytes;
            list.push(entry);
        }
        let truncated = list.len() < all.len();
        Ok(Value::map([("processes", Value::Array(list)), ("truncated", truncated.into())]))
    }
}

fn describe(process: &Process) -> Value {
    let mut left = LISTED_ARGV_BYTES_MAX;
    let mut argv = Vec::new();
    for word in &process.argv {
        if word.len() > left {
            break;
        }
        left -= word.len();
        argv.push(Value::text(word));
    }
    Value::map([
        ("id", process.id.as_str().into()),
        ("pid", process.pid.unwrap_or_default().into()),
        ("argv", Value::Array(argv)),
        ("startedAtMs", process.started_at_ms.into()),
        ("running", process.exit.is_none().into()),
        ("pty", process.terminal.into()),
        ("inputOffset", process.input_offset.into()),
    ])
    .with("tag", process.tag.as_deref().map(Value::from))
    .with("exit", process.exit.as_ref().map(super::table::Exit::to_value))
}
