//! The port of the machine behind which `hutch-files` listens, and where a message ends.
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, read, write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

const NAME: &str = "hutch.files.0";
const PORTS: &str = "/sys/class/virtio-ports";
/// In front of each message: of which directory.
pub const PREFIX: usize = 4;
/// A machine that has just been restored hears a moment later that somebody is there.
const CONNECT: Duration = Duration::from_secs(10);

pub struct Port {
    /// Never waited for by reading or writing: while a write that may wait is under way, its processor does nothing else.
    fd: OwnedFd,
    writing: Mutex<()>,
}

impl Port {
    pub fn find() -> Result<Port, Errno> {
        let ports = std::fs::read_dir(PORTS).map_err(|_| Errno::NODEV)?;
        let is_it = |path: &PathBuf| std::fs::read_to_string(path.join("name")).is_ok_and(|name| name.trim() == NAME);
        let found = ports.flatten().map(|entry| entry.path()).find(is_it).ok_or(Errno::NODEV)?;
        let device = PathBuf::from("/dev").join(found.file_name().ok_or(Errno::NODEV)?);
        let fd = open(&device, OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())?;
        let port = Port { fd, writing: Mutex::default() };
        let deadline = Instant::now() + CONNECT;
        while let Err(errno) = port.wait(PollFlags::OUT) {
            if Instant::now() > deadline {
                return Err(errno);
            }
            sleep(Duration::from_millis(1));
        }
        Ok(port)
    }

    fn wait(&self, flags: PollFlags) -> Result<(), Errno> {
        let mut fds = [PollFd::new(&self.fd, flags)];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        let [fd] = &fds;
        // What is still there to be read is read first.
        if fd.revents().contains(PollFlags::HUP) && !fd.revents().contains(PollFlags::IN) { Err(Errno::NOTCONN) } else { Ok(()) }
    }

    /// All of it, and of nobody else in between.
    pub fn send(&self, mut left: &[u8]) -> Result<(), Errno> {
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        while !left.is_empty() {
            match write(&self.fd, left) {
                Ok(count) => left = left.get(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT)?,
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// At least one byte.
    pub fn read(&self, into: &mut [u8]) -> Result<usize, Errno> {
        loop {
            match read(&self.fd, &mut *into) {
                Ok(0) => return Err(Errno::NOTCONN),
                Ok(count) => return Ok(count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(PollFlags::IN)?,
                Err(errno) => return Err(errno),
            }
        }
    }
}

/// Says of which directory a message is that begins behind its prefix.
pub fn address(message: &mut [u8], index: usize) {
    if let Some(prefix) = message.get_mut(..PREFIX) {
        prefix.copy_from_slice(&u32::try_from(index).unwrap_or(u32::MAX).to_le_bytes());
    }
}

/// Of which directory the next message is, and how long.
pub fn whole(bytes: &[u8]) -> Option<(usize, usize)> {
    let index = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?);
    let length = u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?);
    Some((usize::try_from(index).ok()?, usize::try_from(length).ok()?))
}
