//! A socket that sees what a network device receives.
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `ETH_P_IP`, as it stands on the wire.
const IPV4: u16 = 0x0800u16.to_be();

/// Hears of IPv4's TCP resets alone that arrive at the device without an ACK; each read gives one packet, from its IP header on.
/// The kernel sorts them out before anything is copied.
pub fn bare_resets(device: u32) -> io::Result<OwnedFd> {
    let step = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let (load, jump) = (libc::BPF_LD | libc::BPF_ABS, libc::BPF_JMP | libc::BPF_K);
    let mut filter = [
        step(load | libc::BPF_B, 0, 0, 9), // the protocol
        step(jump | libc::BPF_JEQ, 0, 7, 6),
        step(load | libc::BPF_H, 0, 0, 6), // flags and offset of fragments
        step(jump | libc::BPF_JSET, 5, 0, 0x3fff),
        step(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, 0, 0, 0), // the length of the IP header
        step(libc::BPF_LD | libc::BPF_B | libc::BPF_IND, 0, 0, 13), // TCP's flags
        step(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, 0x14),
        step(jump | libc::BPF_JEQ, 0, 1, 0x04), // RST, and no ACK
        step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: IPV4,
        sll_ifindex: i32::try_from(device).map_err(|_| io::ErrorKind::InvalidInput)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let check = |result: libc::c_int| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) };
    // SAFETY: the new descriptor is owned by nobody else; the kernel copies the filter and the address within the calls,
    // and is given their sizes. The socket hears nothing before it is bound, as it has no protocol.
    unsafe {
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let socket = OwnedFd::from_raw_fd(check(libc::socket(libc::AF_PACKET, kind, 0))?);
        let (option, bytes) = ((&raw const program).cast(), mem::size_of_val(&program) as u32);
        check(libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, option, bytes))?;
        check(libc::bind(socket.as_raw_fd(), (&raw const address).cast(), mem::size_of_val(&address) as u32))?;
        Ok(socket)
    }
}
