//! Lists of names, and what they lead to.
use crate::tree::Tree;
use crate::wire::{Answer, DATA_BYTES_MAX, Fields, Out, entry};
use rustix::fs::{AtFlags, FileType, OFlags, RawDir, SeekFrom, seek, statat};
use rustix::io::Errno;
use std::os::fd::OwnedFd;

const LISTING_BYTES: usize = 32 * 1024;
const NAMES_MAX: usize = 8192;
const NAMES_BYTES_MAX: usize = 256 * 1024;

/// So that the guest knows what is not there, for so many ms. `TOOBIG`: more than are worth it.
pub fn names(tree: &mut Tree, node: u64) -> Answer {
    let directory = tree.reopen(&tree.directory(node)?, OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut out = Out::default();
    let is_heard = tree.hears_of(node, &directory);
    if tree.is_told {
        out.u32(tree.valid_ms(is_heard));
    }
    let mut buffer = Vec::with_capacity(LISTING_BYTES);
    let mut entries = RawDir::new(&directory, buffer.spare_capacity_mut());
    let mut count = 0;
    while let Some(found) = entries.next() {
        let found = found?;
        let name = found.file_name().to_bytes();
        count += 1;
        if count > NAMES_MAX || out.0.len() + name.len() > NAMES_BYTES_MAX {
            return Err(Errno::TOOBIG);
        }
        out.u16(u16::try_from(name.len()).unwrap_or(0)).bytes(name);
    }
    Ok(out.done())
}

pub fn open_directory(tree: &mut Tree, node: u64) -> Answer {
    let place = tree.directory(node)?;
    let opened = tree.reopen(&place, OFlags::RDONLY | OFlags::DIRECTORY)?;
    let handle = tree.files.open_directory(opened)?;
    Ok(Out::default().u64(handle).u32(0).u32(0).done())
}

/// As many entries as fit. With `plus` each is looked up too.
pub fn list(tree: &mut Tree, node: u64, fields: &mut Fields<'_>, plus: bool) -> Answer {
    let (handle, offset, size) = (fields.u64()?, fields.u64()?, fields.u32()?);
    let room = (size as usize).min(DATA_BYTES_MAX);
    let directory = rustix::io::fcntl_dupfd_cloexec(tree.files.directory(handle)?, 3)?;
    seek(&directory, SeekFrom::Start(offset))?;
    let mut out = Out(Vec::with_capacity(room));
    let mut buffer = Vec::with_capacity(LISTING_BYTES);
    let mut entries = RawDir::new(&directory, buffer.spare_capacity_mut());
    tree.hears_of(node, &directory);
    let (mut names, mut cookie) = (Vec::new(), offset);
    while let Some(found) = entries.next() {
        let found = found?;
        let name = found.file_name().to_bytes();
        let padded = name.len().next_multiple_of(8);
        if out.0.len() + 24 + padded + if plus { 128 } else { 0 } > room {
            break;
        }
        if plus {
            enter_listed(tree, &mut out, &directory, node, name)?;
        }
        let kind = match found.file_type() {
            FileType::Unknown => 0,
            kind => (kind.as_raw_mode() & 0o170_000) >> 12,
        };
        out.u64(found.ino()).u64(found.next_entry_cookie()).u32(name.len() as u32).u32(kind).bytes(name);
        out.bytes([0; 8].get(..padded - name.len()).unwrap_or_default());
        cookie = found.next_entry_cookie();
        names.push(name.to_vec());
    }
    tree.ahead.listed(node, offset, cookie, names);
    Ok(out.done())
}

/// One that is gone by now, and the directory itself, are only named.
fn enter_listed(tree: &mut Tree, out: &mut Out, directory: &OwnedFd, node: u64, name: &[u8]) -> Result<(), Errno> {
    let stat = if name == b"." || name == b".." { None } else { statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).ok() };
    match stat {
        Some(stat) => tree.enter(out, directory, node, name, stat).map(|_| ()),
        None => {
            entry(out, 0, 0, 0, None);
            Ok(())
        }
    }
}
