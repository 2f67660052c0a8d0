//! The device `eth0` in the network namespace that the caller is in: with an address, the way out, and
//! a descriptor over which its frames come and go.
use crate::options::Net;
use crate::sys;
use std::fs::{File, OpenOptions};
use std::io::{self, Error};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, RawFd};

type Failed = (&'static str, Error);

/// The descriptor gives one frame a read and takes one a write; the device goes when it is closed.
pub fn make(net: &Net) -> Result<File, Failed> {
    let to = |what: &'static str| move |error| (what, error);
    let tap = OpenOptions::new().read(true).write(true).open("/dev/net/tun").map_err(to("open /dev/net/tun"))?;
    sys::become_tap(tap.as_raw_fd()).map_err(to("make a network device"))?;
    let socket = sys::inet_socket().map_err(to("make a socket"))?;
    configure(socket.as_raw_fd(), net).map_err(to("set up the network device"))?;
    Ok(tap)
}

fn configure(socket: RawFd, net: &Net) -> io::Result<()> {
    // The runtime makes what it finds up: without this one nothing in the sandbox reaches itself.
    sys::set_loopback_up(socket)?;
    sys::set_mac(socket, net.mac)?;
    sys::set_mtu(socket, net.mtu)?;
    // Nothing but what the sandbox says goes out: no neighbour discovery of our own kernel's.
    drop(std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1"));
    sys::set_address(socket, net.address)?;
    sys::set_netmask(socket, netmask(net.prefix))?;
    sys::set_up(socket)?;
    sys::add_default_route(socket, net.gateway)
}

fn netmask(prefix: u8) -> Ipv4Addr {
    Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::netmask;
    use std::net::Ipv4Addr;

    #[test]
    fn a_prefix_is_a_mask() {
        assert_eq!(netmask(29), Ipv4Addr::new(255, 255, 255, 248));
        assert_eq!(netmask(8), Ipv4Addr::new(255, 0, 0, 0));
        assert_eq!(netmask(1), Ipv4Addr::new(128, 0, 0, 0));
    }
}
