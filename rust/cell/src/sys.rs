//! The system calls that std lacks: all of this program's `unsafe`. It has one thread until its bridge,
//! a process of its own, starts another.
use crate::options::Access;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::mem;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

const DEVICE: &[u8] = b"eth0";
const LOOPBACK: &[u8] = b"lo";

const LOOP_CTL_GET_FREE: u32 = 0x4c82;
const LOOP_CONFIGURE: u32 = 0x4c0a;
const LOOP_GET_STATUS64: u32 = 0x4c05;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;
/// Of `struct loop_config` in linux/loop.h, as is the place of `info.lo_flags` in it, counted from `info`.
const LOOP_CONFIG_BYTES: usize = 304;
const LOOP_FLAGS_AT: usize = 52;

/// `struct loop_config`, of which all but three fields stay zero.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    before_flags: [u8; LOOP_FLAGS_AT],
    flags: u32,
    after_flags: [u8; LOOP_CONFIG_BYTES - 12 - LOOP_FLAGS_AT],
}

/// `struct loop_info64`, as far as it is looked at.
#[repr(C)]
struct LoopStatus {
    device: u64,
    inode: u64,
    others: [u8; LOOP_FLAGS_AT - 16],
    flags: u32,
    rest: [u8; 176],
}

/// What a loop device shows.
pub struct Shown {
    pub device: u64,
    pub inode: u64,
    pub is_read_only: bool,
}

/// How a device reads its file: as the file lies on the disk, or through the host's memory, where it is warm if others had it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Through {
    Itself,
    Memory,
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// The call itself: the C library might go another way.
pub fn looks_without_automount() -> bool {
    // SAFETY: numbers only; all zeros is one of them.
    let mut found: libc::statx = unsafe { mem::zeroed() };
    // SAFETY: a C string, numbers, and room for the answer.
    let result = unsafe {
        libc::syscall(libc::SYS_statx, libc::AT_FDCWD, c"/".as_ptr(), libc::AT_NO_AUTOMOUNT, libc::STATX_MODE, &mut found)
    };
    result == 0
}

/// Mounts made from here on are seen by nobody else; what is unmounted outside goes here too.
pub fn own_mounts() -> io::Result<()> {
    // SAFETY: one thread; the pointers are C strings or null, as the call allows.
    unsafe {
        check(libc::unshare(libc::CLONE_NEWNS))?;
        check(libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), libc::MS_REC | libc::MS_SLAVE, ptr::null())).map(drop)
    }
}

/// Devices that an image has are nobody's way to the machine's own.
pub fn mount_overlay(at: &Path, data: &CStr) -> io::Result<()> {
    let at = c_path(at)?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV;
    // SAFETY: all four are C strings that live until the call returns.
    check(unsafe { libc::mount(c"overlay".as_ptr(), at.as_ptr(), c"overlay".as_ptr(), flags, data.as_ptr().cast()) }).map(drop)
}

pub fn bind(from: &Path, to: &Path) -> io::Result<()> {
    let (from, to) = (c_path(from)?, c_path(to)?);
    // SAFETY: both are C strings that live until the call returns; a bind mount takes no type and no data.
    check(unsafe { libc::mount(from.as_ptr(), to.as_ptr(), ptr::null(), libc::MS_BIND, ptr::null()) }).map(drop)
}

/// The directory of that path, with no symlink anywhere on the way.
pub fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    // SAFETY: numbers only; all zeros is one of them.
    let mut how: libc::open_how = unsafe { mem::zeroed() };
    how.flags = (libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC) as u64;
    how.resolve = libc::RESOLVE_NO_SYMLINKS;
    // SAFETY: a C string and a structure that live until the call returns, and the size of that.
    let opened =
        unsafe { libc::syscall(libc::SYS_openat2, libc::AT_FDCWD, path.as_ptr(), &how, mem::size_of::<libc::open_how>()) };
    let number = check(i32::try_from(opened).map_err(io::Error::other)?)?;
    // SAFETY: the call has just made it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// What was opened, with what is mounted in it.
