//! Volumes: further disks of the machine, each an ext4 that is mounted at a path of its own.
use crate::fault::{Fault, describe};
use crate::machine::wait_for;
use crate::root::{Disk, grow};
use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use std::os::fd::OwnedFd;
use std::path::Path;

const DEVICES: &str = "/dev";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Below /dev.
    pub name: String,
    pub target: String,
    pub read_only: bool,
}

/// Mounts one in the sandbox's root, which is the root of everything by now. Where it is larger than its file system, that grows.
pub fn attach(volume: &Volume, devices: &OwnedFd) -> Result<(), Fault> {
    let Volume { name, target, read_only } = volume;
    let failed = |what: &str, errno: Errno| {
        Fault::failed_precondition(format!("the volume at {target} cannot be used: {what}: {}", describe(errno)))
    };
    let io = |what: &'static str| move |error: std::io::Error| failed(what, Errno::from_io_error(&error).unwrap_or(Errno::IO));
    find_anew(name).map_err(io("its device"))?;
    let device = format!("{DEVICES}/{name}");
    wait_for(CWD, &device).map_err(|errno| failed("its device", errno))?;
    std::fs::create_dir_all(target).map_err(io("the directory that it is mounted at"))?;
    // Of one that is only read nothing is written: a journal that has something in it stays as it is.
    let (flags, options) =
        if *read_only { (MountFlags::RDONLY | MountFlags::NOATIME, c"noload") } else { (MountFlags::NOATIME, c"noinit_itable") };
    let flags = flags | MountFlags::NOSUID | MountFlags::NODEV;
    mount(device.as_str(), target.as_str(), "ext4", flags, Some(options))
        .map_err(|errno| failed("its file system cannot be mounted", errno))?;
    if *read_only {
        return Ok(());
    }
    let top = open(target.as_str(), OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    grow(&Disk { device, bytes: 0 }, devices, &top.map_err(|errno| failed("it", errno))?)
}

/// The machine was saved with nothing there: its driver looks at the device once more, and finds its size and whether it can be
/// written.
fn find_anew(name: &str) -> std::io::Result<()> {
    let device = std::fs::read_link(format!("/sys/block/{name}/device"))?;
    let id = device.file_name().ok_or(std::io::ErrorKind::NotFound)?.to_owned();
    let driver = Path::new("/sys/bus/virtio/drivers/virtio_blk");
    std::fs::write(driver.join("unbind"), id.as_encoded_bytes())?;
    std::fs::write(driver.join("bind"), id.as_encoded_bytes())
}
