//! `configure`: makes a machine that was restored from a template into this one sandbox. All of it by
//! system calls, no program is started: it stands between the restore and the first command.
use crate::agent::Agent;
use crate::boot_id::is_boot_id;
use crate::directories::Directory;
use crate::fault::{Fault, Outcome};
use crate::identity::{Applied, Identity, Network, Scene, apply};
use crate::jobs::Ticket;
use crate::netlink::{parse_address, parse_mac};
use crate::root::Disk;
use crate::settings::DEFAULT_PATH;
use crate::volumes::Volume;
use crate::wire::fields::{Fields, bytes_of};
use crate::wire::value::Value;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::time::Instant;

const NAME_CHARS_MAX: usize = 64;
const DNS_MAX: usize = 8;
const HOSTS_MAX: usize = 256;
const PIDS_MAX: u64 = 1 << 22;
const VOLUMES_MAX: usize = 16;
const DIRECTORIES_MAX: usize = 64;

fn name_like(text: &str) -> bool {
    (1..=253).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
}

fn parse_network(p: Fields<'_>) -> Result<Network, Fault> {
    let wrong = |field: &str, wanted: &str| Fault::invalid_argument(format!("network.{field} must be {wanted}"));
    let ip = |field: &str, text: &str| text.parse::<IpAddr>().map_err(|_| wrong(field, "an IP address"));
    let mac = p.opt_str("mac")?.map(|mac| parse_mac(mac).ok_or_else(|| wrong("mac", "like 52:54:00:12:34:56"))).transpose()?;
    let dns = p.opt_list("dns")?.unwrap_or_default();
    if dns.len() > DNS_MAX {
        return Err(wrong("dns", &format!("at most {DNS_MAX} addresses")));
    }
    let dns = dns.into_iter().map(|text| ip("dns", &String::from_utf8_lossy(text))).collect::<Result<_, _>>()?;
    Ok(Network {
        mac,
        address: parse_address(p.str("address")?).ok_or_else(|| wrong("address", "like 10.0.2.15/24"))?,
        gateway: ip("gateway", p.str("gateway")?)?,
        dns,
        mtu: p.opt_in("mtu", 68, 65_535)?.and_then(|mtu| u32::try_from(mtu).ok()),
        up: p.bool_or("up", true)?,
    })
}

fn parse_volume(volume: &Value) -> Result<Volume, Fault> {
    let Value::Map(_) = volume else { return Err(Fault::invalid_argument("volumes must be maps")) };
    let p = Fields(volume);
    let name = p.str("device")?.strip_prefix("/dev/").filter(|name| name_like(name));
    Ok(Volume {
        name: name.ok_or_else(|| Fault::invalid_argument("volumes.device must lie in /dev"))?.to_owned(),
        target: parse_target("volumes", p)?,
        read_only: p.bool_or("readOnly", false)?,
    })
}

fn parse_directory(directory: &Value) -> Result<Directory, Fault> {
    let Value::Map(_) = directory else { return Err(Fault::invalid_argument("directories must be maps")) };
    let p = Fields(directory);
    Ok(Directory { target: parse_target("directories", p)?, read_only: p.bool_or("readOnly", false)? })
}

fn parse_target(what: &str, p: Fields<'_>) -> Result<String, Fault> {
    let target = p.str("target")?;
    if !target.starts_with('/') || target.split('/').any(|part| part == "..") {
        return Err(Fault::invalid_argument(format!("{what}.target must be an absolute path without ..")));
    }
    Ok(target.to_owned())
}

fn parse_identity(p: Fields<'_>) -> Result<Identity, Fault> {
    let hostname = p.str("hostname")?;
    if hostname.len() > NAME_CHARS_MAX || !name_like(hostname) {
        return Err(Fault::invalid_argument(format!("hostname must be 1 to {NAME_CHARS_MAX} of letters, digits, . - _")));
    }
    let machine_id = p.opt_str("machineId")?;
    if machine_id.is_some_and(|id| id.len() != 32 || !id.bytes().all(|byte| byte.is_ascii_hexdigit())) {
        return Err(Fault::invalid_argument("machineId must be 32 hex digits"));
    }
    let boot_id = p.opt_str("bootId")?;
    if boot_id.is_some_and(|id| !is_boot_id(id)) {
        return Err(Fault::invalid_argument("bootId must be like 0e4b4a3c-7f04-4b15-9d0c-4c1a2a3b4c5d, in lower case"));
    }
    let entropy = match p.get("entropy") {
        Some(Value::Bin(bytes)) if (32..=hutch_sys::ENTROPY_BYTES_MAX).contains(&bytes.len()) => bytes.clone(),
        _ => return Err(Fault::invalid_argument("entropy must be 32 to 512 bytes")),
    };
    let disk = match p.opt_fields("disk")? {
        None => None,
        Some(disk) if disk.str("mount")? == "overlay" => {
            let device = disk.str("device")?;
            if !device.starts_with("/dev/") {
                return Err(Fault::invalid_argument("disk.device must lie in /dev"));
            }
            Some(Disk { device: device.to_owned(), bytes: disk.u64("sizeBytes")? })
        }
        Some(_) => return Err(Fault::invalid_argument("disk.mount must be \"overlay\"")),
    };
    let mut volumes = Vec::new();
    for volume in p.opt_array("volumes")?.unwrap_or_default() {
        volumes.push(parse_volume(volume)?);
        if volumes.len() > VOLUMES_MAX {
            return Err(Fault::invalid_argument(format!("volumes must be at most {VOLUMES_MAX}")));
        }
    }
    let mut directories = Vec::new();
    for directory in p.opt_array("directories")?.unwrap_or_default() {
        directories.push(parse_directory(directory)?);
        if directories.len() > DIRECTORIES_MAX {
            return Err(Fault::invalid_argument(format!("directories must be at most {DIRECTORIES_MAX}")));
        }
    }
    let timezone = p.opt_str("timezone")?;
    if timezone.is_some_and(|zone| zone.starts_with('/') || zone.split('/').any(|part| part.is_empty() || part == "..")) {
        return Err(Fault::invalid_argument("timezone must be a name like Europe/Berlin"));
    }
    let mut hosts = Vec::new();
    for pair in p.opt_array("hosts")?.unwrap_or_default() {
        let wrong = || Fault::invalid_argument(format!("hosts must be at most {HOSTS_MAX} pairs of an address and a name"));
        let Value::Array(pair) = pair else { return Err(wrong()) };
        let [address, name] = pair.as_slice() else { return Err(wrong()) };
        let text = |value| bytes_of("hosts", value).map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        let (address, name) = (text(address)?.parse().map_err(|_| wrong())?, text(name)?);
        if !name_like(&name) || hosts.len() >= HOSTS_MAX {
            return Err(wrong());
        }
        hosts.push((address, name));
    }
    Ok(Identity {
        hostname: hostname.to_owned(),
        machine_id: machine_id.map(str::to_lowercase),
        boot_id: boot_id.map(str::to_owned),
        clock_ms: p.opt_u64("clockMs")?,
        cuts_connections: p.bool_or("cutConnections", false)?,
        entropy,
        network: p.opt_fields("network")?.map(parse_network).transpose()?,
        disk,
        volumes,
        directories,
        user: p.opt_str("user")?.map(str::to_owned),
        timezone: timezone.map(str::to_owned),
        pids: p.opt_in("pids", 1, PIDS_MAX)?,
        hosts,
    })
}

