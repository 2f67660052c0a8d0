//! Directories of the host in a virtual machine: its kernel speaks FUSE, and what it says goes through a port of the machine to
//! the program that serves them, `hutch-files`. What can be known here is answered here (`known.rs`).
//!
//! When the port closes, every connection is ended: who uses the directories is told so (`ENOTCONN`), and nothing is ever
//! written below them instead.
mod known;
mod notices;
mod port;

use crate::console::say;
use crate::fault::{Fault, describe};
use known::{Known, Next, Said};
use notices::{Notice, WAITING_MAX};
use port::{PREFIX, Port, whole};
use rustix::fs::{Mode, OFlags, open, statfs};
use rustix::io::{Errno, read, write};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Of one message; what is read or written by one is at most 1 MiB.
const MESSAGE_BYTES_MAX: usize = (1 << 20) + 8192;
const STACK_BYTES: usize = 64 * 1024;

/// The host says within that time what was changed there, or nobody waits for it any more.
const TOLD: Duration = known::VALID;

/// Who waits to be told what was changed, by the numbers of what they have asked.
struct Waiting {
    port: Arc<Port>,
    by_request: Mutex<(u64, HashMap<u64, Sender<u32>>)>,
    /// Nothing will be said any more.
    is_over: AtomicBool,
}

static WAITING: OnceLock<Waiting> = OnceLock::new();

impl Waiting {
    fn by_request(&self) -> MutexGuard<'_, (u64, HashMap<u64, Sender<u32>>)> {
        self.by_request.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self) -> Option<(u64, Receiver<u32>)> {
        let (said, hears) = channel();
        let mut asked = self.by_request();
        asked.0 += 1;
        let number = asked.0;
        asked.1.insert(number, said);
        drop(asked);
        self.port.send(&known::tell(number)).ok()?;
        Some((number, hears))
    }
}

/// Waits until the kernel believes nothing any more that the host knows to be different: a program that is started now sees what was
/// changed there before somebody asked for it.
pub fn settle() {
    let Some(waiting) = WAITING.get().filter(|waiting| !waiting.is_over.load(Ordering::Relaxed)) else { return };
    let Some((number, hears)) = waiting.ask() else { return };
    let left_ms = hears.recv_timeout(TOLD).unwrap_or(0);
    waiting.by_request().1.remove(&number);
    thread::sleep(Duration::from_millis(left_ms.into()).min(known::VALID));
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
    let (notices, told) = sync_channel(WAITING_MAX);
    let all = Arc::clone(&mounted);
    spawn(move || notices::tell(&told, &all))?;
    for index in 0..mounted.len() {
        let (port, mounted) = (Arc::clone(&port), Arc::clone(&mounted));
        spawn(move || ask(&port, &mounted, index))?;
    }
    let all = Arc::clone(&mounted);
    let hears = Arc::clone(&port);
    spawn(move || {
        let errno = answer(&hears, &all, &notices);
        if let Some(waiting) = WAITING.get() {
            waiting.is_over.store(true, Ordering::Relaxed);
            waiting.by_request().1.clear();
        }
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
    let _ = WAITING.set(Waiting { port, by_request: Mutex::default(), is_over: AtomicBool::new(false) });
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
fn answer(port: &Port, mounted: &[Mounted], notices: &SyncSender<Notice>) -> Errno {
    let mut buffer = vec![0; PREFIX + MESSAGE_BYTES_MAX];
    let mut filled = 0;
    // When something was left untold, as too much waited.
    let mut untold = None;
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
                let said = one.known().answered(message, Instant::now());
                match said {
                    // One that nobody waits for any more is refused, and that is all.
                    Said::Answer => drop(write(&one.kernel, message)),
                    Said::Nothing => {}
                    Said::Changed(body) => {
                        if notices.try_send(Notice::Changed { mount: index, body }).is_err() {
                            untold = Some(Instant::now());
                        }
                    }
                    Said::Content { changes, body } => drop(notices.try_send(Notice::Content { mount: index, changes, body })),
                    Said::Told { number, left_ms } => told(notices, number, left_ms, untold),
                }
            }
            done += PREFIX + length;
        }
        buffer.copy_within(done..filled, 0);
        filled -= done;
    }
}

/// Behind all that was to be told. What was left untold is believed for as long as all that is.
fn told(notices: &SyncSender<Notice>, number: u64, left_ms: u32, untold: Option<Instant>) {
    let Some(said) = WAITING.get().and_then(|waiting| waiting.by_request().1.remove(&number)) else { return };
    let valid_ms = u32::try_from(known::VALID.as_millis()).unwrap_or(u32::MAX);
    let is_untold = untold.is_some_and(|since| since.elapsed() < known::VALID);
    let left_ms = if is_untold { valid_ms } else { left_ms };
    if let Err(TrySendError::Full(Notice::Reached { said, .. })) = notices.try_send(Notice::Reached { said, left_ms }) {
        let _ = said.send(valid_ms);
    }
}
