//! What belongs to one thread, or to the heap of all.
use crate::spawn::Credentials;
use std::io;

/// Makes the *calling thread* this user to the files that it reaches. With a uid other than 0 the kernel also takes away
/// the capabilities that pass over file permissions. For root, who can become itself again by the same call.
pub fn set_file_user(credentials: &Credentials) -> io::Result<()> {
    let Credentials { uid, gid, groups } = credentials;
    let set_groups = || {
        // SAFETY: the kernel reads as many ids as it is told, which the slice has. A raw call, as it acts on one thread.
        done(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })
    };
    // SAFETY: calls without pointers; raw ones, as they act on one thread.
    unsafe {
        // What cannot be an id changes nothing and gives the one that is set.
        if libc::syscall(libc::SYS_setfsuid, UNCHANGED) >= 0 {
            set_groups()?;
            libc::syscall(libc::SYS_setfsgid, *gid);
            libc::syscall(libc::SYS_setfsuid, *uid);
            // Both give the former id and no error.
            let now = (libc::syscall(libc::SYS_setfsuid, UNCHANGED), libc::syscall(libc::SYS_setfsgid, UNCHANGED));
            return if now == (i64::from(*uid), i64::from(*gid)) {
                Ok(())
            } else {
                Err(io::Error::from_raw_os_error(libc::EPERM))
            };
        }
        // gVisor has neither: there a thread reaches files by its effective ids. The real ones stay root's and let it go back.
        done(libc::syscall(libc::SYS_setresuid, UNCHANGED, 0, UNCHANGED))?;
        set_groups()?;
        done(libc::syscall(libc::SYS_setresgid, UNCHANGED, *gid, UNCHANGED))?;
        done(libc::syscall(libc::SYS_setresuid, UNCHANGED, *uid, UNCHANGED))
    }
}

const UNCHANGED: i32 = -1;

fn done(result: i64) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// One heap for all threads, which gives freed memory back: the agent shares a small machine.
pub fn limit_heap() {
    // SAFETY: mallopt takes two numbers.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 * 1024);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 256 * 1024);
    }
}

/// How the kernel takes the calling thread, and what it starts from then on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheduling {
    Usual,
    /// It does not interrupt others when it is woken.
    Batch,
}

pub fn set_scheduling(scheduling: Scheduling) {
    let policy = match scheduling {
        Scheduling::Usual => libc::SCHED_OTHER,
        Scheduling::Batch => libc::SCHED_BATCH,
    };
    let parameter = libc::sched_param { sched_priority: 0 };
    // SAFETY: the kernel reads one sched_param. A kernel that refuses leaves the thread as it was.
    unsafe {
        libc::sched_setscheduler(0, policy, &parameter);
    }
}

/// Closes what the process inherited beyond its standard descriptors. To be called before it has
/// opened anything of its own.
pub fn close_inherited() {
    // SAFETY: no descriptor above 2 is owned by anybody yet, as the caller promises; where the call is
    // missing they stay open.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32);
    }
}

/// What this process mounts from here on is seen by it and its children alone.
pub fn own_mounts() -> io::Result<()> {
    // SAFETY: both take no pointer to memory of ours but a constant string.
    unsafe {
        if libc::unshare(libc::CLONE_NEWNS) < 0
            || libc::mount(std::ptr::null(), c"/".as_ptr(), std::ptr::null(), libc::MS_REC | libc::MS_PRIVATE, std::ptr::null())
                < 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// A network of its own for this process and its children, with nothing in it.
pub fn own_network() -> io::Result<()> {
    // SAFETY: a call without pointers.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
