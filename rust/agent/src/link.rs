//! The byte stream to the host: a virtio-serial port, a unix socket that is connected out, or stdin
//! and stdout. Non-blocking always: the loop must go on reading while writing stands still.
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl, open};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Clone)]
pub enum Target {
    /// The name of a virtio-serial port.
    Port(String),
    Connect(PathBuf),
    Stdio,
}

#[derive(Debug)]
pub struct Link {
    target: Target,
    input: Option<OwnedFd>,
    /// None: the same as `input`.
    output: Option<OwnedFd>,
    /// The link may take more; else an event tells when.
    pub writable: bool,
    retry: Duration,
}

const RETRY_MIN: Duration = Duration::from_millis(10);
const RETRY_MAX: Duration = Duration::from_secs(1);

impl Link {
    pub fn new(target: Target) -> Link {
        Link { target, input: None, output: None, writable: false, retry: RETRY_MIN }
    }

    /// Opens or connects; the descriptors to watch are `fds`.
    pub fn open(&mut self) -> Result<(), Errno> {
        let (input, output) = match &self.target {
            Target::Port(name) => (open_port(name)?, None),
            Target::Connect(path) => (connect_unix(path)?, None),
            Target::Stdio => {
                let copy = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, 3);
                (copy(std::io::stdin().as_fd())?, Some(copy(std::io::stdout().as_fd())?))
            }
        };
        for fd in [Some(&input), output.as_ref()].into_iter().flatten() {
            fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?;
        }
        self.input = Some(input);
        self.output = output;
        self.writable = true;
        self.retry = RETRY_MIN;
        Ok(())
    }

    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [self.input.as_ref(), self.output.as_ref()].into_iter().flatten().map(|fd| fd.as_fd())
    }

    pub fn is_open(&self) -> bool {
        self.input.is_some()
    }

    /// A port stays open when the host goes: the next one finds the same descriptor.
    pub fn survives_hangup(&self) -> bool {
        matches!(self.target, Target::Port(_))
    }

    /// It is watched level by level: what a read has left is told again, and so is an end until it is closed. A port is hung up
    /// for as long as nobody is at the host's end, and standard input is not the agent's alone to close.
    pub fn is_told_again(&self) -> bool {
        matches!(self.target, Target::Connect(_))
    }

    pub fn is_stdio(&self) -> bool {
        matches!(self.target, Target::Stdio)
    }

    pub fn close(&mut self) {
        self.input = None;
        self.output = None;
        self.writable = false;
    }

    /// How long to wait before the next try.
    pub fn next_retry(&mut self) -> Duration {
        let retry = self.retry;
        self.retry = (retry * 2).min(RETRY_MAX);
        retry
    }

    pub fn read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        rustix::io::read(self.input.as_ref().ok_or(Errno::BADF)?, buffer)
    }

    pub fn write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        rustix::io::write(self.output.as_ref().or(self.input.as_ref()).ok_or(Errno::BADF)?, bytes)
    }
}

/// Finds the port by the name that the host gave it.
fn open_port(name: &str) -> Result<OwnedFd, Errno> {
    let class = std::fs::read_dir("/sys/class/virtio-ports").map_err(|_| Errno::NODEV)?;
    for entry in class.flatten() {
        let told = std::fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if told.trim_end() == name {
            let device = PathBuf::from("/dev").join(entry.file_name());
            return open(device, OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY, Mode::empty());
        }
    }
    Err(Errno::NODEV)
}

fn connect_unix(path: &PathBuf) -> Result<OwnedFd, Errno> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}
