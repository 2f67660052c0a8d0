//! Keeps a machine whose memory has run out from standing still: the kernel may for minutes throw away
//! and read again the pages of programs before it gives up and kills something, and meanwhile nobody
//! gets anything done, the agent included. A thread of its own hears from the kernel that tasks wait for
//! memory, and when next to none is left has it kill the largest process at once.
//!
//! The kernel's own means against that (`lru_gen/min_ttl_ms`) takes what is being written to a file for
//! memory in use, and panics when it finds nobody to kill: writing one large file was enough.
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, pread, write};
use std::os::fd::OwnedFd;
use std::thread::Builder;
use std::time::{Duration, Instant};

/// The kernel tells once for each second in which some task waited 600 ms for memory.
const TRIGGER: &[u8] = b"some 600000 1000000\0";
/// So long after one such second, the next is still of the same spell.
const SPELL: Duration = Duration::from_millis(1_500);
/// One such second may be a burst, such as a program that starts.
const SECONDS_MIN: u32 = 3;
/// What could be had without taking it from programs, in thousandths of all memory. A machine that
/// stands still has 15 to 20, one that writes or reads large files several hundred.
const LEFT_PER_MILLE_MIN: u64 = 40;
const STACK_BYTES: usize = 64 * 1024;
const MEMINFO_BYTES: usize = 512;

/// All that the thread uses. From here on it asks for no memory, so that it goes on when there is none.
struct Guard {
    pressure: OwnedFd,
    meminfo: OwnedFd,
    sysrq: OwnedFd,
}

/// A kernel that lacks what is needed here has no guard, and kills when it will.
pub fn start() -> Result<(), Errno> {
    let open = |path: &str, flags: OFlags| openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty());
    let pressure = open("/proc/pressure/memory", OFlags::RDWR | OFlags::NONBLOCK)?;
    write(&pressure, TRIGGER)?;
    let (meminfo, sysrq) = (open("/proc/meminfo", OFlags::RDONLY)?, open("/proc/sysrq-trigger", OFlags::WRONLY)?);
    let guard = Guard { pressure, meminfo, sysrq };
    // The kernel makes a buffer for the file when it is first read, and keeps it.
    guard.left_per_mille();
    let thread = Builder::new().name("memory-guard".to_owned()).stack_size(STACK_BYTES);
    thread.spawn(move || guard.watch()).map(drop).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))
}

impl Guard {
    fn watch(&self) {
        let mut spell = Spell::default();
        loop {
            let mut wanted = [PollFd::new(&self.pressure, PollFlags::PRI)];
            match poll(&mut wanted, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(_) => return,
            }
            if wanted.iter().any(|fd| fd.revents().contains(PollFlags::ERR)) {
                return;
            }
            let is_short = self.left_per_mille().is_some_and(|left| left < LEFT_PER_MILLE_MIN);
            if spell.second(Instant::now(), is_short) {
                // Whom, the kernel decides as it always does, by size and oom_score_adj, and says so in its log.
                // Unlike when it runs out by itself it does nothing, and goes on, where there is nobody.
                let _ = write(&self.sysrq, b"f");
            }
        }
    }

    fn left_per_mille(&self) -> Option<u64> {
        let mut text = [0; MEMINFO_BYTES];
        let length = pread(&self.meminfo, &mut text, 0).ok()?;
        left_per_mille(text.get(..length)?)
    }
}

/// Seconds of want, one after the other.
#[derive(Debug, Default)]
struct Spell {
    seconds: u32,
    last: Option<Instant>,
}

impl Spell {
    /// One more, at `now`; true when it is time to kill, after which a new spell begins.
    fn second(&mut self, now: Instant, is_short: bool) -> bool {
        let goes_on = self.last.is_some_and(|last| now.duration_since(last) <= SPELL);
        self.last = Some(now);
        self.seconds = match (is_short, goes_on) {
            (true, true) => self.seconds + 1,
            (true, false) => 1,
            (false, _) => 0,
        };
        if self.seconds < SECONDS_MIN {
            return false;
        }
        self.seconds = 0;
        true
    }
}

