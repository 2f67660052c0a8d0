//! What this process cannot do, before it hears the first word of a guest.
use crate::sys::{only_beneath, only_calls};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};
use std::os::fd::BorrowedFd;

/// Of files and directories that are open for the guest, and some.
const DESCRIPTORS_MAX: u64 = 16_384;
/// Of memory, whatever the guest makes it remember.
const MEMORY_BYTES_MAX: u64 = 1 << 30;

pub fn bound_itself() -> Result<(), String> {
    let lower = |resource: Resource, most: u64| {
        let most = getrlimit(resource).maximum.map_or(most, |hard| hard.min(most));
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })
    };
    lower(Resource::Nofile, DESCRIPTORS_MAX)
        .and_then(|()| lower(Resource::Data, MEMORY_BYTES_MAX))
        .map_err(|errno| errno.to_string())
}

/// Of root no more is left than what files of all users take: to give them away, and to look past their modes. Writing to a
/// program of more rights takes those from it, as without `FSETID` the kernel sees to.
pub fn give_up_rights() -> Result<(), String> {
    set_no_new_privs(true).map_err(|errno| errno.to_string())?;
    let kept = if rustix::process::geteuid().is_root() {
        CapabilitySet::CHOWN | CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH | CapabilitySet::FOWNER
    } else {
        CapabilitySet::empty()
    };
    let held = rustix::thread::capabilities(None).map_err(|errno| errno.to_string())?;
    let kept = kept & held.permitted;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    match set_capabilities(None, sets) {
        Ok(()) | Err(Errno::NOSYS) => Ok(()),
        Err(errno) => Err(format!("cannot give up rights: {errno}")),
    }
}

/// What serving files takes, and what memory and the end of a program do. Nothing that starts a program, makes a connection, looks at another process,
/// mounts or changes who this is.
const CALLS: &[libc::c_long] = &[
    // the connection, and what is open
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_dup,
    // files
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_truncate,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_getdents64,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_readlinkat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_renameat,
    // word of what others change
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    libc::SYS_poll,
    libc::SYS_ppoll,
    // memory, time, and an end
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// After this nothing outside of the directories can be opened or changed, nor anything in those that may only be read, whatever this program is made to
/// do: the kernel sees to that, where it has Landlock. And nothing but files can be asked of it.
pub fn shut_in(directories: &[(BorrowedFd<'_>, bool)]) -> Result<(), String> {
    only_beneath(directories).map_err(|error| format!("cannot shut itself in: {error}"))?;
    only_calls(CALLS).map_err(|error| format!("cannot give up system calls: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File, OpenOptions};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    /// In a thread of its own, which alone is shut in.
    #[test]
    fn nothing_outside_is_opened_nothing_changed_that_may_be_read_and_no_program_started() {
        let top = std::env::temp_dir().join(format!("hutch-files-confine-{}", std::process::id()));
        for name in ["served/deep", "readable", "outside"] {
            fs::create_dir_all(top.join(name)).expect("a directory");
            fs::write(top.join(name).join("note"), name).expect("a file");
        }
        let place = top.clone();
        let outcome = std::thread::spawn(move || {
            let (served, readable) =
                (File::open(place.join("served")).expect("it"), File::open(place.join("readable")).expect("it"));
            give_up_rights().expect("no rights");
            let has_landlock = only_beneath(&[(served.as_fd(), false), (readable.as_fd(), true)]).expect("it");
            only_calls(CALLS).expect("it");
            let denied =
                |result: std::io::Result<()>| result.expect_err("it is refused").kind() == std::io::ErrorKind::PermissionDenied;
            assert!(denied(std::process::Command::new("/bin/true").status().map(drop)));
            assert!(denied(UnixStream::connect("/run/none").map(drop)));
            assert!(denied(std::net::TcpListener::bind("127.0.0.1:0").map(drop)));
            assert_eq!(fs::read_to_string(place.join("readable/note")).expect("it"), "readable");
            fs::write(place.join("served/new"), "new").expect("it");
            let moved =
                rustix::fs::renameat(rustix::fs::CWD, place.join("served/new"), rustix::fs::CWD, place.join("served/deep/new"));
            assert_eq!(moved, Ok(()));
            if has_landlock {
                assert!(denied(fs::read(place.join("outside/note")).map(drop)));
                assert!(denied(fs::read("/etc/passwd").map(drop)));
                assert!(denied(fs::write(place.join("readable/new"), "no")));
                assert!(denied(OpenOptions::new().write(true).open(place.join("readable/note")).map(drop)));
                assert!(denied(fs::write(place.join("outside/new"), "no")));
            }
            has_landlock
        })
        .join();
        fs::remove_dir_all(&top).expect("it is gone");
        let has_landlock = outcome.expect("it ran");
        let version = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
        assert!(has_landlock || !version.contains("landlock"), "a kernel with Landlock is used");
    }
}
