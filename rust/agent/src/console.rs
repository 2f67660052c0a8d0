//! What the agent itself has to say: one line on its stderr, which in a VM is the kernel's log.
use rustix::fs::{Mode, OFlags, open};
use std::io::Write as _;

/// Never fails; a console is not needed for anything.
pub fn say(line: &str) {
    let line = format!("hutch-agent: {line}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// The serial console is slow and may have no reader: the kernel's log never blocks.
pub fn to_kernel_log() {
    if let Ok(null) = open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        let _ = rustix::stdio::dup2_stdin(&null);
    }
    if let Ok(log) = open("/dev/kmsg", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        let _ = rustix::stdio::dup2_stdout(&log);
        let _ = rustix::stdio::dup2_stderr(&log);
    }
}

/// Descriptors 0 to 2 are open from here on, so that no pipe of ours can become one of them.
pub fn fill_standard_descriptors() {
    for _ in 0..3 {
        match open("/dev/null", OFlags::RDWR, Mode::empty()) {
            Ok(fd) if std::os::fd::AsRawFd::as_raw_fd(&fd) <= 2 => std::mem::forget(fd),
            _ => return,
        }
    }
}
