//! The system calls that std lacks: all of the shim's `unsafe`. The shim has one thread, so between
//! `fork` and `exec` its child may do whatever a program may.
use std::ffi::{CStr, CString, OsStr};
use std::fs::{self, File};
use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::ptr;
use std::time::Duration;

pub const SIGNALS_HEARD: [i32; 5] = [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP, REMOVED];
/// Something was removed from a directory (`hear_removals`).
pub const REMOVED: i32 = libc::SIGIO;

/// From <linux/fcntl.h>; the libc crate lacks them.
const DN_DELETE: libc::c_uint = 0x8;
const DN_MULTISHOT: libc::c_uint = 0x8000_0000;

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

pub fn c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Whatever the starter had open beyond stdio is not ours to hold, nor our child's.
pub fn close_inherited() {
    // SAFETY: called first of all, when this process has opened nothing that it still uses.
    unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) };
}

/// The descriptors that a program may be given beyond stdio: its end of the pair, and its console.
pub const PAIR: RawFd = 3;
pub const CONSOLE: RawFd = 4;

/// Takes both numbers for good, so that nothing of ours is there when a program's are put in their place.
pub fn reserve_given() -> io::Result<()> {
    for number in [PAIR, CONSOLE] {
        // SAFETY: the path is a C string; the descriptor is never closed here.
        let fd = check(unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) })?;
        if fd != number {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
    }
    Ok(())
}

pub fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    // SAFETY: `fds` has room for two; both are new and owned by nobody else.
    unsafe {
        check(libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0, fds.as_mut_ptr()))?;
        let [one, other] = fds;
        Ok((OwnedFd::from_raw_fd(one), OwnedFd::from_raw_fd(other)))
    }
}

/// Connected to the kernel's netfilter, which answers at once or not at all.
pub fn netfilter_socket() -> io::Result<File> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: plain numbers; the descriptor is new and owned by nobody else.
    unsafe { Ok(File::from_raw_fd(check(libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_NETFILTER))?)) }
}

pub enum Forked {
    Parent(i32),
    Child,
}

pub fn fork() -> io::Result<Forked> {
    // SAFETY: this process has one thread, so no lock can be held by another one.
    match check(unsafe { libc::fork() })? {
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(pid)),
    }
}

/// Ends the process without running anything that the parent registered.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: never returns; nothing is read afterwards.
    unsafe { libc::_exit(code) }
}

pub fn new_session() -> io::Result<()> {
    // SAFETY: takes no arguments.
    check(unsafe { libc::setsid() }).map(drop)
}

fn prctl(option: i32, argument: libc::c_ulong) -> io::Result<()> {
    let zero: libc::c_ulong = 0;
    // SAFETY: the options used here take plain numbers.
    check(unsafe { libc::prctl(option, argument, zero, zero, zero) }).map(drop)
}

pub fn become_subreaper() -> io::Result<()> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1)
}

pub fn no_new_privileges() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1)
}

/// SIGKILL when the parent dies. A change of ids clears it, so it is set again after one.
/// For this process and what it becomes. Takes `no_new_privs`, or the right to do without.
pub fn filter_calls(program: &mut [libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let filter = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    // SAFETY: the kernel copies `len` steps of a program that lives until then.
    check(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) }).map(drop)
}

pub fn die_with(parent: i32) -> io::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong)?;
    // SAFETY: takes no arguments.
    if unsafe { libc::getppid() } != parent {
        return Err(io::Error::from_raw_os_error(libc::ESRCH)); // it died before
    }
    Ok(())
}

pub fn set_ids(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: no groups are read, as their count is 0; the others take plain numbers.
    unsafe {
        check(libc::setgroups(0, ptr::null()))?;
        check(libc::setresgid(gid, gid, gid))?;
        check(libc::setresuid(uid, uid, uid))?;
    }
    Ok(())
}

pub fn effective_uid() -> u32 {
    // SAFETY: takes no arguments.
    unsafe { libc::geteuid() }
}