fn left_per_mille(meminfo: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(meminfo).ok()?;
    kib(text, "MemAvailable:")?.saturating_mul(1000).checked_div(kib(text, "MemTotal:")?)
}

/// A figure of /proc/meminfo, in KiB.
fn kib(meminfo: &str, name: &str) -> Option<u64> {
    meminfo.lines().find_map(|line| line.strip_prefix(name))?.strip_suffix(" kB")?.trim().parse().ok()
}

/// How much may lie in file systems that are in memory, in KiB. All of them full, what is left is enough to live and
/// to clear up: their pages can be taken from nobody, and there is nobody to kill for them.
#[derive(Debug, PartialEq, Eq)]
pub struct InMemory {
    pub shm: u64,
    pub run: u64,
}

/// For the programs and the pages of their files, beside `/dev`.
const ROOM_KIB: u64 = (32 + 4) * 1024;
/// What a machine that tells nothing gets.
const LEAST_KIB: u64 = 1024;

impl InMemory {
    /// Of what the machine has when it has just booted: half of the memory and a tenth, where there is room for them.
    pub fn of(meminfo: &str) -> InMemory {
        let total = kib(meminfo, "MemTotal:").unwrap_or_default();
        let spare = kib(meminfo, "MemAvailable:").unwrap_or_default().saturating_sub(ROOM_KIB);
        let run = (total / 10).min(spare / 4).max(LEAST_KIB);
        let shm = (total / 2).min(spare.saturating_sub(run)).max(LEAST_KIB);
        InMemory { shm, run }
    }
}

#[cfg(test)]
mod tests {
    use super::{InMemory, Spell, left_per_mille};
    use std::time::{Duration, Instant};

    #[test]
    fn what_is_left_is_read_from_the_kernels_text() {
        let meminfo = b"MemTotal:         481432 kB\nMemFree:           11264 kB\nMemAvailable:       9628 kB\nBuffers:   1 kB\n";
        assert_eq!(left_per_mille(meminfo), Some(19));
        for text in ["", "MemTotal: 0 kB\nMemAvailable: 0 kB\n", "MemTotal: 5 kB\n", "MemTotal: x kB\nMemAvailable: 1 kB\n"] {
            assert_eq!(left_per_mille(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn files_in_memory_leave_room_to_live_on_the_smallest_machine() {
        let of = |total: u64, available: u64| InMemory::of(&format!("MemTotal: {total} kB\nMemAvailable: {available} kB\n"));
        assert_eq!(of(481_432, 440_000), InMemory { shm: 240_716, run: 48_143 });
        for (total, available) in
            [(94_936, 58_432), (94_936, 62_000), (217_000, 180_000), (481_432, 440_000), (3_900_000, 3_800_000)]
        {
            let InMemory { shm, run } = of(total, available);
            assert!(shm + run + 4 * 1024 + 32 * 1024 <= available, "{total} {available}: {shm} {run}");
            assert!(shm >= 12 * 1024 && run >= 4 * 1024, "{total} {available}: {shm} {run}");
        }
        for text in ["", "MemTotal: 1 kB\n", "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n"] {
            assert_eq!(InMemory::of(text), InMemory { shm: 1024, run: 1024 });
        }
    }

    #[test]
    fn only_a_spell_of_want_with_nothing_left_is_the_time_to_kill() {
        let start = Instant::now();
        let told = |seconds: &[(u64, bool)]| -> Vec<bool> {
            let mut spell = Spell::default();
            seconds.iter().map(|(at_ms, is_short)| spell.second(start + Duration::from_millis(*at_ms), *is_short)).collect()
        };
        assert_eq!(told(&[(0, true), (1_000, true), (2_100, true), (3_100, true)]), [false, false, true, false]);
        // A burst, a pause, a burst.
        assert_eq!(told(&[(0, true), (1_000, true), (9_000, true), (10_000, true)]), [false; 4]);
        // Tasks wait, but there is memory: a large file is written.
        assert_eq!(told(&[(0, false), (1_000, false), (2_000, false), (3_000, false)]), [false; 4]);
        assert_eq!(told(&[(0, true), (1_000, true), (2_000, false), (3_000, true)]), [false; 4]);
    }
}
