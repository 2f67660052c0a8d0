//! Whether the kernel in user space keeps to a limit of processes. gVisor's 20240729 charges a new one to whichever of a program's
//! cgroups it comes to first, of seven hierarchies of which one has the limit: six of seven that should be refused are not.
use crate::sys::{self, Forked};
use std::fs::{OpenOptions, create_dir};
use std::io::{self, Write};
use std::path::Path;

/// A directory that every sandbox has, and that nothing else is looked for in.
const PLACE: &str = "/sys";
/// That many are refused by accident once in 10^27.
const TRIES: u32 = 32;

/// Not where it cannot be tried. Leaves this process limited.
pub fn is_limited() -> bool {
    tried().unwrap_or_else(|why| {
        eprintln!("whether it keeps to a limit of processes cannot be tried: {why}");
        false
    })
}

fn tried() -> io::Result<bool> {
    let place = Path::new(PLACE);
    sys::mount_pids(place)?;
    let group = place.join("look");
    create_dir(&group)?;
    put(&group.join("cgroup.procs"), &std::process::id().to_string())?;
    put(&group.join("pids.max"), "1")?;
    for _ in 0..TRIES {
        match sys::fork() {
            Ok(Forked::Child) => std::process::exit(0),
            Ok(Forked::Parent(child)) => return sys::reap(child).and(Ok(false)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Neither made nor emptied: it is a file of the kernel's.
fn put(path: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}
