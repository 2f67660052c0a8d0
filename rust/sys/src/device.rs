//! ioctls of block devices, ext4 and the random device.
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `_IOR(0x12, 114, size_t)`
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
/// `_IOW('f', 16, __u64)`
const EXT4_IOC_RESIZE_FS: libc::c_ulong = 0x4008_6610;
/// `_IOW('R', 0x03, int[2])`
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
/// `_IO('R', 0x07)`
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

pub const ENTROPY_BYTES_MAX: usize = 512;

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

pub fn block_device_bytes(device: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes = 0u64;
    // SAFETY: the kernel writes one u64.
    check(unsafe { libc::ioctl(device.as_raw_fd(), BLKGETSIZE64 as _, &raw mut bytes) })?;
    Ok(bytes)
}

/// Grows the mounted ext4 to which `directory` belongs to `blocks` of its own block size.
pub fn resize_ext4(directory: BorrowedFd<'_>, blocks: u64) -> io::Result<()> {
    // SAFETY: the kernel reads one u64.
    check(unsafe { libc::ioctl(directory.as_raw_fd(), EXT4_IOC_RESIZE_FS as _, &raw const blocks) })
}

/// Changes the hardware address of a network device, through any socket.
pub fn set_hardware_address(socket: BorrowedFd<'_>, name: &str, mac: [u8; 6]) -> io::Result<()> {
    // SAFETY: all zeros is a valid ifreq; the name is cut so that it stays NUL-terminated.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
            *to = from as libc::c_char;
        }
        let mut address = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: [0; 14] };
        for (to, from) in address.sa_data.iter_mut().zip(mac) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_hwaddr = address;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFHWADDR as _, &raw const request))
    }
}

/// Mixes `bytes` into the kernel's pool, credits them, and makes the generator start from the pool
/// anew, so that two copies of one machine do not draw the same numbers.
pub fn add_entropy(random: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    #[repr(C)]
    struct PoolInfo {
        entropy_bits: libc::c_int,
        bytes: libc::c_int,
        buffer: [u8; ENTROPY_BYTES_MAX],
    }
    let length = bytes.len().min(ENTROPY_BYTES_MAX);
    let mut info = PoolInfo { entropy_bits: (length * 8) as _, bytes: length as _, buffer: [0; ENTROPY_BYTES_MAX] };
    for (to, from) in info.buffer.iter_mut().zip(bytes) {
        *to = *from;
    }
    // SAFETY: the kernel reads the header and `bytes` bytes, all of them within `info`.
    check(unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY as _, &raw const info) })?;
    // SAFETY: no argument.
    check(unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG as _) })
}
