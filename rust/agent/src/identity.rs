//! Who this machine is: applied on a thread by `configure`. Only what differs from the last time is done:
//! a template's machine was configured already, and each first use of a part of the kernel is slow
//! under emulation.
use crate::agent::Place;
use crate::boot_id::BootId;
use crate::clock::set_wall_ms;
use crate::cut::cut_connections;
use crate::directories::{self, Directory};
use crate::etc::{Content, Etc, set_timezone};
use crate::fault::{Fault, describe};
use crate::jobs::lock;
use crate::machine::Nic;
use crate::netlink::Batch;
use crate::root::{Assembly, Disk, grow};
use crate::users::Users;
use crate::volumes::{Volume, attach};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    pub mac: Option<[u8; 6]>,
    pub address: (IpAddr, u8),
    pub gateway: IpAddr,
    pub dns: Vec<IpAddr>,
    pub mtu: Option<u32>,
    pub up: bool,
}

/// What is done to the system, on a thread.
pub struct Identity {
    pub hostname: String,
    pub machine_id: Option<String>,
    /// None: it stays what it is.
    pub boot_id: Option<String>,
    pub clock_ms: Option<u64>,
    /// It goes on from what was written down: what it was connected to knows another machine.
    pub cuts_connections: bool,
    pub entropy: Vec<u8>,
    pub network: Option<Network>,
    pub disk: Option<Disk>,
    pub volumes: Vec<Volume>,
    pub directories: Vec<Directory>,
    /// Who the sandbox's programs run as.
    pub user: Option<String>,
    pub timezone: Option<String>,
    /// Most processes and threads at once; None: nobody bounds them here.
    pub pids: Option<u64>,
    pub hosts: Vec<(IpAddr, String)>,
}

/// What was set last, in this machine or in the template that it comes from: only differences are
/// applied, as each first use of a part of the kernel is slow under emulation.
#[derive(Debug, Clone, Default)]
pub struct Before {
    pub network: Option<Network>,
    pub disk: Option<Disk>,
    pub volumes: Vec<Volume>,
    pub directories: Vec<Directory>,
    pub timezone: Option<String>,
    pub pids: Option<u64>,
}

/// What the thread hands back.
pub struct Applied {
    pub layer: Option<OwnedFd>,
    pub warnings: Vec<String>,
    pub before: Before,
}

/// What of the agent's state the thread needs.
pub struct Scene {
    pub place: Place,
    pub nic: Option<Nic>,
    /// The private layer, once a root is there.
    pub layer: Option<OwnedFd>,
    /// A root is to be put together.
    pub assembly: Option<Assembly>,
    /// For files in memory; None where there is none.
    pub memory: Option<OwnedFd>,
    pub devices: Option<OwnedFd>,
    pub random: Option<OwnedFd>,
    pub etc: Arc<Mutex<Etc>>,
    pub boot_id: Arc<Mutex<BootId>>,
    pub before: Before,
}

pub fn apply(identity: &Identity, scene: Scene) -> Result<Applied, Fault> {
    let mut applied = Applied { layer: None, warnings: Vec::new(), before: scene.before };
    if scene.place == Place::Process {
        // One process among others: the machine is somebody else's.
        return Ok(applied);
    }
    let mut warnings = Vec::new();
    let mut warn = |what: &str, result: Result<(), Errno>| {
        if let Err(errno) = result {
            warnings.push(format!("{what}: {}", describe(errno)));
        }
    };
    if scene.place == Place::Machine {
        warn("entropy", add_entropy(scene.random.as_ref(), &identity.entropy));
        if let Some(ms) = identity.clock_ms {
            warn("clock", set_wall_ms(ms));
        }
    }
    if scene.place == Place::Machine && identity.cuts_connections {
        cut_connections();
    }
    warn("hostname", rustix::system::sethostname(identity.hostname.as_bytes()));
    if scene.place == Place::Machine {
        match (&scene.assembly, &scene.layer, &identity.disk) {
            (Some(assembly), _, disk) => {
                applied.layer = Some(assembly.assemble(disk.as_ref())?);
                lock(&scene.etc).forget();
                applied.before.timezone = None;
            }
            (None, Some(layer), Some(disk)) if applied.before.disk.as_ref() != Some(disk) => {
                let devices = scene.devices.as_ref().ok_or_else(|| Fault::internal("the devices are out of reach"))?;
                grow(disk, devices, layer)?;
            }
            (None, ..) => {}
        }
        applied.before.disk.clone_from(&identity.disk);
        for volume in &identity.volumes {
            if !applied.before.volumes.contains(volume) {
                let devices = scene.devices.as_ref().ok_or_else(|| Fault::internal("the devices are out of reach"))?;
                attach(volume, devices)?;
                applied.before.volumes.push(volume.clone());
            }
        }
        // They are one connection: mounted together, and once.
        if applied.before.directories.is_empty() {
            directories::attach(&identity.directories, owner(identity.user.as_deref()))?;
            applied.before.directories.clone_from(&identity.directories);
        }
        match (&identity.network, &scene.nic) {
            (None, Some(nic)) => {
                if let Some(before) = applied.before.network.take() {
                    warn("network: the template's address", leave_network(&before, nic));
                }
            }
            (None, None) => {}
            (Some(_), None) => warn("network: there is no network device", Err(Errno::NODEV)),
            (Some(network), Some(nic)) => {
                set_network(network, nic, applied.before.network.as_ref(), &mut warn);
                applied.before.network = Some(network.clone());
            }
        }
    }
    if let Some(id) = identity.boot_id.as_ref().filter(|_| scene.place == Place::Machine) {
        warn("boot_id", lock(&scene.boot_id).set(id, scene.memory.as_ref()));
    }
    lock(&scene.etc).write(contents(identity), scene.memory.as_ref(), &mut warn);
    if let Some(zone) = identity.timezone.as_ref().filter(|zone| applied.before.timezone.as_ref() != Some(*zone)) {
        warn("timezone", set_timezone(zone));
        applied.before.timezone = Some(zone.clone());
    }
    if let Some(most) = identity.pids.filter(|most| applied.before.pids != Some(*most)) {
        crate::pids::limit(most)
            .map_err(|errno| Fault::internal(format!("the number of processes cannot be limited: {}", describe(errno))))?;
        applied.before.pids = Some(most);
    }
    applied.warnings = warnings;
    Ok(applied)
}

