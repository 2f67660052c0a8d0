//! Who listens in the sandbox: the kernel's tables, and the processes that hold the sockets.
use crate::agent::Agent;
use crate::fault::{Fault, Outcome};
use crate::jobs::{Cancelled, JobPort, Ticket};
use crate::kernel::Kernel;
use crate::stream::Kind;
use crate::wire::value::Value;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

const POLL: Duration = Duration::from_millis(500);
/// So many listening ports are told at most: the reply is one frame.
const PORTS_MAX: usize = 512;
/// Of the kernel's tables, what is looked at.
const LISTED_MAX: usize = 4_096;
const TCP_LISTEN: &str = "0A";
const UDP_UNCONNECTED: &str = "07";

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    protocol: &'static str,
    address: IpAddr,
    port: u16,
}

/// Port and the inode of its socket.
pub fn parse_table(protocol: &'static str, text: &str) -> Vec<(Port, u64)> {
    let listening = if protocol == "tcp" { TCP_LISTEN } else { UDP_UNCONNECTED };
    text.lines()
        .skip(1)
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (address, port) = words.get(1)?.split_once(':')?;
            if *words.get(3)? != listening {
                return None;
            }
            let port = u16::from_str_radix(port, 16).ok().filter(|port| *port > 0)?;
            Some((Port { protocol, address: parse_address(address)?, port }, words.get(9)?.parse().ok()?))
        })
        .take(LISTED_MAX)
        .collect()
}

/// Words of 32 bits in hexadecimal, each in the machine's order of bytes.
fn parse_address(text: &str) -> Option<IpAddr> {
    let words: Vec<[u8; 4]> = (0..text.len() / 8)
        .map(|word| u32::from_str_radix(text.get(word * 8..word * 8 + 8)?, 16).ok().map(u32::to_ne_bytes))
        .collect::<Option<_>>()?;
    match (text.len(), words.as_slice()) {
        (8, [word]) => Some(Ipv4Addr::from(*word).into()),
        (32, words) => {
            let octets: [u8; 16] = words.concat().try_into().ok()?;
            let address = Ipv6Addr::from(octets);
            Some(address.to_ipv4_mapped().map_or(address.into(), IpAddr::from))
        }
        _ => None,
    }
}

fn listening(kernel: &Kernel) -> BTreeMap<Port, u64> {
    let tables = [("tcp", "net/tcp"), ("tcp", "net/tcp6"), ("udp", "net/udp"), ("udp", "net/udp6")];
    let all = tables.into_iter().flat_map(|(protocol, path)| parse_table(protocol, &kernel.proc(path).unwrap_or_default()));
    all.take(PORTS_MAX).collect()
}

/// Pid and name of whoever holds one of the sockets. A look at every process: only done for new ones.
fn owners(kernel: &Kernel, wanted: &HashSet<u64>) -> HashMap<u64, (i32, String)> {
    let mut found = HashMap::new();
    if wanted.is_empty() {
        return found;
    }
    for pid in kernel.pids() {
        let Ok(descriptors) = kernel.proc_directory(&format!("{pid}/fd")) else { continue };
        for entry in descriptors.flatten() {
            let Ok(number) = entry.file_name().to_str() else { continue };
            let link = kernel.proc_link(&format!("{pid}/fd/{number}")).unwrap_or_default();
            let link = String::from_utf8_lossy(&link);
            let inode = link.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')?.parse().ok());
            if let Some(inode) = inode.filter(|inode| wanted.contains(inode)) {
                let name = kernel.proc(&format!("{pid}/comm")).unwrap_or_default();
                found.entry(inode).or_insert_with(|| (pid, name.trim_end().to_owned()));
            }
        }
        if found.len() == wanted.len() {
            break;
        }
    }
    found
}

fn describe(port: &Port, owner: Option<&(i32, String)>) -> Value {
    Value::map([("protocol", port.protocol.into()), ("address", port.address.to_string().into()), ("port", port.port.into())])
        .with("pid", owner.map(|(pid, _)| (*pid).into()))
        .with("process", owner.map(|(_, name)| name.as_str().into()))
}

fn list(kernel: &Kernel, ports: &BTreeMap<Port, u64>) -> Value {
    let owners = owners(kernel, &ports.values().copied().collect());
    let ports = ports.iter().map(|(port, inode)| describe(port, owners.get(inode))).collect();
    Value::map([("ports", Value::Array(ports))])
}

impl Agent {
    pub fn ports_list(&mut self, ticket: Ticket) -> Result<(), Fault> {
        let kernel = self.kernel.clone();
        self.reply_from_thread(ticket, move || Ok(list(&kernel, &listening(&kernel))))
    }

    pub fn ports_watch(&mut self, ticket: Ticket) -> Result<(), Fault> {
        let kernel = self.kernel.clone();
        self.stream_from_thread(ticket, move |port| watch(&kernel, port).map(|()| Value::Nil))
    }

    /// Runs a streaming job; what it returns closes the stream.
    pub fn stream_from_thread(
        &mut self,
        ticket: Ticket,
        job: impl FnOnce(&JobPort) -> Outcome + Send + 'static,
    ) -> Result<(), Fault> {
        let (stream, port) = JobPort::new(self.notes.clone(), ticket);
        self.pool.run(move || {
            let outcome = job(&port);
            port.finish(outcome);
        })?;
        self.with_stream(ticket.stream, |open| open.kind = Kind::Job(stream));
        Ok(())
    }
}

fn watch(kernel: &Kernel, port: &JobPort) -> Result<(), Fault> {
    let mut known = listening(kernel);
    port.reply(list(kernel, &known));
    loop {
        port.sleep(POLL)?;
        let now = listening(kernel);
        if now == known {
            continue;
        }
        tell(kernel, port, &known, &now)?;
        known = now;
    }
}

fn tell(kernel: &Kernel, port: &JobPort, before: &BTreeMap<Port, u64>, now: &BTreeMap<Port, u64>) -> Result<(), Cancelled> {
    for gone in before.keys().filter(|port| !now.contains_key(port)) {
        port.event("closed", describe(gone, None))?;
    }
    let new: Vec<_> = now.iter().filter(|(port, _)| !before.contains_key(port)).collect();
    let owners = owners(kernel, &new.iter().map(|(_, inode)| **inode).collect());
    for (opened, inode) in new {
        port.event("opened", describe(opened, owners.get(inode)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_sockets_are_found_in_the_kernels_tables() {
        let tcp = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000 0 4242 1 0 100 0 0 10 0\n\
             1: 0100007F:1F91 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  1000 0 4243 1 0 100 0 0 10 0\n\
             garbage\n 2: XX:1F90 0 0A 0 0 0 0 0 0\n";
        assert_eq!(
            parse_table("tcp", tcp),
            [(Port { protocol: "tcp", address: IpAddr::from([127, 0, 0, 1]), port: 8080 }, 4242)]
        );
        let tcp6 = "header\n 0: 00000000000000000000000001000000:0016 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 7 1\n\
             1: 0000000000000000FFFF00000100007F:0050 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 8 1\n";
        let addresses: Vec<String> = parse_table("tcp", tcp6).iter().map(|(port, _)| port.address.to_string()).collect();
        assert_eq!(addresses, ["::1", "127.0.0.1"]);
    }
}