pub fn bind_all(directory: &OwnedFd, to: &Path) -> io::Result<()> {
    let (from, to) = (c_path(Path::new(&format!("/proc/self/fd/{}", directory.as_raw_fd())))?, c_path(to)?);
    let flags = libc::MS_BIND | libc::MS_REC;
    // SAFETY: both are C strings that live until the call returns; a bind mount takes no type and no data.
    check(unsafe { libc::mount(from.as_ptr(), to.as_ptr(), ptr::null(), flags, ptr::null()) }).map(drop)
}

/// What is bound there cannot be written through it.
pub fn make_read_only(at: &Path) -> io::Result<()> {
    let at = c_path(at)?;
    let flags = libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV;
    // SAFETY: a C string that lives until the call returns; the others are null, as the call allows.
    check(unsafe { libc::mount(ptr::null(), at.as_ptr(), ptr::null(), flags, ptr::null()) }).map(drop)
}

/// A free loop device, by its number.
pub fn free_loop(control: RawFd) -> io::Result<i32> {
    // SAFETY: the request takes nothing and gives a number.
    check(unsafe { libc::ioctl(control, LOOP_CTL_GET_FREE as _) })
}

/// The device shows the file until nobody has the device open or mounted any more.
pub fn attach_loop(device: RawFd, file: RawFd, access: Access, through: Through) -> io::Result<()> {
    let read_only = if access == Access::ReadOnly { LO_FLAGS_READ_ONLY } else { 0 };
    let direct = if through == Through::Itself { LO_FLAGS_DIRECT_IO } else { 0 };
    let config = LoopConfig {
        fd: u32::try_from(file).map_err(io::Error::other)?,
        block_size: 0,
        before_flags: [0; LOOP_FLAGS_AT],
        flags: LO_FLAGS_AUTOCLEAR | direct | read_only,
        after_flags: [0; LOOP_CONFIG_BYTES - 12 - LOOP_FLAGS_AT],
    };
    // SAFETY: the request reads one `loop_config`, which this is, byte for byte.
    check(unsafe { libc::ioctl(device, LOOP_CONFIGURE as _, &config) }).map(drop)
}

pub fn loop_shows(device: RawFd) -> io::Result<Shown> {
    let mut status = LoopStatus { device: 0, inode: 0, others: [0; LOOP_FLAGS_AT - 16], flags: 0, rest: [0; 176] };
    // SAFETY: the request fills one `loop_info64`, which this is, byte for byte.
    check(unsafe { libc::ioctl(device, LOOP_GET_STATUS64 as _, &mut status) })?;
    Ok(Shown { device: status.device, inode: status.inode, is_read_only: status.flags & LO_FLAGS_READ_ONLY != 0 })
}

pub fn mount_squashfs(device: &Path, at: &Path) -> io::Result<()> {
    let (device, at) = (c_path(device)?, c_path(at)?);
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_RDONLY;
    // SAFETY: all are C strings that live until the call returns, or null, which is no options.
    check(unsafe { libc::mount(device.as_ptr(), at.as_ptr(), c"squashfs".as_ptr(), flags, ptr::null()) }).map(drop)
}

/// What is on it runs and opens nothing on the host: only the runtime looks at it.
pub fn mount_ext4(device: &Path, at: &Path, access: Access) -> io::Result<()> {
    let (device, at) = (c_path(device)?, c_path(at)?);
    // Inode tables that were never used need not be written; what is free again goes back to the host. Of one that is only read
    // nothing is written either: a journal that has something in it stays as it is.
    let (read_only, options) = match access {
        Access::ReadWrite => (0, c"noinit_itable,discard"),
        Access::ReadOnly => (libc::MS_RDONLY, c"noload"),
    };
    let flags = libc::MS_NOSUID | libc::MS_NODEV | read_only;
    // SAFETY: all are C strings that live until the call returns.
    check(unsafe { libc::mount(device.as_ptr(), at.as_ptr(), c"ext4".as_ptr(), flags, options.as_ptr().cast()) }).map(drop)
}

