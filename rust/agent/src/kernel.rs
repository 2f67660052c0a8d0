//! What the kernel tells in /proc and /sys. Both are held open: whatever is done to the sandbox's
//! mounts, the agent still sees them.
use rustix::fs::{CWD, Dir, Mode, OFlags, openat};
use rustix::io::Errno;
use std::os::fd::OwnedFd;

const FILE_BYTES_MAX: usize = 8 << 20;

pub struct Kernel {
    proc: Option<OwnedFd>,
    sys: Option<OwnedFd>,
}

const PLACE: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

fn read(directory: Option<&OwnedFd>, path: &str) -> Result<String, Errno> {
    let file = openat(directory.ok_or(Errno::NOENT)?, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut bytes = Vec::new();
    let mut chunk = [0; 8192];
    loop {
        let count = rustix::io::read(&file, &mut chunk)?;
        bytes.extend_from_slice(chunk.get(..count).unwrap_or_default());
        if count == 0 || bytes.len() > FILE_BYTES_MAX {
            return Ok(String::from_utf8_lossy(&bytes).into_owned());
        }
    }
}

impl Kernel {
    pub fn open() -> Kernel {
        let open = |path| openat(CWD, path, PLACE, Mode::empty()).ok();
        Kernel { proc: open("/proc"), sys: open("/sys") }
    }

    /// A file below /proc.
    pub fn proc(&self, path: &str) -> Result<String, Errno> {
        read(self.proc.as_ref(), path)
    }

    /// A file below /sys.
    pub fn sys(&self, path: &str) -> Result<String, Errno> {
        read(self.sys.as_ref(), path)
    }

    pub fn proc_directory(&self, path: &str) -> Result<Dir, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(self.proc.as_ref().ok_or(Errno::NOENT)?, path, flags, Mode::empty())?;
        Dir::new(directory)
    }

    /// Where a symbolic link below /proc leads.
    pub fn proc_link(&self, path: &str) -> Result<Vec<u8>, Errno> {
        let proc = self.proc.as_ref().ok_or(Errno::NOENT)?;
        Ok(rustix::fs::readlinkat(proc, path, Vec::new())?.into_bytes())
    }

    pub fn pids(&self) -> Vec<i32> {
        let Ok(directory) = self.proc_directory(".") else { return Vec::new() };
        directory.filter_map(|entry| entry.ok()?.file_name().to_str().ok()?.parse().ok()).collect()
    }
}
