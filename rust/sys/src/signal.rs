//! Signals as a descriptor to poll.
use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

/// Delivers the given signals by reading; they stay blocked in every thread started later.
pub struct SignalFd(OwnedFd);

/// One that was sent to this process.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    pub number: i32,
    /// Who sent it has no process id among ours: the kernel, or somebody outside of our PID namespace.
    pub from_outside: bool,
}

fn set_of(signals: &[i32]) -> libc::sigset_t {
    // SAFETY: sigemptyset initialises the set before it is used.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in signals {
            libc::sigaddset(&mut set, *signal);
        }
        set
    }
}

/// Blocks `signals` in the calling thread, and so in all that it starts.
pub fn block_signals(signals: &[i32]) -> io::Result<()> {
    let set = set_of(signals);
    // SAFETY: `set` is a valid set; no old one is asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

impl SignalFd {
    pub fn new(signals: &[i32]) -> io::Result<Self> {
        block_signals(signals)?;
        let set = set_of(signals);
        // SAFETY: `set` is valid; the new descriptor is owned by nobody else.
        unsafe {
            let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Self(OwnedFd::from_raw_fd(fd)))
        }
    }

    /// The next pending signal, if there is one.
    pub fn next(&self) -> Option<Sent> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
        let wanted = mem::size_of::<libc::signalfd_siginfo>();
        // SAFETY: the buffer has the size that is given; it is read only when it was filled.
        unsafe {
            let got = libc::read(std::os::fd::AsRawFd::as_raw_fd(&self.0), info.as_mut_ptr().cast(), wanted);
            if usize::try_from(got) != Ok(wanted) {
                return None;
            }
            let info = info.assume_init();
            let number = i32::try_from(info.ssi_signo).ok()?;
            Some(Sent { number, from_outside: info.ssi_pid == 0 })
        }
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Sends `signal` to every process that this one may signal, but for itself and init.
/// Refused unless the caller is PID 1: elsewhere these would be other people's processes.
pub fn signal_everybody(signal: i32) -> io::Result<()> {
    // SAFETY: getpid and kill take no pointers.
    unsafe {
        if libc::getpid() != 1 {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        if libc::kill(-1, signal) < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
