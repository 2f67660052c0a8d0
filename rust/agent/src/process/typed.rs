//! What a terminal does by itself on Linux, where its kernel does not: a typed Ctrl-C interrupts, another
//! size is told. Kernels in user space may know terminals and leave that out.
use super::start::slave_of;
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::{read, write};
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::pty::{OpenptFlags, openpt, unlockpt};
use rustix::termios::{LocalModes, SpecialCodeIndex, tcgetattr, tcgetpgrp};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

/// Whether the kernel leaves it to us. Nobody has looked: it does not.
static LEFT_TO_US: OnceLock<bool> = OnceLock::new();

pub fn is_left_to_us() -> bool {
    LEFT_TO_US.get().copied().unwrap_or(false)
}

/// Types Ctrl-C on a terminal that nobody uses: where it can be read there, it was no signal.
pub fn look() {
    LEFT_TO_US.get_or_init(|| reads_interrupt().unwrap_or(false));
}

fn reads_interrupt() -> Result<bool, rustix::io::Errno> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    unlockpt(&master)?;
    let slave = slave_of(&master, flags)?;
    fcntl_setfl(&slave, OFlags::NONBLOCK)?;
    write(&master, b"\x03\n")?;
    let mut typed = [0; 8];
    let count = read(&slave, &mut typed)?;
    Ok(typed.get(..count) == Some(b"\x03\n"))
}

/// The first of `bytes` that is a signal on this terminal, and which.
pub fn first_signal(terminal: &OwnedFd, bytes: &[u8]) -> Option<(usize, Signal)> {
    let modes = tcgetattr(terminal).ok().filter(|modes| modes.local_modes.contains(LocalModes::ISIG))?;
    let signals = [
        (SpecialCodeIndex::VINTR, Signal::INT),
        (SpecialCodeIndex::VQUIT, Signal::QUIT),
        (SpecialCodeIndex::VSUSP, Signal::TSTP),
    ];
    let signal_of = |byte: u8| {
        let found = signals.iter().find(|(index, _)| byte != 0 && modes.special_codes[*index] == byte);
        found.map(|(_, signal)| *signal)
    };
    bytes.iter().enumerate().find_map(|(at, byte)| Some((at, signal_of(*byte)?)))
}

/// To the group in the foreground. Where the terminal does not say which that is, the youngest of the
/// session is taken for it: what a shell has started last.
pub fn tell(terminal: impl AsFd, leader: Option<i32>, signal: Signal) {
    let group = tcgetpgrp(terminal).ok().or_else(|| youngest_group(leader.and_then(Pid::from_raw)?));
    if let Some(group) = group {
        let _ = kill_process_group(group, signal);
    }
}

fn youngest_group(leader: Pid) -> Option<Pid> {
    let session = leader.as_raw_nonzero().get();
    let entries = std::fs::read_dir("/proc").ok()?;
    let stats = entries.filter_map(|entry| std::fs::read_to_string(entry.ok()?.path().join("stat")).ok());
    let groups = stats.filter_map(|stat| group_and_session(&stat)).filter(|(_, of)| *of == session);
    groups.map(|(group, _)| group).max().and_then(Pid::from_raw).or(Some(leader))
}

/// Of `/proc/PID/stat`: what follows the name, which may hold anything, is state, parent, group, session.
fn group_and_session(stat: &str) -> Option<(i32, i32)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(2).map(|field| field.parse().ok());
    Some((fields.next()??, fields.next()??))
}

#[cfg(test)]
mod tests {
    use super::{first_signal, group_and_session, reads_interrupt, youngest_group};
    use rustix::process::{Pid, Signal};
    use rustix::pty::{OpenptFlags, openpt, unlockpt};

    #[test]
    fn linux_does_it_by_itself() {
        assert_eq!(reads_interrupt(), Ok(false));
    }

    #[test]
    fn a_group_and_its_session_are_read_from_the_kernels_line() {
        assert_eq!(group_and_session("7 (a) b) S 1 42 40 34816 42 0"), Some((42, 40)));
        assert_eq!(group_and_session("7 (sh) S 1"), None);
        assert_eq!(group_and_session(""), None);
    }

    #[test]
    fn a_session_that_nobody_is_in_has_its_leader_alone() {
        let nobody = Pid::from_raw(i32::MAX).unwrap();
        assert_eq!(youngest_group(nobody), Some(nobody));
    }

    #[test]
    fn what_is_typed_is_searched_for_signals() {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        unlockpt(&terminal).unwrap();
        assert_eq!(first_signal(&terminal, b"plain\n"), None);
        assert_eq!(first_signal(&terminal, b"ab\x03\x1a"), Some((2, Signal::INT)));
        assert_eq!(first_signal(&terminal, b"\x1c"), Some((0, Signal::QUIT)));
        let mut raw = rustix::termios::tcgetattr(&terminal).unwrap();
        raw.make_raw();
        rustix::termios::tcsetattr(&terminal, rustix::termios::OptionalActions::Now, &raw).unwrap();
        assert_eq!(first_signal(&terminal, b"\x03"), None);
    }
}