impl Agent {
    pub fn configure(&mut self, ticket: Ticket, p: Fields<'_>) -> Result<(), Fault> {
        let started = Instant::now();
        let generation = p.str("generation")?;
        if self.settings.generation.as_deref() == Some(generation) {
            let answer = self.configured.clone();
            self.finish(ticket, &Ok(answer));
            return Ok(());
        }
        if self.configuring {
            return Err(Fault::unavailable("the sandbox is being configured"));
        }
        let identity = parse_identity(p)?;
        let mut settings = crate::settings::Settings { generation: Some(generation.to_owned()), ..Default::default() };
        settings.hostname.clone_from(&identity.hostname);
        let own = |pairs: Vec<(&str, &[u8])>| pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_vec())).collect();
        settings.env = own(p.environment("env")?);
        settings.secrets = own(p.environment("secrets")?);
        settings.user = p.opt_str("user")?.map(str::to_owned);
        settings.workdir = p.opt_bytes("workdir")?.map(<[u8]>::to_vec);
        settings.default_path = p.opt_str("defaultPath")?.unwrap_or(DEFAULT_PATH).to_owned();
        if let Some(log) = p.opt_fields("log")? {
            settings.log_bytes_max = log.opt_in("bytesMax", 4096, 1 << 40)?.unwrap_or(settings.log_bytes_max);
            let files = log.opt_in("files", 1, 1000)?.and_then(|files| usize::try_from(files).ok());
            settings.log_files = files.unwrap_or(settings.log_files);
        }
        let scene = Scene {
            place: self.place,
            nic: self.machine.nic.clone(),
            layer: self.layer_copy(),
            assembly: self.machine.assembly(identity.disk.as_ref()),
            memory: self.machine.memory(),
            devices: self.machine.devices(),
            random: self.machine.random(),
            etc: self.etc.clone(),
            boot_id: self.boot_id.clone(),
            before: self.before.clone(),
        };
        let looks = p.bool_or("look", false)?;
        let device = identity.disk.as_ref().map_or(String::new(), |disk| disk.device.clone());
        let notes = self.notes.clone();
        self.configuring = true;
        let began = self.pool.run(move || {
            let result = apply(&identity, scene);
            let found = if looks { crate::found::look() } else { Value::Nil };
            notes.post(move |agent| agent.applied(ticket, settings, &device, result.map(|applied| (applied, found)), started));
        });
        if began.is_err() {
            self.configuring = false;
        }
        began
    }

    /// As docker does: a working directory that the image lacks is made. Where it cannot be, the process says so.
    fn make_working_directory(&self) {
        let Some(workdir) = self.settings.workdir.as_deref().filter(|path| path.starts_with(b"/")) else { return };
        let _ = std::fs::create_dir_all(std::ffi::OsStr::from_bytes(workdir));
    }

    fn layer_copy(&self) -> Option<OwnedFd> {
        self.machine.disk.as_ref().and_then(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 3).ok())
    }

    fn applied(
        &mut self,
        ticket: Ticket,
        settings: crate::settings::Settings,
        device: &str,
        result: Result<(Applied, Value), Fault>,
        started: Instant,
    ) {
        self.configuring = false;
        let outcome: Outcome = result.map(|(applied, found)| {
            self.settings = settings;
            self.make_working_directory();
            self.machine.volumes = applied.before.volumes.iter().map(|volume| volume.target.clone()).collect();
            self.before = applied.before;
            if let Some(layer) = applied.layer {
                self.machine.adopt(device, layer);
            }
            let took = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            let warnings = applied.warnings.iter().map(|warning| warning.as_str().into()).collect();
            self.configured = Value::map([("tookMs", took.into()), ("warnings", Value::Array(warnings)), ("found", found)]);
            self.configured.clone()
        });
        self.finish(ticket, &outcome);
    }
}
