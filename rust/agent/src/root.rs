//! The sandbox's root: the private disk joined with the base, made the root of everything.
use crate::fault::Fault;
use crate::machine::{BASE, DEVICES, make_directory, wait_for};
use rustix::fs::{CWD, Mode, OFlags, mkdirat, open};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, mount, mount_move, move_mount};
use rustix::process::{chdir, chroot, fchdir};
use std::os::fd::{AsFd, OwnedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

const DISK: &str = "/disk";
const ROOT: &str = "/newroot";
/// What is moved from one root to the next.
const SYSTEM: [&str; 4] = ["/proc", "/sys", "/dev", "/run"];
/// How long a device may take to get the size that the host gave it.
const SIZE_WAIT: Duration = Duration::from_secs(10);

/// The initramfs and the system's file systems, by descriptors: the way back when another disk is to
/// become the root.
#[derive(Debug)]
pub struct Ground {
    pub initramfs: OwnedFd,
    pub devices: OwnedFd,
    /// Open for writing: to reseed the kernel's generator.
    pub random: OwnedFd,
    system: Vec<OwnedFd>,
}

impl Ground {
    pub fn open() -> Option<Ground> {
        let place = |path: &str| open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok();
        let random = open("/dev/urandom", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        Some(Ground {
            initramfs: place("/")?,
            devices: place(DEVICES)?,
            random,
            system: SYSTEM.iter().map(|path| place(path)).collect::<Option<_>>()?,
        })
    }

    pub fn copy(&self) -> Option<Ground> {
        let copy = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 3).ok();
        Some(Ground {
            initramfs: copy(&self.initramfs)?,
            devices: copy(&self.devices)?,
            random: copy(&self.random)?,
            system: self.system.iter().map(copy).collect::<Option<_>>()?,
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    pub device: String,
    pub bytes: u64,
}

impl Disk {
    /// Below /dev.
    fn name(&self) -> &str {
        self.device.strip_prefix("/dev/").unwrap_or(&self.device)
    }
}

pub struct Assembly {
    number: u32,
    ground: Option<Ground>,
}

fn failed(what: &str) -> impl Fn(Errno) -> Fault {
    move |errno| Fault { code: "internal", ..Fault::system(what, errno) }
}

/// What is on the disk is not what it must be: no fault of ours, and trying again does not help. The host adds what does.
fn unusable(disk: &Disk, done: &str, errno: Errno) -> Fault {
    Fault { code: "failed_precondition", ..Fault::system(&format!("the disk {} cannot be {done}", disk.device), errno) }
}

impl Assembly {
    /// `number`: how many roots there were before.
    pub fn new(number: u32, ground: Option<Ground>) -> Assembly {
        Assembly { number, ground }
    }

    /// Mounts the private disk, grows it, joins it with the base and makes that the root of everything,
    /// this process included. Called on a thread; the mounts are the whole process's. When it fails the
    /// root is what it was.
    pub fn assemble(&self, disk: Option<&Disk>) -> Result<OwnedFd, Fault> {
        if self.number == 0 {
            return self.assemble_here(disk);
        }
        let ground = self.ground.as_ref().ok_or_else(|| Fault::internal("the way back to the initramfs is lost"))?;
        let before = open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(failed("/"))?;
        enter(&ground.initramfs).map_err(failed("the initramfs"))?;
        let result = self.assemble_here(disk);
        if result.is_err() {
            enter(&before).map_err(failed("the root before"))?;
        }
        result
    }

    fn assemble_here(&self, disk: Option<&Disk>) -> Result<OwnedFd, Fault> {
        let numbered = |path: &str| if self.number == 0 { path.to_owned() } else { format!("{path}{}", self.number) };
        let (layer_path, root) = (numbered(DISK), numbered(ROOT));
        make_directory(&layer_path);
        make_directory(&root);
        match disk {
            Some(disk) => mount_disk(disk, &layer_path)?,
            // Without a disk what is written stays in memory.
            None => {
                mount("tmpfs", layer_path.as_str(), "tmpfs", MountFlags::empty(), Some(c"mode=755")).map_err(failed("tmpfs"))?
            }
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // A file system that could be mounted may still be damaged further in.
        let layered = |errno: Errno| match disk {
            Some(disk) => unusable(disk, "used", errno),
            None => failed("the private layer")(errno),
        };
        let layer = open(layer_path.as_str(), flags, Mode::empty()).map_err(layered)?;
        if let Some(disk) = disk {
            let devices = open(DEVICES, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
            grow(disk, &devices.map_err(failed(DEVICES))?, &layer)?;
        }
        for name in ["upper", "work"] {
            match mkdirat(&layer, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(layered(errno)),
            }
        }
        mount_overlay(&layer_path, &root).map_err(layered)?;
        self.move_system(&root)?;
        chdir(root.as_str()).map_err(failed(&root))?;
        mount_move(".", "/").map_err(failed("the new root"))?;
        chroot(".").map_err(failed("the new root"))?;
        chdir("/").map_err(failed("the new root"))?;
        Ok(layer)
    }

    fn move_system(&self, root: &str) -> Result<(), Fault> {
        for (index, name) in SYSTEM.into_iter().enumerate() {
            let target = format!("{root}{name}");
            // From wherever it is mounted now: in the initramfs, or in the root before.
            let fd = self.ground.as_ref().and_then(|ground| ground.system.get(index));
            let go = || match fd {
                Some(fd) => move_mount(fd, "", CWD, target.as_str(), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH),
                None => mount_move(name, target.as_str()),
            };
            go().or_else(|_| {
                make_directory(&target);
                go()
            })
            .map_err(failed(name))?;
        }
        Ok(())
    }
}

fn enter(root: &OwnedFd) -> Result<(), Errno> {
    fchdir(root)?;
    chroot(".")
}

fn mount_overlay(layer: &str, root: &str) -> Result<(), Errno> {
    let plain = format!("lowerdir={BASE},upperdir={layer}/upper,workdir={layer}/work");
    // A directory of the base can be renamed only with redirects; the private layer is ours alone.
    let redirected = format!("{plain},redirect_dir=on");
    let go = |options: String| {
        let options = std::ffi::CString::new(options).map_err(|_| Errno::INVAL)?;
        mount("overlay", root, "overlay", MountFlags::NOATIME, Some(options.as_c_str()))
    };
    go(redirected).or_else(|_| go(plain))
}

fn mount_disk(disk: &Disk, target: &str) -> Result<(), Fault> {
    // Lazy initialisation would write zeros into a sparse file for nothing, and the prefetch read all
    // bitmaps at the very moment when the first command wants the CPU.
    let quiet = c"noinit_itable,no_prefetch_block_bitmaps";
    let device = format!("{DEVICES}/{}", disk.name());
    let device = device.as_str();
    wait_for(CWD, device).map_err(failed(&disk.device))?;
    mount(device, target, "ext4", MountFlags::NOATIME, Some(quiet))
        .or_else(|errno| match errno {
            // A kernel that lacks one of the options.
            Errno::INVAL => mount(device, target, "ext4", MountFlags::NOATIME, None),
            errno => Err(errno),
        })
        .map_err(|errno| unusable(disk, "mounted", errno))
}

/// Waits until the device has the size that the host gave it, and grows the file system to it.
pub fn grow(disk: &Disk, devices: &OwnedFd, layer: &OwnedFd) -> Result<(), Fault> {
    let failed = |errno: Errno| unusable(disk, "grown", errno);
    let device = wait_for(devices, disk.name()).map_err(failed)?;
    let deadline = Instant::now() + SIZE_WAIT;
    let bytes = loop {
        let bytes = hutch_sys::block_device_bytes(device.as_fd())
            .map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        if bytes >= disk.bytes {
            break bytes;
        }
        if Instant::now() >= deadline {
            return Err(Fault::failed_precondition(format!(
                "the disk {} has {bytes} bytes and should have {}",
                disk.device, disk.bytes
            )));
        }
        sleep(Duration::from_millis(1));
    };
    let mut start = [0; 2048];
    let length = rustix::io::pread(&device, &mut start, 0).map_err(failed)?;
    let Some(superblock) = start.get(..length).and_then(Superblock::parse) else { return Ok(()) };
    let blocks = bytes / superblock.block_bytes;
    if blocks <= superblock.blocks {
        return Ok(());
    }
    hutch_sys::resize_ext4(layer.as_fd(), blocks).map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))
}

#[derive(Debug, PartialEq, Eq)]
pub struct Superblock {
    blocks: u64,
    block_bytes: u64,
}

impl Superblock {
    /// From the first 2 KiB of the device.
    pub fn parse(start: &[u8]) -> Option<Superblock> {
        let block = start.get(1024..2048)?;
        let u32_at = |at: usize| block.get(at..)?.first_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes));
        if block.get(0x38..0x3a)? != [0x53, 0xef] {
            return None;
        }
        let incompatible = u32_at(0x60)?;
        let high = if incompatible & 0x80 == 0 { 0 } else { u32_at(0x150)? };
        let shift = u32_at(0x18).filter(|shift| *shift <= 6)?;
        Some(Superblock { blocks: u64::from(high) << 32 | u64::from(u32_at(0x4)?), block_bytes: 1024 << shift })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_an_ext4_is_read_from_its_superblock() {
        let mut start = vec![0; 2048];
        assert_eq!(Superblock::parse(&start), None);
        start[1024 + 0x38..1024 + 0x3a].copy_from_slice(&[0x53, 0xef]);
        start[1024 + 0x4..1024 + 0x8].copy_from_slice(&4096u32.to_le_bytes());
        start[1024 + 0x18] = 2;
        assert_eq!(Superblock::parse(&start), Some(Superblock { blocks: 4096, block_bytes: 4096 }));
        start[1024 + 0x60] = 0x80;
        start[1024 + 0x150] = 1;
        assert_eq!(Superblock::parse(&start), Some(Superblock { blocks: (1 << 32) + 4096, block_bytes: 4096 }));
        assert_eq!(Superblock::parse(&start[..1500]), None);
    }
}
