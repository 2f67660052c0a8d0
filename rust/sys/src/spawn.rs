//! Starts a program by `clone(CLONE_VM | CLONE_VFORK)`: no page table is copied, and the calling
//! thread goes on only when the program runs or has failed, so the error needs no pipe.
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

/// Who the program runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// All that the child needs, prepared before the clone: the child must not allocate.
pub struct Program<'a> {
    /// Absolute paths that are tried in this order, as a search of `PATH` does.
    pub candidates: &'a [CString],
    pub argv: &'a [CString],
    pub env: &'a [CString],
    pub cwd: &'a CStr,
    pub stdin: BorrowedFd<'a>,
    pub stdout: BorrowedFd<'a>,
    pub stderr: BorrowedFd<'a>,
    /// Makes stdin the controlling terminal of the new session.
    pub terminal: bool,
    /// None keeps the caller's.
    pub credentials: Option<&'a Credentials>,
    /// Written to `/proc/self/oom_score_adj`, where given.
    pub oom_score_adj: Option<&'a CStr>,
    /// Entered by `chroot` before anything else, where given.
    pub root: Option<&'a CStr>,
}

/// What the child was doing when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpawnStage {
    Clone,
    Terminal,
    User,
    Cwd,
    Exec,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpawnFailure {
    pub stage: SpawnStage,
    pub errno: i32,
}

const CHILD_STACK_BYTES: usize = 16 * 1024;

struct Child {
    candidates: Vec<*const c_char>,
    argv: Vec<*const c_char>,
    env: Vec<*const c_char>,
    cwd: *const c_char,
    stdio: [c_int; 3],
    terminal: bool,
    ids: Option<(u32, u32, *const u32, usize)>,
    oom_score_adj: Option<(*const c_char, usize)>,
    root: Option<*const c_char>,
    failure: Option<SpawnFailure>,
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
}

/// Starts `program` in a session of its own and returns its pid. The pid is the caller's child:
/// whoever waits for all children may see its end before this returns.
pub fn spawn(program: &Program<'_>) -> Result<i32, SpawnFailure> {
    let mut child = Child {
        candidates: program.candidates.iter().map(|s| s.as_ptr()).collect(),
        argv: pointers(program.argv),
        env: pointers(program.env),
        cwd: program.cwd.as_ptr(),
        stdio: [program.stdin.as_raw_fd(), program.stdout.as_raw_fd(), program.stderr.as_raw_fd()],
        terminal: program.terminal,
        ids: program.credentials.map(|c| (c.uid, c.gid, c.groups.as_ptr(), c.groups.len())),
        oom_score_adj: program.oom_score_adj.map(|s| (s.as_ptr(), s.to_bytes().len())),
        root: program.root.map(CStr::as_ptr),
        failure: None,
    };
    let mut stack = vec![0u128; CHILD_STACK_BYTES / 16];
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the stack is 16-byte aligned, grows down from its end and outlives the child's use of
    // it, as does `child`: CLONE_VFORK keeps this thread here until the child execs or exits, so the
    // exclusive borrow that is handed over as a raw pointer is not used by both. `run_child` makes
    // system calls only: it does not allocate, panic or take a lock.
    let pid = unsafe {
        let top = stack.as_mut_ptr().add(stack.len()).cast::<c_void>();
        libc::clone(run_child, top, flags, ptr::from_mut(&mut child).cast::<c_void>())
    };
    if pid < 0 {
        return Err(SpawnFailure { stage: SpawnStage::Clone, errno: errno() });
    }
    match child.failure {
        None => Ok(pid),
        Some(failure) => Err(failure),
    }
}

fn errno() -> i32 {
    // SAFETY: glibc's errno location is valid in every thread.
    unsafe { *libc::__errno_location() }
}

extern "C" fn run_child(argument: *mut c_void) -> c_int {
    // SAFETY: `argument` is the `Child` on the stack of the parent, which waits in vfork.
    let child = unsafe { &mut *argument.cast::<Child>() };
    let stage = prepare(child).err().unwrap_or_else(|| exec(child));
    let (stage, errno) = stage;
    child.failure = Some(SpawnFailure { stage, errno });
    127
}

type Failed = (SpawnStage, c_int);

fn check(result: i64, stage: SpawnStage) -> Result<(), Failed> {
    if result < 0 { Err((stage, errno())) } else { Ok(()) }
}

fn prepare(child: &Child) -> Result<(), Failed> {
    use SpawnStage::{Cwd, Terminal, User};
    // SAFETY: plain system calls on descriptors and NUL-terminated strings that the parent keeps
    // alive. Raw calls for the ids: glibc's wrappers would change every thread of the shared process.
    unsafe {
        // std ignores SIGPIPE, and what is ignored stays so over exec.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::setsid();
        for (number, fd) in child.stdio.iter().enumerate() {
            check(i64::from(libc::dup2(*fd, number as c_int)), Terminal)?;
        }
        if child.terminal {
            check(i64::from(libc::ioctl(0, libc::TIOCSCTTY, 0)), Terminal)?;
        }
        if let Some((text, length)) = child.oom_score_adj {
            let fd = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if fd >= 0 {
                libc::write(fd, text.cast::<c_void>(), length);
                libc::close(fd);
            }
        }
        if let Some(root) = child.root {
            check(i64::from(libc::chroot(root)), Cwd)?;
        }
        if let Some((uid, gid, groups, count)) = child.ids {
            check(libc::syscall(libc::SYS_setgroups, count, groups), User)?;
            check(libc::syscall(libc::SYS_setresgid, gid, gid, gid), User)?;
            check(libc::syscall(libc::SYS_setresuid, uid, uid, uid), User)?;
        }
        check(i64::from(libc::chdir(child.cwd)), Cwd)?;
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
    }
    Ok(())
}

/// Tries the candidates as `execvpe` does; returns only when none of them ran.
fn exec(child: &Child) -> Failed {
    let mut denied = false;
    let mut last = libc::ENOENT;
    for candidate in &child.candidates {
        // SAFETY: NUL-terminated strings and NULL-terminated arrays that the parent keeps alive.
        unsafe {
            // The kernel makes an address space and copies argv into it before it looks whether the program is there.
            if libc::access(*candidate, libc::F_OK) == 0 || !matches!(errno(), libc::ENOENT | libc::ENOTDIR) {
                libc::execve(*candidate, child.argv.as_ptr(), child.env.as_ptr());
            }
        }
        last = errno();
        match last {
            libc::EACCES => denied = true,
            libc::ENOENT | libc::ENOTDIR | libc::ESTALE | libc::ENODEV | libc::ETIMEDOUT => {}
            _ => return (SpawnStage::Exec, last),
        }
    }
    (SpawnStage::Exec, if denied { libc::EACCES } else { last })
}
