//! How many processes and threads there may be at once, where the kernel that counts them is the sandbox's own: a
//! cgroup of it, which the agent and so all that it starts is in. Who is root inside may lift it; what bounds him is what
//! the sandbox has on the host.
use crate::machine::make_directory;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, unlinkat};
use rustix::io::{Errno, write};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::os::fd::IntoRawFd;

/// Where the hierarchy is for a moment: a directory in memory.
const PLACE: &str = "/run/hutch-pids";
const GROUP: &str = "/run/hutch-pids/sandbox";

/// At most `most` from now on, the agent's own among them.
pub fn limit(most: u64) -> Result<(), Errno> {
    make_directory(PLACE);
    let result = mount_hierarchy().and_then(|version| {
        let result = join(version, most).and_then(|()| hold(version));
        unmount(PLACE, UnmountFlags::DETACH).and(result)
    });
    let _ = unlinkat(CWD, PLACE, AtFlags::REMOVEDIR);
    result
}

#[derive(Clone, Copy)]
enum Version {
    One,
    Two,
}

fn mount_hierarchy() -> Result<Version, Errno> {
    let safe = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    match mount("cgroup2", PLACE, "cgroup2", safe, None) {
        Ok(()) => Ok(Version::Two),
        // gVisor's kernel has the older one alone.
        Err(Errno::NODEV | Errno::INVAL) => mount("cgroup", PLACE, "cgroup", safe, Some(c"pids")).map(|()| Version::One),
        Err(errno) => Err(errno),
    }
}

fn join(version: Version, most: u64) -> Result<(), Errno> {
    if matches!(version, Version::Two) {
        put(&format!("{PLACE}/cgroup.subtree_control"), "+pids")?;
    }
    make_directory(GROUP);
    put(&format!("{GROUP}/pids.max"), &most.to_string())?;
    // Of all its threads.
    put(&format!("{GROUP}/cgroup.procs"), &std::process::id().to_string())
}

/// gVisor's kernel forgets a hierarchy that nobody has open or mounted, limits and all: this one stays open as long as we run.
fn hold(version: Version) -> Result<(), Errno> {
    if matches!(version, Version::One) {
        let _ = openat(CWD, GROUP, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?.into_raw_fd();
    }
    Ok(())
}

fn put(path: &str, value: &str) -> Result<(), Errno> {
    let file = openat(CWD, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    write(&file, value.as_bytes()).map(drop)
}