/// A core file would hold the guest's memory, on the host's disk.
pub fn no_core_files() -> io::Result<()> {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `none` is a valid limit.
    check(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) }).map(drop)
}

/// As many open files as this machine allows one process, where we may say so; else what we were given. A runtime's file server has
/// one for each name that its guest knows, and some (runsc 20221219) never close that of a name with another link that is removed.
pub fn many_open_files() {
    let Some(most) = fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|text| text.trim().parse().ok()) else { return };
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is room for a limit, and then a valid one.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 && limit.rlim_max < most {
            limit.rlim_max = most;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

pub fn private_umask() {
    // SAFETY: takes a plain number.
    unsafe { libc::umask(0o077) };
}

pub fn replace_fd(from: RawFd, number: RawFd) -> io::Result<()> {
    // SAFETY: plain descriptor numbers; `number` is one of stdio or reserved, which nothing here owns.
    check(unsafe { libc::dup2(from, number) }).map(drop)
}

pub fn pipe(flags: i32) -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    // SAFETY: `fds` has room for two; both are new and owned by nobody else.
    unsafe {
        check(libc::pipe2(fds.as_mut_ptr(), flags | libc::O_CLOEXEC))?;
        let [reader, writer] = fds;
        Ok((OwnedFd::from_raw_fd(reader), OwnedFd::from_raw_fd(writer)))
    }
}

pub fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: plain descriptor and flags.
    unsafe {
        let flags = check(libc::fcntl(fd, libc::F_GETFL))?;
        check(libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK)).map(drop)
    }
}

