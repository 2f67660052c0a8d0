//! The two calls that `rustix` lacks: Landlock and a filter of system calls. All of this program's `unsafe`.
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

// From <linux/landlock.h>. Bits by the version of its interface: 1 has the first thirteen, 2 moving between directories, 3 `truncate`, 5 ioctl of devices.
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const REMOVE_DIR: u64 = 1 << 4;
const REMOVE_FILE: u64 = 1 << 5;
const MAKE_DIR: u64 = 1 << 7;
const MAKE_REG: u64 = 1 << 8;
const MAKE_SOCK: u64 = 1 << 9;
const MAKE_FIFO: u64 = 1 << 10;
const MAKE_SYM: u64 = 1 << 12;
const FIRST: u64 = (1 << 13) - 1;
const REFER: u64 = 1 << 13;
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEV: u64 = 1 << 15;

const READS: u64 = READ_FILE | READ_DIR;
/// No programs are started, no devices made.
const WRITES: u64 =
    WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SOCK | MAKE_FIFO | MAKE_SYM | REFER | TRUNCATE;

const VERSION_ONLY: u32 = 1;
const PATH_BENEATH: u32 = 1;

#[repr(C)]
struct Ruleset {
    handled_fs: u64,
    /// TCP, from version 4 on.
    handled_net: u64,
    /// Abstract sockets and signals of others, from version 6 on.
    scoped: u64,
}

#[repr(C, packed)]
struct Beneath {
    allowed: u64,
    parent: i32,
}

fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// From here on this thread opens and changes nothing but what is beneath those directories. False where the kernel has no Landlock, or one that
/// knows of no moves between directories and would refuse them all. Takes `no_new_privs`.
pub fn only_beneath(directories: &[(BorrowedFd<'_>, bool)]) -> io::Result<bool> {
    // SAFETY: asks for the version: no attributes are read.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0usize, 0usize, VERSION_ONLY) };
    if version < 2 {
        return Ok(false);
    }
    let handled_fs = FIRST | REFER | if version >= 3 { TRUNCATE } else { 0 } | if version >= 5 { IOCTL_DEV } else { 0 };
    let ruleset = Ruleset { handled_fs, handled_net: if version >= 4 { 3 } else { 0 }, scoped: if version >= 6 { 3 } else { 0 } };
    let size = match version {
        ..4 => 8usize,
        4..6 => 16,
        _ => 24,
    };
    // SAFETY: the kernel reads `size` bytes of a structure that has at least as many.
    let rules = checked(unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const ruleset, size, 0u32) })?;
    let rules = i32::try_from(rules).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: a descriptor that the kernel has just made for us, and nobody else has.
    let rules = unsafe { OwnedFd::from_raw_fd(rules) };
    for (directory, read_only) in directories {
        let allowed = handled_fs & if *read_only { READS } else { READS | WRITES };
        let beneath = Beneath { allowed, parent: directory.as_raw_fd() };
        // SAFETY: both descriptors are open, and the kernel reads a structure of its own layout.
        checked(unsafe {
            libc::syscall(libc::SYS_landlock_add_rule, rules.as_raw_fd(), PATH_BENEATH, &raw const beneath, 0u32)
        })?;
    }
    // SAFETY: takes a descriptor and flags.
    checked(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0u32) })?;
    Ok(true)
}

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;
/// Where they lie in `struct seccomp_data`.
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
const LOAD: u16 = 0x20;
const IS: u16 = 0x15;
const ANSWER: u16 = 0x06;
const LET: u32 = 0x7fff_0000;
const KILL: u32 = 0x8000_0000;
const REFUSE: u32 = 0x0005_0000;

/// From here on this thread makes those system calls alone; of others it hears `EPERM`. Takes `no_new_privs`.
pub fn only_calls(calls: &[libc::c_long]) -> io::Result<()> {
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let refused = REFUSE | libc::EPERM.unsigned_abs();
    let mut program = vec![
        step(LOAD, 0, 0, ARCHITECTURE_AT),
        step(IS, 1, 0, ARCHITECTURE),
        step(ANSWER, 0, 0, KILL),
        step(LOAD, 0, 0, NUMBER_AT),
    ];
    for call in calls {
        let number = u32::try_from(*call).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        // Each has its own answer behind it: jumps reach no further than 255 steps.
        program.extend([step(IS, 0, 1, number), step(ANSWER, 0, 0, LET)]);
    }
    program.push(step(ANSWER, 0, 0, refused));
    let len = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let filter = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    // SAFETY: the kernel copies `len` steps of a program that lives until then.
    let done = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) };
    checked(done.into()).map(drop)
}
