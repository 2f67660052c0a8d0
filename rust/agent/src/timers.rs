//! Deadlines of the loop. A timer whose reason is gone is ignored when it fires.
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// The lifetime of a process (its key) is over.
    Lifetime(u64),
    /// Nothing more may come from what an ended process left behind.
    Settle(u64),
    /// Lost followers of a process have not come back.
    Lost(u64),
    /// Ended processes are forgotten.
    Expire,
    Reconnect,
    ShutdownKill,
    ShutdownEnd,
}

#[derive(Debug, Default)]
pub struct Timers(BinaryHeap<Reverse<(Instant, Timer)>>);

impl Timers {
    pub fn after(&mut self, delay: Duration, timer: Timer) {
        // A delay beyond what an Instant can hold never comes.
        if let Some(at) = Instant::now().checked_add(delay) {
            self.0.push(Reverse((at, timer)));
        }
    }

    /// Time until the next one, if there is any.
    pub fn next_in(&self) -> Option<Duration> {
        self.0.peek().map(|Reverse((at, _))| at.saturating_duration_since(Instant::now()))
    }

    pub fn pop_due(&mut self) -> Option<Timer> {
        let due = self.0.peek().is_some_and(|Reverse((at, _))| *at <= Instant::now());
        if due { self.0.pop().map(|Reverse((_, timer))| timer) } else { None }
    }
}
