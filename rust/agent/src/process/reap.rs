//! The end of processes: only the kernel's wait says it, and it is told after the last output.
use super::attach::LOST_KEPT;
use super::table::{Cause, Exit, MAIN, Process};
use crate::agent::Agent;
use crate::clock::wall_ms;
use crate::signals::signal_name;
use crate::stream::Kind;
use crate::timers::Timer;
use rustix::process::{WaitOptions, WaitStatus, wait};
use std::time::{Duration, Instant};

/// Silence after which an ended process's output is complete though others still hold it open.
const SETTLE: Duration = Duration::from_millis(250);
const SETTLE_MAX: Duration = Duration::from_secs(2);
/// How long an ended process can be asked for.
const KEPT: Duration = Duration::from_secs(600);

impl Agent {
    /// Waits for all that have ended, orphans of the sandbox included.
    pub fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            self.process_ended(pid.as_raw_nonzero().get(), status);
        }
        self.check_shutdown();
    }

    pub fn process_ended(&mut self, pid: i32, status: WaitStatus) {
        let Some(key) = self.processes.key_of_pid(pid) else {
            if self.starting > 0 {
                // It may be one whose starter has not come back yet.
                self.early_exits.insert(pid, status);
            }
            return;
        };
        self.processes.waited(pid);
        if killed(status) {
            self.read_oom_kills();
        }
        let now = Instant::now();
        let oom_before = self.oom.recent_unowned(now);
        if let Some(process) = self.processes.get_mut(key) {
            process.status = Some((status, now));
            process.ended_at_ms = wall_ms();
            process.last_output = now;
            process.oom_killed |= killed(status) && oom_before;
            for channel in &mut process.channels {
                channel.readable = channel.fd.is_some();
            }
        }
        self.read_process(key, 0);
        self.read_process(key, 1);
        if !self.settle(key) {
            self.timers.after(SETTLE, Timer::Settle(key));
        }
    }

    /// Ends the process for its clients when nothing more will come. False: it is too early to say.
    pub fn settle(&mut self, key: u64) -> bool {
        let Some(process) = self.processes.get_mut(key) else { return true };
        let Some((status, at)) = process.status else { return true };
        if process.exit.is_some() {
            return true;
        }
        if !process.output_complete() {
            let now = Instant::now();
            let silent = now.duration_since(process.last_output) >= SETTLE || now.duration_since(at) >= SETTLE_MAX;
            // What is in the pipe and waits for a slow reader belongs to the process, however long it takes.
            let waiting = process.channels.iter().any(|channel| channel.readable && !channel.closed);
            if waiting || !silent {
                return false;
            }
            for channel in &mut process.channels {
                channel.closed = true;
            }
        }
        process.stdin = None;
        let exit = exit_of(process, status);
        process.exit = Some(exit.clone());
        process.exited_at = Some(Instant::now());
        if process.is_untidy() {
            self.timers.after(LOST_KEPT, Timer::Lost(key));
        }
        let (is_main, waiters) = (process.id == MAIN, std::mem::take(&mut process.waiters));
        for stream in process.live_streams() {
            self.ready(stream);
        }
        if let Some(log) = self.processes.get_mut(key).and_then(|process| process.log.as_mut()) {
            log.take_followers().into_iter().for_each(|stream| self.ready(stream));
        }
        for stream in waiters {
            self.finish_stream(stream, &Ok(exit.to_value()));
        }
        if is_main {
            self.tell("mainExited", &exit.to_value());
        }
        self.processes.ended(key);
        self.timers.after(KEPT + Duration::from_secs(1), Timer::Expire);
        self.check_shutdown();
        true
    }

    pub fn settle_timer(&mut self, key: u64) {
        self.read_process(key, 0);
        self.read_process(key, 1);
        if !self.settle(key) {
            self.timers.after(SETTLE, Timer::Settle(key));
        }
    }

    pub fn expire_processes(&mut self) {
        if let Some(limit) = Instant::now().checked_sub(KEPT) {
            self.processes.expire(limit);
        }
    }

    /// Sends an event to all who asked for the sandbox's events.
    pub fn tell(&mut self, name: &'static str, value: &crate::wire::value::Value) {
        let watching: Vec<u32> =
            self.streams.iter().filter(|(_, stream)| matches!(stream.kind, Kind::Events)).map(|(number, _)| *number).collect();
        for number in watching {
            self.event_to(number, name, value.clone());
        }
    }
}

fn killed(status: WaitStatus) -> bool {
    // A shell whose child was killed ends with 137.
    status.terminating_signal() == Some(9) || status.exit_status() == Some(137)
}

fn exit_of(process: &Process, status: WaitStatus) -> Exit {
    let signal = status.terminating_signal();
    let [stdout, stderr] = &process.channels;
    Exit {
        code: status.exit_status(),
        signal: signal.map(signal_name),
        core_dumped: signal.is_some() && status.as_raw() & 0x80 != 0,
        oom_killed: process.oom_killed,
        ended_at_ms: process.ended_at_ms,
        bytes: [stdout.ring.end(), stderr.ring.end()],
        reason: match (process.cause, signal) {
            (Cause::Lifetime, _) => "lifetime",
            (Cause::Own, Some(_)) => "signalled",
            (Cause::Own, None) => "exited",
        },
    }
}