/// An empty file system over a directory.
pub fn mount_nothing(at: &Path) -> io::Result<()> {
    let at = c_path(at)?;
    let flags = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    // SAFETY: all are C strings that live until the call returns, or null, which is no options.
    check(unsafe { libc::mount(c"none".as_ptr(), at.as_ptr(), c"tmpfs".as_ptr(), flags, ptr::null()) }).map(drop)
}

/// The kernel's count of processes, as it is where nobody has cgroups of the second version.
pub fn mount_pids(at: &Path) -> io::Result<()> {
    let at = c_path(at)?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    // SAFETY: all are C strings that live until the call returns.
    check(unsafe { libc::mount(c"cgroup".as_ptr(), at.as_ptr(), c"cgroup".as_ptr(), flags, c"pids".as_ptr().cast()) }).map(drop)
}

pub fn new_network() -> io::Result<()> {
    // SAFETY: takes a plain number.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(drop)
}

/// Only returns when it fails.
pub fn exec(argv: &[CString]) -> io::Error {
    let mut pointers: Vec<*const libc::c_char> = argv.iter().map(|arg| arg.as_ptr()).collect();
    pointers.push(ptr::null());
    let Some(program) = pointers.first().copied().filter(|program| !program.is_null()) else {
        return io::Error::from_raw_os_error(libc::EINVAL);
    };
    // SAFETY: C strings that live as long as `argv`, ended by a null.
    unsafe { libc::execvp(program, pointers.as_ptr()) };
    io::Error::last_os_error()
}

/// A descriptor that this process was given, as its own; closed when a program is executed.
pub fn take(number: RawFd) -> io::Result<File> {
    // SAFETY: a plain number; that it is open is what the call tells.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: nothing else here uses that number: std opens its own after the given ones.
    Ok(unsafe { File::from_raw_fd(number) })
}

pub enum Forked {
    /// With the child's pid.
    Parent(i32),
    Child,
}

pub fn fork() -> io::Result<Forked> {
    // SAFETY: this process has one thread, so no lock can be held by another one.
    Ok(match check(unsafe { libc::fork() })? {
        0 => Forked::Child,
        child => Forked::Parent(child),
    })
}

/// Waits for the end of a child.
pub fn reap(child: i32) -> io::Result<()> {
    loop {
        // SAFETY: plain numbers, and no place for the status.
        match check(unsafe { libc::waitpid(child, ptr::null_mut(), 0) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            waited => return waited.map(drop),
        }
    }
}

pub fn own_ids() -> (u32, u32) {
    // SAFETY: neither takes anything, and neither can fail.
    unsafe { (libc::getuid(), libc::getgid()) }
}

/// The user namespace of another process, whose maker this user is.
pub fn enter_users(namespace: RawFd) -> io::Result<()> {
    // SAFETY: takes plain numbers.
    check(unsafe { libc::setns(namespace, libc::CLONE_NEWUSER) }).map(drop)
}

/// What is executed from here on has no more rights than this.
pub fn no_new_privileges() -> io::Result<()> {
    // SAFETY: plain numbers, no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }).map(drop)
}

/// A user namespace that nobody is mapped in yet, and a mount namespace that belongs to it.
pub fn own_users() -> io::Result<()> {
    // SAFETY: takes a plain number; this process has one thread.
    check(unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) }).map(drop)
}

pub fn exit_now(code: i32) -> ! {
    // SAFETY: never returns; nothing is read afterwards.
    unsafe { libc::_exit(code) }
}

pub fn set_ids(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: no groups are read, as their count is 0; the others take plain numbers.
    unsafe {
        check(libc::setgroups(0, ptr::null()))?;
        check(libc::setresgid(gid, gid, gid))?;
        check(libc::setresuid(uid, uid, uid)).map(drop)
    }
}

