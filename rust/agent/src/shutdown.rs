//! The end: every process gets a signal, after the grace KILL, then the disk is written and the
//! machine (or this process) ends. Also the pause before a checkpoint.
use crate::agent::{Agent, Place};
use crate::fault::{Fault, Outcome};
use crate::signals::signal_of;
use crate::timers::Timer;
use crate::wire::fields::Fields;
use crate::wire::value::Value;
use hutch_sys::Sent;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use std::time::Duration;

const GRACE_MS_MAX: u64 = 10 * 60 * 1000;
/// After KILL only what the kernel cannot kill is left: it is not waited for longer.
const AFTER_KILL: Duration = Duration::from_secs(2);
/// For who is asked by a signal. Engines kill after ten seconds: what can still be done is done before.
const ASKED_GRACE: Duration = Duration::from_secs(7);
/// As a shell says of what TERM has ended.
const EXIT_TERMINATED: u8 = 128 + 15;

#[derive(Debug, Clone, Copy)]
pub enum Ending {
    LetGo { reconnect: Duration },
    Shutdown { signal: Signal, grace: Duration },
}

#[derive(Debug, Default)]
pub struct Shutdown {
    /// To be done when the reply is out.
    next: Option<Ending>,
    under_way: bool,
    over: bool,
    /// Neither the daemon nor anybody in here asked for it: whoever runs the container from outside.
    from_outside: bool,
}

impl Shutdown {
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Tells the host an end that somebody outside wished for from one that was wished for in here.
    pub fn exit_code(&self) -> u8 {
        if self.from_outside { EXIT_TERMINATED } else { 0 }
    }

    pub fn take_ending(&mut self) -> Option<Ending> {
        self.next.take()
    }
}

impl Agent {
    pub fn shutdown_method(&mut self, p: Fields<'_>) -> Outcome {
        let grace = Duration::from_millis(p.opt_in("graceMs", 0, GRACE_MS_MAX)?.unwrap_or(0));
        let signal = signal_of(p, "signal", Some(Signal::TERM))?;
        self.shutdown.next = Some(Ending::Shutdown { signal, grace });
        Ok(Value::Nil)
    }

    pub fn prepare_checkpoint(&mut self, p: Fields<'_>) -> Outcome {
        let reconnect = Duration::from_millis(p.opt_in("reconnectAfterMs", 0, 3_600_000)?.unwrap_or(100));
        if self.link.survives_hangup() || self.link.is_stdio() {
            return Err(Fault::failed_precondition("only an agent that connects out can let go of its connection"));
        }
        self.shutdown.next = Some(Ending::LetGo { reconnect });
        Ok(Value::Nil)
    }

    pub fn shutdown_asked(&mut self, signal: Sent) {
        self.shutdown.from_outside |= !self.shutdown.under_way && signal.from_outside;
        self.begin_shutdown(Signal::TERM, ASKED_GRACE);
    }

    pub fn begin_shutdown(&mut self, signal: Signal, grace: Duration) {
        if self.shutdown.under_way {
            return;
        }
        self.shutdown.under_way = true;
        self.signal_all(signal);
        if signal != Signal::KILL {
            // Stopped ones would never hear it.
            self.signal_all(Signal::CONT);
        }
        self.timers.after(grace, Timer::ShutdownKill);
        self.check_shutdown();
    }

    /// Ends as soon as nobody is left.
    pub fn check_shutdown(&mut self) {
        if self.shutdown.under_way && !self.shutdown.over && !self.anybody_left() {
            self.shutdown_end();
        }
    }

    pub fn shutdown_kill(&mut self) {
        if self.anybody_left() {
            self.signal_all(Signal::KILL);
            self.timers.after(AFTER_KILL, Timer::ShutdownEnd);
        } else {
            self.shutdown_end();
        }
    }

    pub fn shutdown_end(&mut self) {
        if self.shutdown.over {
            return;
        }
        // The last ends go out, as far as the host takes them at once.
        for _ in 0..64 {
            if !self.link.writable || !self.has_output() {
                break;
            }
            self.flush();
        }
        if self.place == Place::Machine {
            self.machine.power_off();
        }
        self.shutdown.over = true;
    }

    fn anybody_left(&self) -> bool {
        // Also one that has ended and whose end nobody has been told yet.
        if self.starting > 0 || self.processes.all().any(|(_, process)| process.exit.is_none()) {
            return true;
        }
        match self.place {
            // Everything in the machine or container but ourselves; kernel threads hear no signals.
            Place::Machine | Place::Init => {
                waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT).is_ok()
            }
            Place::Process => false,
        }
    }

    fn signal_all(&self, signal: Signal) {
        if self.place == Place::Process {
            // Never -1 here: these would be all of somebody else's processes too.
            for (_, process) in self.processes.all().filter(|(_, process)| process.is_running()) {
                if let Some(pid) = process.pid.and_then(Pid::from_raw) {
                    let _ = kill_process_group(pid, signal);
                }
            }
        } else if rustix::process::getpid().is_init() {
            let _ = hutch_sys::signal_everybody(signal.as_raw());
        }
    }
}
