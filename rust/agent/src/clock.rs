//! Clocks as the protocol counts them, and the machine's own, which stands still whenever the machine does.
use crate::agent::{Agent, Place};
use crate::fault::{Fault, Outcome};
use crate::wire::fields::Fields;
use crate::wire::value::Value;
use rustix::io::Errno;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

/// UTC in milliseconds.
pub fn wall_ms() -> u64 {
    let now = clock_gettime(ClockId::Realtime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

pub fn uptime_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

/// UTC in milliseconds.
pub fn set_wall_ms(ms: u64) -> Result<(), Errno> {
    clock_settime(ClockId::Realtime, Timespec { tv_sec: (ms / 1000) as i64, tv_nsec: (ms % 1000 * 1_000_000) as _ })
}

impl Agent {
    /// Answered at once, on no thread: who asks takes the time until the answer for what the clock may be wrong by.
    pub fn clock(&self, p: Fields<'_>) -> Outcome {
        if let Some(ms) = p.opt_u64("clockMs")?.filter(|_| self.place == Place::Machine) {
            set_wall_ms(ms).map_err(|errno| Fault::system("the clock", errno))?;
        }
        Ok(Value::map([("clockMs", wall_ms().into())]))
    }
}