fn signal_set(signals: &[i32]) -> libc::sigset_t {
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

/// Blocks the signals that the shim hears and gives a descriptor from which they are read.
pub fn signal_fd() -> io::Result<File> {
    let set = signal_set(&SIGNALS_HEARD);
    // SAFETY: `set` is valid; the new descriptor is owned by nobody else.
    unsafe {
        check(libc::sigprocmask(libc::SIG_BLOCK, &set, ptr::null_mut()))?;
        let fd = check(libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?;
        Ok(File::from_raw_fd(fd))
    }
}

/// The number of the next pending signal.
pub fn next_signal(signals: &File) -> Option<i32> {
    let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
    let wanted = mem::size_of::<libc::signalfd_siginfo>();
    // SAFETY: the buffer has the size that is given; it is read only when it was filled.
    unsafe {
        let got = libc::read(signals.as_raw_fd(), info.as_mut_ptr().cast(), wanted);
        if usize::try_from(got) != Ok(wanted) {
            return None;
        }
        i32::try_from(info.assume_init().ssi_signo).ok()
    }
}

/// For the child: every signal as a program expects to find it.
pub fn default_signals() {
    let none = signal_set(&[]);
    // SAFETY: plain numbers and a valid set. SIGKILL and SIGSTOP refuse, which does no harm.
    unsafe {
        for signal in 1..32 {
            libc::signal(signal, libc::SIG_DFL);
        }
        libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
    }
}

/// Runs the program in place of this one; returns only when that failed.
pub fn exec(argv: &[CString]) -> io::Error {
    let mut pointers: Vec<*const libc::c_char> = argv.iter().map(|a| a.as_ptr()).collect();
    pointers.push(ptr::null());
    let Some(program) = argv.first() else { return io::Error::from_raw_os_error(libc::EINVAL) };
    // SAFETY: NUL-terminated strings in a NULL-terminated array, all alive.
    unsafe { libc::execvp(program.as_ptr(), pointers.as_ptr()) };
    io::Error::last_os_error()
}

/// Only for our own children that are not reaped yet: their pids cannot have been reused.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: plain numbers.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

pub struct Reaped {
    pub pid: i32,
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub core_dumped: bool,
    pub max_rss_bytes: i64,
    pub user_us: i64,
    pub system_us: i64,
}

/// Reaps `pid`, or any child for -1. None: nothing has ended, or there is no child (`Err`).
pub fn reap(pid: i32) -> io::Result<Option<Reaped>> {
    let mut status = 0;
    // SAFETY: both out-parameters are valid for writing; rusage is plain numbers.
    let (got, usage) = unsafe {
        let mut usage: libc::rusage = mem::zeroed();
        (check(libc::wait4(pid, &mut status, libc::WNOHANG, &mut usage))?, usage)
    };
    if got == 0 {
        return Ok(None);
    }
    let exited = libc::WIFEXITED(status);
    let microseconds = |time: libc::timeval| time.tv_sec.saturating_mul(1_000_000).saturating_add(time.tv_usec);
    Ok(Some(Reaped {
        pid: got,
        code: exited.then(|| libc::WEXITSTATUS(status)),
        signal: (!exited).then(|| libc::WTERMSIG(status)),
        core_dumped: !exited && libc::WCOREDUMP(status),
        max_rss_bytes: usage.ru_maxrss.saturating_mul(1024),
        user_us: microseconds(usage.ru_utime),
        system_us: microseconds(usage.ru_stime),
    }))
}

pub type PollFd = libc::pollfd;

pub fn readable(fd: RawFd) -> PollFd {
    PollFd { fd, events: libc::POLLIN, revents: 0 }
}

/// Waits for the descriptors; an interruption counts as nothing ready.
pub fn poll(fds: &mut [PollFd], timeout: Option<Duration>) {
    let ms = timeout.map_or(-1, |t| i32::try_from(t.as_millis()).unwrap_or(i32::MAX));
    let count = fds.len() as libc::nfds_t;
    // SAFETY: the pointer and the count are of one slice.
    if unsafe { libc::poll(fds.as_mut_ptr(), count, ms) } < 0 {
        fds.iter_mut().for_each(|fd| fd.revents = 0);
    }
}

/// The whole directory for us alone, till the last copy of the descriptor is closed.
pub fn lock_exclusively(fd: RawFd) -> io::Result<()> {
    // SAFETY: plain numbers.
    check(unsafe { libc::flock(fd, libc::LOCK_EX | libc::LOCK_NB) }).map(drop)
}

pub fn open_at(dir: RawFd, name: &CStr, flags: i32) -> io::Result<File> {
    // SAFETY: a NUL-terminated name; the new descriptor is owned by nobody else.
    unsafe {
        let fd = check(libc::openat(dir, name.as_ptr(), flags | libc::O_CLOEXEC | libc::O_NOFOLLOW, 0o600 as libc::c_uint))?;
        Ok(File::from_raw_fd(fd))
    }
}

pub fn rename_at(dir: RawFd, from: &CStr, to: &CStr) -> io::Result<()> {
    // SAFETY: NUL-terminated names.
    check(unsafe { libc::renameat(dir, from.as_ptr(), dir, to.as_ptr()) }).map(drop)
}

pub fn unlink_at(dir: RawFd, name: &CStr) -> io::Result<()> {
    // SAFETY: a NUL-terminated name.
    check(unsafe { libc::unlinkat(dir, name.as_ptr(), 0) }).map(drop)
}

/// From now on `REMOVED` is sent to this process when something in the directory is removed. Not inotify: a user
/// may have 128 of those in all, and there are as many shims as sandboxes.
pub fn hear_removals(dir: RawFd) -> io::Result<()> {
    // SAFETY: plain numbers.
    check(unsafe { libc::fcntl(dir, libc::F_NOTIFY, DN_DELETE | DN_MULTISHOT) }).map(drop)
}

pub fn change_dir_fd(dir: RawFd) -> io::Result<()> {
    // SAFETY: a plain descriptor.
    check(unsafe { libc::fchdir(dir) }).map(drop)
}

/// Milliseconds of the monotonic and of the wall clock.
pub fn clocks_ms() -> (i64, i64) {
    let read = |clock| {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is valid for writing; both clocks always exist.
        unsafe { libc::clock_gettime(clock, &mut time) };
        time.tv_sec.saturating_mul(1_000).saturating_add(time.tv_nsec / 1_000_000)
    };
    (read(libc::CLOCK_MONOTONIC), read(libc::CLOCK_REALTIME))
}
