//! What a stream has to do with a process: output turned into frames, input taken, and letting go.
use crate::agent::{Agent, Token};
use crate::output::Output;
use crate::process::output::Progress;
use crate::process::table::{Cause, Subscriber, WhenUnread};
use crate::timers::Timer;
use rustix::process::{Pid, Signal, kill_process_group};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// How long the place of a lost follower is kept.
pub const LOST_KEPT: Duration = Duration::from_secs(30);

impl Agent {
    /// Reads one channel and tells who follows it.
    pub fn read_process(&mut self, key: u64, channel: usize) {
        let Some(process) = self.processes.get_mut(key) else { return };
        let Progress { news, again } = process.read_output(channel);
        if news {
            for stream in process.live_streams() {
                self.ready(stream);
            }
            if let Some(log) = self.processes.get_mut(key).and_then(|process| process.log.as_mut()) {
                let (followers, failure) = (log.take_followers(), log.take_failure());
                followers.into_iter().for_each(|stream| self.ready(stream));
                if let Some(errno) = failure {
                    self.disk_failed(errno);
                }
            }
        }
        if again {
            self.later.push_back((key, channel));
        }
    }

    /// The pipe has something, or has come to its end.
    pub fn output_readable(&mut self, key: u64, channel: usize) {
        if let Some(channel) = self.processes.get_mut(key).and_then(|process| process.channels.get_mut(channel)) {
            channel.readable = channel.fd.is_some();
        } else {
            self.processes.drain(key, channel);
            return;
        }
        self.read_process(key, channel);
        if self.processes.get(key).is_some_and(|process| process.status.is_some() && process.output_complete()) {
            self.settle(key);
        }
    }

    /// One frame for a follower. Says how many bytes it was, and whether to come again.
    pub fn emit_process(&mut self, key: u64, stream: u32, credit: u64, output: &mut Output) -> (usize, bool) {
        let Some(process) = self.processes.get_mut(key) else { return (0, false) };
        process.emit(key, stream, credit, output)
    }

    /// The reader has taken `bytes`: a program that is held back may go on.
    pub fn output_taken(&mut self, key: u64, stream: u32, bytes: u32) {
        let Some(process) = self.processes.get_mut(key) else { return };
        if let Some(subscriber) = process.subscribers.iter_mut().find(|s| s.stream == stream && s.lost_until.is_none()) {
            subscriber.granted += u64::from(bytes);
        }
        self.read_later(key);
    }

    pub fn read_later(&mut self, key: u64) {
        let Some(process) = self.processes.get(key) else { return };
        for (index, channel) in process.channels.iter().enumerate() {
            if channel.readable && !self.later.contains(&(key, index)) {
                self.later.push_back((key, index));
            }
        }
    }

    /// The connection is lost: those who follow keep their places, for whoever comes back.
    pub fn lose_followers(&mut self) {
        let until = Instant::now() + LOST_KEPT;
        for key in self.processes.keys() {
            let Some(process) = self.processes.get_mut(key) else { continue };
            process.waiters.clear();
            if std::mem::take(&mut process.starting).iter().any(|starter| starter.subscribe) {
                // Whoever asks for the same start again follows it from the first byte.
                process.subscribers.push(Subscriber::new(0, [0, 0], [false, process.terminal]));
            }
            process.input = None;
            if process.exit.is_some() || process.when_unread == WhenUnread::Drop {
                process.subscribers.clear();
            }
            for subscriber in &mut process.subscribers {
                subscriber.lost_until.get_or_insert(until);
            }
            if !process.subscribers.is_empty() || process.is_untidy() {
                self.timers.after(LOST_KEPT, Timer::Lost(key));
            }
        }
    }

    pub fn forget_lost(&mut self, key: u64) {
        let now = Instant::now();
        if let Some(process) = self.processes.get_mut(key) {
            process.subscribers.retain(|subscriber| subscriber.lost_until.is_none_or(|until| until > now));
            process.tidy();
        }
        self.read_later(key);
    }

    /// The follower is gone. Its process goes on.
    pub fn leave_process(&mut self, key: u64, stream: u32) {
        let Some(process) = self.processes.get_mut(key) else { return };
        process.subscribers.retain(|subscriber| subscriber.stream != stream || subscriber.lost_until.is_some());
        process.waiters.retain(|waiter| *waiter != stream);
        if process.input.as_ref().is_some_and(|input| input.stream == stream) {
            process.input = None;
        }
        if process.is_untidy() {
            // Whoever lost it may come back.
            self.timers.after(LOST_KEPT, Timer::Lost(key));
        }
        // It may have been the one that held the program back.
        self.read_later(key);
    }
}

impl Agent {
    /// Asks for an event once the program's input takes more, if something waits for that.
    pub fn watch_input(&mut self, key: u64) {
        let Some(process) = self.processes.get_mut(key) else { return };
        let waits = process.input.as_ref().is_some_and(|input| !input.buffer.is_empty());
        if !waits || process.stdin_watched {
            return;
        }
        process.stdin_watched = true;
        let Some(stdin) = self.processes.get(key).and_then(|process| process.stdin.as_ref()) else { return };
        if let Err(fault) = self.watch(stdin.as_fd(), Token::Input { process: key }) {
            crate::console::say(&fault.message);
        }
    }

    pub fn input_writable(&mut self, key: u64) {
        let Some(process) = self.processes.get_mut(key) else { return };
        let written = process.flush_input();
        if let Some(stream) = process.input.as_ref().map(|input| input.stream) {
            self.input_taken(stream, written);
        }
    }

    pub fn lifetime_over(&mut self, key: u64) {
        let Some(process) = self.processes.get_mut(key).filter(|process| process.is_running()) else { return };
        process.cause = Cause::Lifetime;
        if let Some(pid) = process.pid.and_then(Pid::from_raw) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}
