//! Directories of the host in a virtual machine: its kernel speaks FUSE, and what it says goes through a port of the machine to
//! the program that serves them, `hutch-files`. What can be known here is answered here (`known.rs`).
//!
//! When the port closes, every connection is ended: who uses the directories is told so (`ENOTCONN`), and nothing is ever
//! written below them instead.
mod known;
mod port;

use crate::console::say;
use crate::fault::{Fault, describe};
use known::{Known, Next, VALID};
use port::{PREFIX, Port, whole};
use rustix::fs::{Mode, OFlags, open, statfs};
use rustix::io::{Errno, read, write};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Of one message; what is read or written by one is at most 1 MiB.
const MESSAGE_BYTES_MAX: usize = (1 << 20) + 8192;
const STACK_BYTES: usize = 64 * 1024;

/// When the kernel was last told something of the host, in ms of the clock that never stands; 0: never.
static TOLD_MS: AtomicU64 = AtomicU64::new(0);

fn now_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// Waits until the kernel believes nothing any more that it was told before: a program that is started now sees what was changed on
/// the host before somebody asked for it.
pub fn settle() {
    let told = TOLD_MS.load(Ordering::Relaxed);
    let since = Duration::from_millis(now_ms().saturating_sub(told));
    // A millisecond more, as those are rounded.
    if let Some(left) = (VALID + Duration::from_millis(1)).checked_sub(since).filter(|_| told != 0) {
        thread::sleep(left);
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    pub target: String,
    pub read_only: bool,
}

/// One that is mounted.
struct Mounted {
    /// `/dev/fuse`.
    kernel: OwnedFd,
    target: String,
    /// While this is open, it is there.
    _top: OwnedFd,
    known: Mutex<Known>,
}

impl Mounted {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Mounts them all in the sandbox's root, which is the root of everything by now. `owner`: who the user of the host is inside, who has no
/// rights there but over what is his own.
pub fn attach(directories: &[Directory], owner: (u32, u32)) -> Result<(), Fault> {
    if directories.is_empty() {
        return Ok(());
    }
    let failed = |what: &str, errno: Errno| {
        Fault::failed_precondition(format!("directories of the host cannot be used: {what}: {}", describe(errno)))
    };
    let port = Arc::new(Port::find().map_err(|errno| failed("their port", errno))?);
    let mut mounted = Vec::new();
    for (at, Directory { target, read_only }) in directories.iter().enumerate() {
        std::fs::create_dir_all(target).map_err(|error| failed(target, Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        mounted.push(mount_one(target, *read_only).map_err(|errno| match errno {
            Errno::NOENT | Errno::NODEV | Errno::NXIO => Fault::failed_precondition(
                "directories of the host cannot be used: the kernel of the sandbox has no FUSE".to_owned(),
            ),
            other => failed(target, other),
        })?);
        port.send(&known::inside(at, owner)).map_err(|errno| failed("their port", errno))?;
    }
    let mounted = Arc::new(mounted);
    for index in 0..mounted.len() {
        let (port, mounted) = (Arc::clone(&port), Arc::clone(&mounted));
        spawn(move || ask(&port, &mounted, index))?;
    }
    let all = Arc::clone(&mounted);
    spawn(move || {
        let errno = answer(&port, &all);
        say(&format!("the directories of the host are gone: {}", describe(errno)));
        for Mounted { target, .. } in all.iter() {
            // It is busy, so it stays, and every use of it fails from now on.
            let _ = unmount(target.as_str(), UnmountFlags::FORCE);
        }
    })?;
    // The two kernels have agreed by the first answer, or never will.
    for Mounted { target, .. } in mounted.iter() {
        statfs(target.as_str()).map_err(|errno| failed(target, errno))?;
    }
    Ok(())
}

fn spawn(work: impl FnOnce() + Send + 'static) -> Result<(), Fault> {
    let started = thread::Builder::new().name("directories".to_owned()).stack_size(STACK_BYTES).spawn(work);
    started.map(|_| ()).map_err(|error| Fault::failed_precondition(format!("directories of the host cannot be used: {error}")))
}

fn mount_one(target: &str, read_only: bool) -> Result<Mounted, Errno> {
    let kernel = open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other", kernel.as_raw_fd());
    let options = std::ffi::CString::new(options).map_err(|_| Errno::INVAL)?;
    let read_only = if read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOATIME | read_only;
    mount("host", target, "fuse.hutch", flags, Some(options.as_c_str()))?;
    let top = open(target, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(Mounted { kernel, target: target.to_owned(), _top: top, known: Mutex::default() })
}

/// What the kernel wants of one directory, to the port, unless it can be told at once.
fn ask(port: &Port, mounted: &[Mounted], index: usize) {
    let Some(one) = mounted.get(index) else { return };
    let mut buffer = vec![0; PREFIX + MESSAGE_BYTES_MAX];
    loop {
        let Some(message) = buffer.get_mut(PREFIX..) else { return };
        let count = match read(&one.kernel, &mut *message) {
            Ok(count) => count,
            // A request that was taken back while it was read.
            Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => continue,
            Err(_) => return,
        };
        let next = one.known().asked(message.get(..count).unwrap_or_default(), Instant::now());
        let answer = match next {
            Next::Answer(answer) => {
                let _ = write(&one.kernel, &answer);
                continue;
            }
            Next::Send { also, answer } => {
                let Some(whole) = buffer.get_mut(..PREFIX + count) else { return };
                port::address(whole, index);
                let sent = match also {
                    None => port.send(whole),
                    Some(mut also) => {
                        port::address(&mut also, index);
                        port.send(&[&*whole, also.as_slice()].concat())
                    }
                };
                if sent.is_err() {
                    return;
                }
                answer
            }
        };
        if let Some(answer) = answer {
            let _ = write(&one.kernel, &answer);
        }
    }
}

/// What comes back, to the kernel whose directory it is of; until the port ends.
fn answer(port: &Port, mounted: &[Mounted]) -> Errno {
    let mut buffer = vec![0; PREFIX + MESSAGE_BYTES_MAX];
    let mut filled = 0;
    loop {
        match port.read(buffer.get_mut(filled..).unwrap_or_default()) {
            Ok(count) => filled += count,
            Err(errno) => return errno,
        }
        let mut done = 0;
        while let Some((index, length)) = whole(buffer.get(done..filled).unwrap_or_default()) {
            if length > MESSAGE_BYTES_MAX {
                return Errno::MSGSIZE;
            }
            let Some(message) = buffer.get_mut(done + PREFIX..filled).and_then(|rest| rest.get_mut(..length)) else { break };
            if let Some(one) = mounted.get(index) {
                // One that nobody waits for any more is refused, and that is all.
                if one.known().answered(message, Instant::now()) {
                    TOLD_MS.store(now_ms(), Ordering::Relaxed);
                    let _ = write(&one.kernel, message);
                }
            }
            done += PREFIX + length;
        }
        buffer.copy_within(done..filled, 0);
        filled -= done;
    }
}
