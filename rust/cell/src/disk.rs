//! The private layer in a file of its own size: an ext4, mounted through a loop device that goes with the
//! mount, which goes with the last process. It is full when it is full, whatever the host has left. And the image
//! in a file, a squashfs, through one device for all sandboxes that have it: the host keeps in memory once what they read.
use crate::options::Access;
use crate::sys::{self, Through};
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Others look for a free device at the same time.
const ATTEMPTS: usize = 64;
/// A sandbox that has just ended: its processes are gone before the kernel has let go of its mount.
const IN_USE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A loop device that shows a file, for as long as it is held or mounted.
pub struct Attached {
    path: PathBuf,
    held: File,
}

/// What fails here is the file system's own fault.
pub fn open(device: Attached, at: &Path, directories: [(&Path, u32); 2]) -> io::Result<()> {
    sys::mount_ext4(&device.path, at, Access::ReadWrite)?;
    drop(device.held); // from here on the mount holds it
    directories.into_iter().try_for_each(|(directory, mode)| make(directory, mode))
}

/// Who writes has it alone; several may read it.
pub fn mount(file: &Path, at: &Path, access: Access) -> Result<(), String> {
    let device = match access {
        Access::ReadWrite => attach_alone(file)?,
        Access::ReadOnly => {
            attach(file, access, Through::Itself).map_err(|error| cannot("attach a loop device to", file, &error))?
        }
    };
    sys::mount_ext4(&device.path, at, access).map_err(|error| cannot("mount", file, &error))?;
    drop(device.held);
    Ok(())
}

pub fn attach_alone(file: &Path) -> Result<Attached, String> {
    await_unused(file).map_err(|error| cannot("use", file, &error))?;
    attach(file, Access::ReadWrite, Through::Itself).map_err(|error| cannot("attach a loop device to", file, &error))
}

/// An image, which many sandboxes have and none writes. Mounts of one device are one file system to the kernel.
pub fn mount_image(file: &Path, at: &Path) -> Result<(), String> {
    let found = shown_already(Path::new("/sys/block"), Path::new("/dev"), file);
    let device = match found {
        Some(device) => device,
        None => {
            attach(file, Access::ReadOnly, Through::Memory).map_err(|error| cannot("attach a loop device to", file, &error))?
        }
    };
    sys::mount_squashfs(&device.path, at).map_err(|error| cannot("mount", file, &error))?;
    drop(device.held);
    Ok(())
}

fn cannot(what: &str, file: &Path, error: &io::Error) -> String {
    format!("cannot {what} {}: {error}", file.display())
}

/// One that is there already is the sandbox's own.
fn make(directory: &Path, mode: u32) -> io::Result<()> {
    match DirBuilder::new().create(directory) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        // The umask, ours from the shim, must not count.
        made => made.and_then(|()| fs::set_permissions(directory, fs::Permissions::from_mode(mode))),
    }
}

/// Two devices over one file would destroy what is in it.
fn await_unused(file: &Path) -> io::Result<()> {
    let until = Instant::now() + IN_USE;
    while is_attached(Path::new("/sys/block"), file)? {
        if Instant::now() > until {
            return Err(io::Error::other("a loop device shows it already"));
        }
        sleep(LOOK_EVERY);
    }
    Ok(())
}

fn is_attached(devices: &Path, file: &Path) -> io::Result<bool> {
    Ok(devices_of(devices, file)?.next().is_some())
}

/// The names of those that show a file of that path, whatever lies there by now.
fn devices_of(devices: &Path, file: &Path) -> io::Result<impl Iterator<Item = OsString>> {
    let wanted = file.to_string_lossy().into_owned();
    Ok(fs::read_dir(devices)?.filter_map(Result::ok).filter_map(move |device| {
        // Only devices that show something have the file.
        let shown = fs::read_to_string(device.path().join("loop/backing_file")).ok()?;
        (shown.trim_end_matches('\n') == wanted).then(|| device.file_name())
    }))
}

/// The device that shows exactly this file to be read, held: from here on it does not go. Any trouble on the way only
/// means that there is none.
fn shown_already(devices: &Path, nodes: &Path, file: &Path) -> Option<Attached> {
    let path = fs::canonicalize(file).ok()?;
    let wanted = fs::metadata(&path).ok()?;
    devices_of(devices, &path).ok()?.find_map(|name| {
        let path = nodes.join(name);
        let held = File::open(&path).ok()?;
        let shown = sys::loop_shows(held.as_raw_fd()).ok()?;
        let is_it = shown.is_read_only && (shown.device, shown.inode) == (wanted.dev(), wanted.ino());
        is_it.then_some(Attached { path, held })
    })
}

fn attach(file: &Path, access: Access, through: Through) -> io::Result<Attached> {
    let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
    let backing = OpenOptions::new().read(true).write(access == Access::ReadWrite).open(file)?;
    let control = open(Path::new("/dev/loop-control"))?;
    let mut last = io::Error::from(ErrorKind::ResourceBusy);
    for _ in 0..ATTEMPTS {
        let path = PathBuf::from(format!("/dev/loop{}", sys::free_loop(control.as_raw_fd())?));
        let device = open(&path)?;
        match sys::attach_loop(device.as_raw_fd(), backing.as_raw_fd(), access, through) {
            Ok(()) => return Ok(Attached { path, held: device }),
            Err(error) if error.kind() == ErrorKind::ResourceBusy => last = error, // somebody was faster
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::is_attached;
    use std::fs;
    use std::path::Path;

    #[test]
    fn a_device_that_shows_the_file_is_seen() {
        let devices = std::env::temp_dir().join(format!("hutch-cell-loops-{}", std::process::id()));
        fs::create_dir_all(devices.join("loop0")).unwrap();
        fs::create_dir_all(devices.join("loop1/loop")).unwrap();
        fs::write(devices.join("loop1/loop/backing_file"), "/data/a disk\n").unwrap();
        assert!(is_attached(&devices, Path::new("/data/a disk")).unwrap());
        assert!(!is_attached(&devices, Path::new("/data/a")).unwrap());
        fs::remove_dir_all(devices).unwrap();
    }
}
