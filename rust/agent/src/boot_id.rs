//! `/proc/sys/kernel/random/boot_id`: the kernel makes it once, so all machines that were restored from one
//! template have the same. In a machine a file in memory is bound over it; each `configure` may write another.
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, pwrite};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use std::os::fd::OwnedFd;

pub const PLACE: &str = "/proc/sys/kernel/random/boot_id";

/// The file that is bound, from the first time on: it moves with `/proc` from root to root.
#[derive(Debug, Default)]
pub struct BootId {
    bound: Option<OwnedFd>,
}

impl BootId {
    /// `memory` is the directory for files in memory; without one the kernel's own stays.
    pub fn set(&mut self, id: &str, memory: Option<&OwnedFd>) -> Result<(), Errno> {
        let file = match self.bound.take() {
            Some(file) => file,
            None => bind(memory.ok_or(Errno::NODEV)?)?,
        };
        // All of them are of one length: what is read at any time is one or the other.
        let written = pwrite(&file, format!("{id}\n").as_bytes(), 0);
        self.bound = Some(file);
        written.map(drop)
    }
}

fn bind(memory: &OwnedFd) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let file = openat(memory, "boot-id", flags, Mode::from_raw_mode(0o444))?;
    let tree =
        open_tree(&file, "", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH)?;
    move_mount(&tree, "", CWD, PLACE, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(file)
}

/// As the kernel writes it: lower-case hex in five groups.
pub fn is_boot_id(text: &str) -> bool {
    let groups = [8, 4, 4, 4, 12];
    text.split('-').count() == groups.len()
        && text
            .split('-')
            .zip(groups)
            .all(|(group, length)| group.len() == length && group.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_kernel_itself_would_write_is_a_boot_id() {
        assert!(is_boot_id("0e4b4a3c-7f04-4b15-9d0c-4c1a2a3b4c5d"));
        for wrong in [
            "",
            "0e4b4a3c7f044b159d0c4c1a2a3b4c5d",
            "0E4b4a3c-7f04-4b15-9d0c-4c1a2a3b4c5d",
            "0e4b4a3c-7f04-4b15-9d0c-4c1a2a3b4c5d-",
        ] {
            assert!(!is_boot_id(wrong), "{wrong}");
        }
    }
}
