//! A port of this machine is one sandbox's at a time.
//!
//! `passt` sends a guest's datagrams from the port that the guest itself has, and asks with `SO_REUSEADDR` for that: the kernel then lets
//! a second one bind it too, and hands what comes there to the last that did (socket(7), udp(7)), so that any sandbox could take and read
//! the answers of another. The request does nothing here: whoever has the port keeps it, and a second gets it when it is free.
use std::io;

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;
/// Where they lie in `struct seccomp_data`; of an argument the lower half.
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
const LEVEL_AT: u32 = 24;
const OPTION_AT: u32 = 32;
const LOAD: u16 = 0x20;
const IS: u16 = 0x15;
const ANSWER: u16 = 0x06;
const LET: u32 = 0x7fff_0000;
const KILL: u32 = 0x8000_0000;
/// Not done, and said to be well: `SECCOMP_RET_ERRNO` with none.
const NOTHING: u32 = 0x0005_0000;

/// For this process and what it becomes. Takes `no_new_privs`, or the right to do without.
pub fn share_no_ports() -> io::Result<()> {
    let step = |code, jt, jf, k: u32| libc::sock_filter { code, jt, jf, k };
    let number = |value: libc::c_long| u32::try_from(value).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL));
    let mut program = [
        step(LOAD, 0, 0, ARCHITECTURE_AT),
        step(IS, 0, 8, ARCHITECTURE),
        step(LOAD, 0, 0, NUMBER_AT),
        step(IS, 0, 5, number(libc::SYS_setsockopt)?),
        step(LOAD, 0, 0, LEVEL_AT),
        step(IS, 0, 3, number(libc::SOL_SOCKET.into())?),
        step(LOAD, 0, 0, OPTION_AT),
        step(IS, 3, 0, number(libc::SO_REUSEADDR.into())?),
        step(IS, 2, 0, number(libc::SO_REUSEPORT.into())?),
        step(ANSWER, 0, 0, LET),
        step(ANSWER, 0, 0, KILL),
        step(ANSWER, 0, 0, NOTHING),
    ];
    crate::sys::filter_calls(&mut program)
}