/// As whom the sandbox's own user sees what is the daemon's on the host.
fn owner(user: Option<&str>) -> (u32, u32) {
    Users::default().resolve(user).map_or((0, 0), |user| (user.uid, user.gid))
}

fn add_entropy(random: Option<&OwnedFd>, bytes: &[u8]) -> Result<(), Errno> {
    let random = random.ok_or(Errno::NODEV)?;
    hutch_sys::add_entropy(random.as_fd(), bytes).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

type Warn<'a> = &'a mut dyn FnMut(&str, Result<(), Errno>);

fn set_network(network: &Network, nic: &Nic, before: Option<&Network>, warn: Warn<'_>) {
    let (address, prefix) = network.address;
    let mut batch = Batch::default();
    let mut parts = Vec::new();
    let same = before.is_some_and(|before| Network { mac: network.mac, ..before.clone() } == *network);
    if let Some(before) = before.filter(|before| before.address != network.address || before.gateway != network.gateway) {
        let (address, prefix) = before.address;
        batch.delete_address(nic.index, address, prefix);
        parts.push("network: the old address");
    }
    if same {
        // A template's machine has all of it already but for the hardware address.
        if let Some(mac) = network.mac.filter(|_| before.is_some_and(|before| before.mac != network.mac)) {
            warn("network: the hardware address", set_mac(&nic.name, mac));
        }
    } else {
        if address.is_ipv6() {
            let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", nic.name), "0");
        }
        batch.link(nic.index, network.mac, network.mtu, Some(network.up));
        batch.add_address(nic.index, address, prefix);
        parts.extend(["network: the link", "network: the address"]);
        if network.up {
            batch.default_route(nic.index, network.gateway);
            parts.push("network: the route");
        }
    }
    if parts.is_empty() {
        return;
    }
    match batch.send() {
        Ok(results) => parts.into_iter().zip(results).for_each(|(part, result)| warn(part, result)),
        Err(errno) => warn("network", Err(errno)),
    }
}

/// With the device's address its routes go: who wants a network hears at once that there is none.
fn leave_network(before: &Network, nic: &Nic) -> Result<(), Errno> {
    let (address, prefix) = before.address;
    let mut batch = Batch::default();
    batch.delete_address(nic.index, address, prefix);
    batch.send()?.into_iter().collect()
}

/// By ioctl: less of the kernel is run for it than by rtnetlink.
fn set_mac(name: &str, mac: [u8; 6]) -> Result<(), Errno> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    hutch_sys::set_hardware_address(socket.as_fd(), name, mac).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// The files of `/etc` that depend on it.
fn contents(identity: &Identity) -> Vec<Content> {
    let name = &identity.hostname;
    let own = match &identity.network {
        Some(network) => network.address.0.to_string(),
        None => "127.0.1.1".to_owned(),
    };
    let mut hosts = format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{own}\t{name}\n");
    for (address, name) in &identity.hosts {
        hosts.push_str(&format!("{address}\t{name}\n"));
    }
    let mut files = vec![("hostname", format!("{name}\n").into_bytes()), ("hosts", hosts.into_bytes())];
    if let Some(network) = &identity.network {
        let lines: String = network.dns.iter().map(|server| format!("nameserver {server}\n")).collect();
        files.push(("resolv.conf", lines.into_bytes()));
    }
    if let Some(id) = &identity.machine_id {
        files.push(("machine-id", format!("{id}\n").into_bytes()));
    }
    files
}
