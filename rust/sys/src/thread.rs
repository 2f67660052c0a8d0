//! What belongs to one thread, or to the heap of all.
use std::io;

/// Sets the ids by which the *calling thread* reaches files (`setfsuid`, `setfsgid`). With a uid
/// other than 0 the kernel also takes away the capabilities that pass over file permissions.
pub fn set_filesystem_ids(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: calls without pointers; raw ones, as they act on one thread.
    let (uid_now, gid_now) = unsafe {
        libc::syscall(libc::SYS_setfsgid, gid);
        libc::syscall(libc::SYS_setfsuid, uid);
        // Both calls return the former id and no error: asking again (with an impossible id) tells.
        (libc::syscall(libc::SYS_setfsuid, -1i32), libc::syscall(libc::SYS_setfsgid, -1i32))
    };
    if uid_now == i64::from(uid) && gid_now == i64::from(gid) { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) }
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
