//! Resets that acknowledge nothing (`hutch_sys::acknowledge_reset` says why there are any) are heard here and given
//! to the kernel once more, as they should have come: who connects where nobody listens hears so at once.
use crate::console::say;
use crate::fault::describe;
use crate::machine::Nic;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrV4, SocketFlags, SocketType, ipproto, recv, sendto, socket_with,
};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A reset has headers and nothing else: 60 bytes of each at most.
const PACKET_BYTES_MAX: usize = 120;
/// Before others get their turn; the next packet brings an event.
const PACKETS_PER_TURN: usize = 64;

#[derive(Debug)]
pub struct Resets {
    heard: OwnedFd,
    /// Takes packets with their IP header, whoever they say they are from.
    repeated: OwnedFd,
}

impl Resets {
    /// None where the kernel has no such sockets: connections then time out as before.
    pub fn open(nic: &Nic) -> Option<Resets> {
        let raw = || {
            socket_with(AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, Some(ipproto::RAW))
        };
        let opened = hutch_sys::bare_resets(nic.index).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO));
        match opened.and_then(|heard| Ok(Resets { heard, repeated: raw()? })) {
            Ok(resets) => Some(resets),
            Err(errno) => {
                say(&format!("refused connections may take long to be told: {}", describe(errno)));
                None
            }
        }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.heard.as_fd()
    }

    /// Gives on what has been heard.
    pub fn pass_on(&self) {
        let mut packet = [0; PACKET_BYTES_MAX];
        for _ in 0..PACKETS_PER_TURN {
            let Ok((length, _)) = recv(&self.heard, &mut packet, RecvFlags::empty()) else { return };
            let Some(packet) = packet.get_mut(..length) else { continue };
            let to = packet.get(16..20).and_then(|to| to.first_chunk::<4>().copied()).map(Ipv4Addr::from);
            if let Some(to) = to.filter(|_| hutch_sys::acknowledge_reset(packet)) {
                // Routed as what this machine sends to itself; a connection that is over already ignores it.
                let _ = sendto(&self.repeated, packet, SendFlags::empty(), &SocketAddrV4::new(to, 0));
            }
        }
    }
}
