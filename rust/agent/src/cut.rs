//! Connections of a machine that was written down: in one that goes on from there, who has one would wait for a peer that knows
//! nothing of this machine, or speaks with another one. They end at once, before the link is up: no packet of them leaves.
use rustix::net::connect_unspec;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::collections::HashSet;
use std::fs::{read_dir, read_link, read_to_string};

/// States of /proc/net/tcp in which there is nobody at the other end.
const CLOSED: &str = "07";
const LISTENS: &str = "0A";
/// At which the kernel writes the addresses of this machine itself: 127.0.0.0/8, ::1, and the former within IPv6.
const LOOPBACK_V4: &str = "7F";
const LOOPBACK_V6: &str = "00000000000000000000000001000000";
const MAPPED_V4: &str = "0000000000000000FFFF0000";

/// Ends each with an error, as a reset would. How many there were.
pub fn cut_connections() -> usize {
    let mut inodes: HashSet<u64> = ["tcp", "tcp6"]
        .iter()
        .flat_map(|table| connected(&read_to_string(format!("/proc/net/{table}")).unwrap_or_default()))
        .collect();
    if inodes.is_empty() {
        return 0;
    }
    let found = inodes.len();
    for process in read_dir("/proc").into_iter().flatten().flatten() {
        let pid = process.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        let Some(pid) = pid else { continue };
        // One that has ended meanwhile has none.
        for fd in read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            let Some(inode) = socket_of(&fd.path()).filter(|inode| inodes.contains(inode)) else { continue };
            let number = fd.file_name().to_str().and_then(|name| name.parse().ok());
            let Some(number) = number else { continue };
            let Ok(held) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
            let Ok(socket) = pidfd_getfd(held, number, PidfdGetfdFlags::empty()) else { continue };
            if connect_unspec(socket).is_ok() {
                inodes.remove(&inode);
            }
        }
        if inodes.is_empty() {
            break;
        }
    }
    found
}

/// Inodes of the sockets that have another machine at their other end.
fn connected(table: &str) -> Vec<u64> {
    table.lines().skip(1).filter_map(connection).collect()
}

fn connection(line: &str) -> Option<u64> {
    let mut fields = line.split_ascii_whitespace();
    let (address, _port) = fields.nth(1)?.split_once(':')?;
    let state = fields.nth(1)?;
    if state == CLOSED || state == LISTENS || is_loopback(address) {
        return None;
    }
    fields.nth(5)?.parse().ok().filter(|inode| *inode != 0)
}

/// As the kernel writes it: words of the machine's byte order.
fn is_loopback(address: &str) -> bool {
    let v4 = if address.len() == 8 { Some(address) } else { address.strip_prefix(MAPPED_V4) };
    address == LOOPBACK_V6 || v4.is_some_and(|v4| v4.ends_with(LOOPBACK_V4))
}

fn socket_of(fd: &std::path::Path) -> Option<u64> {
    read_link(fd).ok()?.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::connected;

    #[test]
    fn what_leads_to_another_machine_is_told_from_what_stays_here() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 11 1 0 20 4 30 10 -1
   1: 020000C0:C351 4D7100CB:0007 01 00000000:00000000 00:00000000 00000000     0        0 12 1 0 20 4 30 10 -1
   2: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 13 1 0 100 0 0 10 0
   3: 020000C0:C352 4D7100CB:0007 08 00000000:00000000 00:00000000 00000000     0        0 14 1 0 20 4 30 10 -1
   4: 020000C0:C353 4D7100CB:0007 06 00000000:00000000 00:00000000 00000000     0        0 0 1 0 20 4 30 10 -1
   5: 0000000000000000FFFF00000100007F:0050 0000000000000000FFFF00000100007F:D1 01 0:0 00:0 0 0 0 15 1
   6: 0000000000000000FFFF0000020000C0:0050 0000000000000000FFFF00004D7100CB:D1 01 0:0 00:0 0 0 0 16 1
   7: 00000000000000000000000001000000:0050 00000000000000000000000001000000:D1 01 0:0 00:0 0 0 0 17 1
";
        assert_eq!(connected(table), [12, 14, 16]);
        assert_eq!(connected("one line\n1: broken"), []);
    }
}