/// SIGKILL when `parent` dies.
pub fn die_with(parent: u32) -> io::Result<()> {
    // SAFETY: plain numbers, no pointers.
    unsafe {
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong, 0, 0, 0))?;
        if u32::try_from(libc::getppid()) != Ok(parent) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH)); // it died before
        }
    }
    Ok(())
}

pub fn inet_socket() -> io::Result<OwnedFd> {
    // SAFETY: plain numbers; the descriptor is new and owned by nobody else.
    unsafe { Ok(OwnedFd::from_raw_fd(check(libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0))?)) }
}

fn request() -> libc::ifreq {
    request_of(DEVICE)
}

fn request_of(device: &[u8]) -> libc::ifreq {
    // SAFETY: numbers, arrays of them, and a union that holds pointers; all of these may be zero.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(device) {
        *place = *byte as libc::c_char;
    }
    request
}

fn ask(socket: RawFd, what: libc::c_ulong, request: &libc::ifreq) -> io::Result<()> {
    // SAFETY: each request used here reads an `ifreq`, and some write one, which is a copy's copy.
    check(unsafe { libc::ioctl(socket, what as _, &mut { *request }) }).map(drop)
}

/// A device of frames, without further headers.
pub fn become_tap(tun: RawFd) -> io::Result<()> {
    let mut request = request();
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    ask(tun, libc::TUNSETIFF as libc::c_ulong, &request)
}

pub fn set_mac(socket: RawFd, mac: [u8; 6]) -> io::Result<()> {
    let mut request = request();
    let mut address = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: [0; 14] };
    for (place, byte) in address.sa_data.iter_mut().zip(mac) {
        *place = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_hwaddr = address;
    ask(socket, libc::SIOCSIFHWADDR, &request)
}

pub fn set_mtu(socket: RawFd, mtu: u32) -> io::Result<()> {
    let mut request = request();
    request.ifr_ifru.ifru_mtu = i32::try_from(mtu).unwrap_or(i32::MAX);
    ask(socket, libc::SIOCSIFMTU, &request)
}

pub fn set_up(socket: RawFd) -> io::Result<()> {
    set_flags(socket, request())
}

/// With its addresses, which the kernel gives it then.
pub fn set_loopback_up(socket: RawFd) -> io::Result<()> {
    set_flags(socket, request_of(LOOPBACK))
}

fn set_flags(socket: RawFd, mut request: libc::ifreq) -> io::Result<()> {
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    ask(socket, libc::SIOCSIFFLAGS, &request)
}

fn internet(address: Ipv4Addr) -> libc::sockaddr {
    let [a, b, c, d] = address.octets();
    let mut socket_address = libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: [0; 14] };
    // As `sockaddr_in`: two bytes of port, then the address.
    for (place, byte) in socket_address.sa_data.iter_mut().skip(2).zip([a, b, c, d]) {
        *place = byte as libc::c_char;
    }
    socket_address
}

pub fn set_address(socket: RawFd, address: Ipv4Addr) -> io::Result<()> {
    let mut request = request();
    request.ifr_ifru.ifru_addr = internet(address);
    ask(socket, libc::SIOCSIFADDR, &request)
}

pub fn set_netmask(socket: RawFd, mask: Ipv4Addr) -> io::Result<()> {
    let mut request = request();
    request.ifr_ifru.ifru_netmask = internet(mask);
    ask(socket, libc::SIOCSIFNETMASK, &request)
}

pub fn add_default_route(socket: RawFd, gateway: Ipv4Addr) -> io::Result<()> {
    // SAFETY: numbers and a null pointer, which may all be zero.
    let mut route: libc::rtentry = unsafe { mem::zeroed() };
    route.rt_dst = internet(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = internet(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = internet(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    // SAFETY: the request reads one `rtentry`.
    check(unsafe { libc::ioctl(socket, libc::SIOCADDRT as _, &route) }).map(drop)
}
