//! The virtual machine around the agent: what PID 1 sets up at boot (before the template is saved),
//! and the sandbox's root, which is put together when the private disk is there.
use crate::console::say;
use crate::fault::describe;
use crate::memory_guard::InMemory;
use crate::resets::Resets;
use crate::root::{Assembly, Disk, Ground, Superblock};
use rustix::fs::{CWD, Mode, OFlags, mkdirat, open, openat, symlink, syncfs};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::process::{Resource, Rlimit, fchdir, setrlimit, umask};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

pub const BASE: &str = "/base";
/// The devices once more: /dev goes with the root.
pub const DEVICES: &str = "/devices";
const DEVICE_WAIT: Duration = Duration::from_secs(10);
const MODULES: &str = "/lib/modules";

#[derive(Debug, Default)]
pub struct Machine {
    /// A directory of the private layer: for `sync` and for its size.
    pub disk: Option<OwnedFd>,
    /// Where volumes are mounted.
    pub volumes: Vec<String>,
    pub nic: Option<Nic>,
    pub resets: Option<Resets>,
    /// The device of the private layer that is the root now; empty: one in memory.
    root: Option<String>,
    /// Roots that were put together so far.
    roots: u32,
    ground: Option<Ground>,
}

#[derive(Debug, Clone)]
pub struct Nic {
    pub name: String,
    pub index: u32,
}

/// Options of the kernel command line. There is nothing secret in them.
#[derive(Debug)]
pub struct BootOptions {
    pub port: String,
    pub base: String,
}

impl BootOptions {
    pub fn parse(command_line: &str) -> BootOptions {
        let mut options = BootOptions { port: "hutch.agent.0".to_owned(), base: "/dev/vda".to_owned() };
        for word in command_line.split_whitespace() {
            match word.split_once('=') {
                Some(("hutch.port", value)) => options.port = value.to_owned(),
                Some(("hutch.base", value)) => options.base = value.to_owned(),
                _ => {}
            }
        }
        options
    }
}

pub fn make_directory(path: &str) {
    if let Err(errno) = mkdirat(CWD, path, Mode::from_raw_mode(0o755))
        && errno != Errno::EXIST
    {
        say(&format!("{path} cannot be made: {}", describe(errno)));
    }
}

fn mount_at(kind: &str, target: &str, flags: MountFlags, data: &str) {
    make_directory(target);
    let data = std::ffi::CString::new(data).unwrap_or_default();
    if let Err(errno) = mount(kind, target, kind, flags, Some(data.as_c_str())) {
        say(&format!("{kind} cannot be mounted at {target}: {}", describe(errno)));
    }
}

/// Sets up the machine. Nothing here ends the agent: without it there is nobody to say what is missing.
pub fn boot() -> (Machine, BootOptions) {
    umask(Mode::from_raw_mode(0o022));
    let safe = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_at("proc", "/proc", safe, "");
    mount_at("sysfs", "/sys", safe, "");
    mount_at("devtmpfs", "/dev", MountFlags::NOSUID, "mode=0755,size=4m");
    crate::console::to_kernel_log();
    mount_at("devpts", "/dev/pts", MountFlags::NOSUID | MountFlags::NOEXEC, "mode=620,gid=5,ptmxmode=666");
    mount_at("cgroup2", "/sys/fs/cgroup", safe, "");
    for (target, path) in [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ] {
        let _ = symlink(target, path);
    }
    make_directory(BASE);
    mount_at("devtmpfs", DEVICES, MountFlags::NOSUID, "mode=0755,size=4m");
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let options = BootOptions::parse(&command_line);
    load_modules();
    // Now that the modules' files have given their memory back.
    let in_memory = InMemory::of(&fs::read_to_string("/proc/meminfo").unwrap_or_default());
    let tmpfs = |target: &str, mode: &str, kib: u64| {
        mount_at("tmpfs", target, MountFlags::NOSUID | MountFlags::NODEV, &format!("mode={mode},size={kib}k"));
    };
    tmpfs("/dev/shm", "1777", in_memory.shm);
    tmpfs("/run", "755", in_memory.run);
    raise_limits();
    if let Err(errno) = crate::memory_guard::start() {
        say(&format!("the machine has no memory guard: {}", describe(errno)));
    }
    // As in a container: who is not root may ping and bind low ports.
    let _ = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
    let _ = fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    let mut loopback = crate::netlink::Batch::default();
    loopback.link(1, None, None, Some(true));
    if let Err(errno) = loopback.send() {
        say(&format!("the loopback device cannot be set up: {}", describe(errno)));
    }
    if let Err(message) = mount_base(&options.base) {
        say(&message);
    }
    let nic = find_nic();
    if let Some(nic) = &nic {
        raise_nic(nic);
    }
    let resets = nic.as_ref().and_then(Resets::open);
    (Machine { nic, resets, ground: Ground::open(), ..Machine::default() }, options)
}

/// Loads what `/lib/modules/order` lists, in that order, and gives the memory of the files back.
fn load_modules() {
    let order = fs::read_to_string(format!("{MODULES}/order")).unwrap_or_default();
    for name in order.lines().map(str::trim).filter(|name| !name.is_empty() && !name.starts_with('#')) {
        let path = if name.starts_with('/') { name.to_owned() } else { format!("{MODULES}/{name}") };
        let loaded =
            open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).and_then(|fd| rustix::system::finit_module(&fd, c"", 0));
        match loaded {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => say(&format!("module {name} cannot be loaded: {}", describe(errno))),
        }
        let _ = fs::remove_file(&path);
    }
}

fn raise_limits() {
    // What Docker gives. The kernel's 4,096 is too little for databases.
    let files = Rlimit { current: Some(65_536), maximum: Some(1_048_576) };
    let _ = setrlimit(Resource::Nofile, files);
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: None });
}

fn find_nic() -> Option<Nic> {
    let mut names: Vec<String> = fs::read_dir("/sys/class/net")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name != "lo")
        .collect();
    names.sort();
    let name = names.into_iter().next()?;
    let index = fs::read_to_string(format!("/sys/class/net/{name}/ifindex")).ok()?.trim().parse().ok()?;
    Some(Nic { name, index })
}

/// Up, but with no address and no carrier: opening the device fills its queues, which costs time that a
/// restored machine does not have. Without IPv6 it says nothing by itself.
fn raise_nic(nic: &Nic) {
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", nic.name), "1");
    let mut batch = crate::netlink::Batch::default();
    batch.link(nic.index, None, None, Some(true));
    if let Err(errno) = batch.send() {
        say(&format!("{} cannot be set up: {}", nic.name, describe(errno)));
    }
}

/// Waits for a device node; the drivers make it a moment after their module is loaded.
pub fn wait_for(directory: impl AsFd, path: &str) -> Result<OwnedFd, Errno> {
    let deadline = Instant::now() + DEVICE_WAIT;
    loop {
        match openat(&directory, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Err(Errno::NOENT | Errno::NXIO | Errno::NODEV) if Instant::now() < deadline => sleep(Duration::from_millis(2)),
            result => return result,
        }
    }
}

fn mount_base(device: &str) -> Result<(), String> {
    let missing = |errno: Errno| format!("the base image {device}: {}", describe(errno));
    let fd = wait_for(CWD, device).map_err(missing)?;
    let kind = file_system_of(&fd).ok_or_else(|| format!("the base image {device} holds no file system that is known"))?;
    mount(device, BASE, kind, MountFlags::RDONLY | MountFlags::NOATIME, None).map_err(missing)
}

/// By the magic number in the first 2 KiB.
fn file_system_of(device: &OwnedFd) -> Option<&'static str> {
    let mut start = [0; 2048];
    let length = rustix::io::pread(device, &mut start, 0).ok()?;
    let start = start.get(..length)?;
    if start.starts_with(b"hsqs") {
        return Some("squashfs");
    }
    if start.get(1024..)?.starts_with(&0xE0F5_E1E2u32.to_le_bytes()) {
        return Some("erofs");
    }
    Superblock::parse(start).map(|_| "ext4")
}

impl Machine {
    pub fn has_root(&self) -> bool {
        self.root.is_some()
    }

    /// A directory in memory that nobody else sees.
    pub fn memory(&self) -> Option<OwnedFd> {
        self.ground.as_ref().and_then(|ground| rustix::io::fcntl_dupfd_cloexec(&ground.initramfs, 3).ok())
    }

    pub fn devices(&self) -> Option<OwnedFd> {
        self.ground.as_ref().and_then(|ground| rustix::io::fcntl_dupfd_cloexec(&ground.devices, 3).ok())
    }

    pub fn random(&self) -> Option<OwnedFd> {
        self.ground.as_ref().and_then(|ground| rustix::io::fcntl_dupfd_cloexec(&ground.random, 3).ok())
    }

    /// What a thread needs to put a root together; None where the root is on this device already.
    pub fn assembly(&self, disk: Option<&Disk>) -> Option<Assembly> {
        let device = disk.map_or("", |disk| disk.device.as_str());
        if self.root.as_deref() == Some(device) || (self.root.is_some() && disk.is_none()) {
            return None;
        }
        Some(Assembly::new(self.roots, self.ground.as_ref().and_then(Ground::copy)))
    }

    /// The root on `device` stands.
    pub fn adopt(&mut self, device: &str, layer: OwnedFd) {
        self.root = Some(device.to_owned());
        self.roots += 1;
        self.disk = Some(layer);
    }

    /// Writes everything, makes the private layer clean, and ends the machine.
    pub fn power_off(&self) {
        rustix::fs::sync();
        // As with the private layer: the next mount has nothing to replay.
        for target in &self.volumes {
            if let Err(errno) = rustix::mount::mount_remount(target.as_str(), MountFlags::RDONLY, c"") {
                say(&format!("the volume at {target} stays writable to the end: {}", describe(errno)));
            }
        }
        if let Some(disk) = &self.disk
            && fchdir(disk).is_ok()
        {
            let _ = syncfs(disk);
            // Read-only, the journal is empty: the next start has nothing to replay.
            if let Err(errno) = rustix::mount::mount_remount(".", MountFlags::RDONLY, c"") {
                say(&format!("the disk stays writable to the end: {}", describe(errno)));
            }
        }
        let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_come_from_the_command_line_and_have_defaults() {
        let options = BootOptions::parse("console=ttyS0 quiet hutch.port=x.y.0 hutch.other=1 -- hutch.base=/dev/vdc");
        assert_eq!((options.port.as_str(), options.base.as_str()), ("x.y.0", "/dev/vdc"));
        assert_eq!(BootOptions::parse("").port, "hutch.agent.0");
    }
}
