//! What a guest can ask for, and how it is done.
use crate::listing;
use crate::nodes::Identity;
use crate::opcode;
use crate::tree::{Tree, identity};
use crate::wire::{Answer, DATA_BYTES_MAX, Fields, Header, NAME_BYTES_MAX, Out, entry, init};
use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Mode, OFlags, RenameFlags, SeekFrom, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT,
    fallocate, fdatasync, fstat, fstatvfs, fsync, ftruncate, linkat, mkdirat, mknodat, openat, readlinkat, renameat_with, seek,
    symlinkat, unlinkat, utimensat,
};
use rustix::io::{Errno, ReadWriteFlags, pread, pwrite, pwritev2};
use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};

/// What a guest may set on a file: no set-user-id, no set-group-id.
const FILE_MODE: u32 = 0o1777;
const DIRECTORY_MODE: u32 = 0o3777;

/// Null where nothing is answered.
pub fn answer(tree: &mut Tree, header: &Header, fields: &mut Fields<'_>) -> Option<Answer> {
    let node = header.node;
    Some(match header.opcode {
        opcode::LOOKUP => lookup(tree, node, fields),
        opcode::FORGET => {
            forget(tree, node, fields.u64().unwrap_or(0));
            return None;
        }
        opcode::GETATTR => get_attributes(tree, node),
        opcode::SETATTR => set_attributes(tree, node, fields),
        opcode::READLINK => read_link(tree, node),
        opcode::SYMLINK => make_symlink(tree, header, fields),
        opcode::MKNOD => make_node(tree, header, fields),
        opcode::MKDIR => make_directory(tree, header, fields),
        opcode::UNLINK => remove(tree, node, fields, AtFlags::empty()),
        opcode::RMDIR => remove(tree, node, fields, AtFlags::REMOVEDIR),
        opcode::RENAME => fields.u64().and_then(|to| rename(tree, node, to, 0, fields)),
        opcode::LINK => link(tree, node, fields),
        opcode::READ => read(tree, node, fields),
        opcode::WRITE => write(tree, node, fields),
        opcode::STATFS => file_system(tree, node),
        opcode::FSYNC => synchronize(tree, node, fields),
        opcode::INIT => init(fields),
        opcode::OPENDIR => listing::open_directory(tree, node),
        opcode::READDIR => listing::list(tree, node, fields, false),
        opcode::READDIRPLUS => listing::list(tree, node, fields, true),
        opcode::RELEASEDIR => fields.u64().map(|handle| {
            tree.files.close_directory(handle);
            Vec::new()
        }),
        opcode::CREATE => create(tree, header, fields),
        opcode::NAMES => listing::names(tree, node),
        opcode::INSIDE => inside(tree, fields),
        opcode::FSYNCDIR => fields.u64().and_then(|handle| fsync(tree.files.directory(handle)?)).map(|()| Vec::new()),
        opcode::DESTROY => Ok(Vec::new()),
        opcode::BATCH_FORGET => {
            forget_many(tree, fields);
            return None;
        }
        opcode::FALLOCATE => allocate(tree, node, fields),
        opcode::RENAME2 => rename_with(tree, node, fields),
        opcode::LSEEK => seek_data(tree, node, fields),
        // A release, and what a kernel does by itself once it was told that it is not there: open, flush, access, attributes,
        // locks, interrupts.
        _ => Err(Errno::NOSYS),
    })
}

/// What the directory is like now in which a request has changed something; behind the request's number and its own.
pub fn seen(tree: &mut Tree, header: &Header) -> Option<Vec<u8>> {
    use opcode::{CREATE, LINK, MKDIR, MKNOD, RMDIR, SYMLINK, UNLINK};
    if !matches!(header.opcode, SYMLINK | MKNOD | MKDIR | UNLINK | RMDIR | LINK | CREATE) {
        return None;
    }
    let attributes = get_attributes(tree, header.node).ok()?;
    let mut out = Out::default();
    out.u64(header.unique).u64(header.node).bytes(&attributes);
    Some(out.done())
}

/// Who does not say that he hears what others change was made before that could be said.
fn inside(tree: &mut Tree, fields: &mut Fields<'_>) -> Answer {
    let (uid, gid) = (fields.u32()?, fields.u32()?);
    tree.be_inside(uid, gid);
    tree.is_told = fields.u32().is_ok_and(|hears| hears == 1);
    Ok(Vec::new())
}

fn lookup(tree: &mut Tree, parent: u64, fields: &mut Fields<'_>) -> Answer {
    let name = fields.name()?;
    let directory = tree.directory(parent)?;
    match tree.entered(&directory, parent, name) {
        // Remembered, for as long as what is there.
        Err(Errno::NOENT) => {
            let mut out = Out::default();
            let valid_ms = tree.valid_ms(tree.watches.has(parent));
            entry(&mut out, 0, valid_ms, valid_ms, None);
            Ok(out.done())
        }
        other => other,
    }
}

fn get_attributes(tree: &mut Tree, node: u64) -> Answer {
    let place = tree.place(node)?;
    if FileType::from_raw_mode(fstat(&place)?.st_mode) == FileType::Directory {
        tree.hears_of(node, &place);
    }
    let stat = fstat(&place)?;
    tree.attributes(node, stat)
}

fn forget(tree: &mut Tree, node: u64, count: u64) {
    if tree.nodes.forget(node, count) {
        tree.watches.remove(node);
        tree.files.close(node);
    }
}

fn forget_many(tree: &mut Tree, fields: &mut Fields<'_>) {
    let (Ok(count), Ok(_)) = (fields.u32(), fields.u32()) else { return };
    for _ in 0..count {
        let (Ok(node), Ok(times)) = (fields.u64(), fields.u64()) else { return };
        forget(tree, node, times);
    }
}

/// Open, for what the guest does with a regular file.
fn file(tree: &mut Tree, node: u64, to_write: bool) -> Result<&OwnedFd, Errno> {
    if to_write {
        tree.for_change()?;
    }
    if tree.files.get(node, to_write).is_none() {
        let place = tree.place(node)?;
        if FileType::from_raw_mode(fstat(&place)?.st_mode) != FileType::RegularFile {
            return Err(Errno::INVAL);
        }
        let opened = if to_write {
            // Also to be read, where that may be.
            match tree.reopen(&place, OFlags::RDWR) {
                Err(Errno::ACCESS) => tree.reopen(&place, OFlags::WRONLY)?,
                other => other?,
            }
        } else {
            tree.reopen(&place, OFlags::RDONLY)?
        };
        tree.files.keep(node, opened, to_write);
    }
    tree.files.get(node, to_write).ok_or(Errno::BADF)
}

fn set_attributes(tree: &mut Tree, node: u64, fields: &mut Fields<'_>) -> Answer {
    tree.for_change()?;
    let (valid, _) = (fields.u32()?, fields.u32()?);
    let (_handle, size, _owner) = (fields.u64()?, fields.u64()?, fields.u64()?);
    let (accessed, modified, _) = (fields.u64()?, fields.u64()?, fields.u64()?);
    let (accessed_ns, modified_ns, _) = (fields.u32()?, fields.u32()?, fields.u32()?);
    let (mode, _, uid, gid) = (fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?);
    let has = |bit: u32| valid & (1 << bit) != 0;
    let place = tree.place(node)?;
    if has(1) || has(2) {
        let (uid, gid) = tree.owner(has(1).then_some(uid), has(2).then_some(gid))?;
        if uid.is_some() || gid.is_some() {
            rustix::fs::chownat(&place, c"", uid, gid, AtFlags::EMPTY_PATH)?;
        }
    }
    if has(0) {
        let most = match FileType::from_raw_mode(fstat(&place)?.st_mode) {
            FileType::Symlink => return Err(Errno::OPNOTSUPP),
            FileType::Directory => DIRECTORY_MODE,
            _ => FILE_MODE,
        };
        if mode & 0o7777 & !most != 0 {
            return Err(Errno::PERM);
        }
        rustix::fs::chmod(tree.path_of(place.as_fd()), Mode::from_raw_mode(mode & most))?;
    }
    if has(3) {
        ftruncate(file(tree, node, true)?, size)?;
    }
    if has(4) || has(5) {
        let time = |is_set: bool, is_now: bool, seconds: u64, nanoseconds: u32| Timespec {
            tv_sec: seconds as i64,
            tv_nsec: if !is_set {
                UTIME_OMIT
            } else if is_now {
                UTIME_NOW
            } else {
                i64::from(nanoseconds.min(999_999_999))
            },
        };
        let times = Timestamps {
            last_access: time(has(4), has(7), accessed, accessed_ns),
            last_modification: time(has(5), has(8), modified, modified_ns),
        };
        utimensat(&place, c"", &times, AtFlags::EMPTY_PATH)?;
    }
    let stat = fstat(&place)?;
    tree.attributes(node, stat)
}

fn read_link(tree: &Tree, node: u64) -> Answer {
    Ok(readlinkat(tree.place(node)?, c"", Vec::new())?.into_bytes())
}

fn make_symlink(tree: &mut Tree, header: &Header, fields: &mut Fields<'_>) -> Answer {
    tree.for_change()?;
    let name = fields.name()?;
    let target = fields.text()?;
    let directory = tree.directory(header.node)?;
    symlinkat(target, &directory, name)?;
    tree.give(&directory, name, header)?;
    tree.entered(&directory, header.node, name)
}

/// Regular files, pipes and sockets; never a device.
fn make_node(tree: &mut Tree, header: &Header, fields: &mut Fields<'_>) -> Answer {
    tree.for_change()?;
    let (mode, _, _, _) = (fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?);
    let name = fields.name()?;
    let directory = tree.directory(header.node)?;
    let permissions = Mode::from_raw_mode(mode & FILE_MODE);
    let kind = FileType::from_raw_mode(mode);
    match kind {
        FileType::RegularFile => {
            let mut out = Out::default();
            make_file(tree, &mut out, &directory, name, permissions, header)?;
            return Ok(out.done());
        }
        FileType::Fifo | FileType::Socket => mknodat(&directory, name, kind, permissions, 0)?,
        _ => return Err(Errno::PERM),
    }
    tree.give(&directory, name, header)?;
    tree.entered(&directory, header.node, name)
}

/// Kept open: whoever made it writes to it next, also where its mode would not let him.
fn make_file(
    tree: &mut Tree,
    out: &mut Out,
    directory: &OwnedFd,
    name: &[u8],
    permissions: Mode,
    header: &Header,
) -> Result<(), Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    tree.hears_of(header.node, directory);
    let made = openat(directory, name, flags, permissions)?;
    tree.give(directory, name, header)?;
    let stat = fstat(&made)?;
    let id = tree.enter(out, directory, header.node, name, stat)?;
    tree.files.keep(id, made, true);
    Ok(())
}

/// What somebody else has made there since the guest looked is opened, unless it must be new.
fn create(tree: &mut Tree, header: &Header, fields: &mut Fields<'_>) -> Answer {
    tree.for_change()?;
    let (flags, mode, _, _) = (fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?);
    let flags = OFlags::from_bits_retain(flags);
    let name = fields.name()?;
    let directory = tree.directory(header.node)?;
    let mut out = Out::default();
    match make_file(tree, &mut out, &directory, name, Mode::from_raw_mode(mode & FILE_MODE), header) {
        Err(Errno::EXIST) if !flags.contains(OFlags::EXCL) => {
            let stat = tree.look(&directory, name)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return Err(Errno::EXIST);
            }
            let id = tree.enter(&mut out, &directory, header.node, name, stat)?;
            if flags.contains(OFlags::TRUNC) {
                ftruncate(file(tree, id, true)?, 0)?;
            }
        }
        other => other?,
    }
    // As of a file that is not opened: what the guest has of it stays.
    out.u64(0).u32(KEEP_CACHE).u32(0);
    Ok(out.done())
}

const KEEP_CACHE: u32 = 2;

fn make_directory(tree: &mut Tree, header: &Header, fields: &mut Fields<'_>) -> Answer {
    tree.for_change()?;
    let (mode, _) = (fields.u32()?, fields.u32()?);
    let name = fields.name()?;
    let directory = tree.directory(header.node)?;
    mkdirat(&directory, name, Mode::from_raw_mode(mode & DIRECTORY_MODE))?;
    tree.give(&directory, name, header)?;
    tree.entered(&directory, header.node, name)
}

/// What a name leads to that is about to go, and is in use by the guest.
fn in_use(tree: &Tree, directory: &OwnedFd, name: &[u8]) -> Result<Option<(u64, OwnedFd)>, Errno> {
    let stat = tree.look(directory, name)?;
    let Some(id) = tree.nodes.named(identity(&stat)) else { return Ok(None) };
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(Some((id, openat(directory, name, flags, Mode::empty())?)))
}

fn remove(tree: &mut Tree, parent: u64, fields: &mut Fields<'_>, how: AtFlags) -> Answer {
    tree.for_change()?;
    let name = fields.name()?;
    let directory = tree.directory(parent)?;
    let used = in_use(tree, &directory, name)?;
    unlinkat(&directory, name, how)?;
    if let Some((id, kept)) = used {
        tree.nodes.unname(id, parent, name, Some(kept));
    }
    Ok(Vec::new())
}

fn rename_with(tree: &mut Tree, parent: u64, fields: &mut Fields<'_>) -> Answer {
    let (to, flags, _) = (fields.u64()?, fields.u32()?, fields.u32()?);
    rename(tree, parent, to, flags, fields)
}

fn rename(tree: &mut Tree, parent: u64, to: u64, flags: u32, fields: &mut Fields<'_>) -> Answer {
    tree.for_change()?;
    let flags = RenameFlags::from_bits(flags).filter(|flags| !flags.contains(RenameFlags::WHITEOUT)).ok_or(Errno::INVAL)?;
    let (name, new_name) = (fields.name()?, fields.name()?);
    let (from_directory, to_directory) = (tree.directory(parent)?, tree.directory(to)?);
    let moved: Identity = identity(&tree.look(&from_directory, name)?);
    let replaced = in_use(tree, &to_directory, new_name).ok().flatten();
    renameat_with(&from_directory, name, &to_directory, new_name, flags)?;
    if let Some((id, kept)) = replaced {
        if flags.contains(RenameFlags::EXCHANGE) {
            tree.nodes.rename(id, (to, new_name), (parent, name));
        } else if tree.nodes.named(moved) != Some(id) {
            tree.nodes.unname(id, to, new_name, Some(kept));
        }
    }
    if let Some(id) = tree.nodes.named(moved) {
        tree.nodes.rename(id, (parent, name), (to, new_name));
    }
    Ok(Vec::new())
}

fn link(tree: &mut Tree, parent: u64, fields: &mut Fields<'_>) -> Answer {
    tree.for_change()?;
    let node = fields.u64()?;
    let name = fields.name()?;
    let (place, directory) = (tree.place(node)?, tree.directory(parent)?);
    linkat(rustix::fs::CWD, tree.path_of(place.as_fd()), &directory, name, AtFlags::SYMLINK_FOLLOW)?;
    tree.entered(&directory, parent, name)
}

fn read(tree: &mut Tree, node: u64, fields: &mut Fields<'_>) -> Answer {
    let (_handle, offset, size) = (fields.u64()?, fields.u64()?, fields.u32()?);
    if let (0, Some((parent, name))) = (offset, tree.nodes.names(node)?.first()) {
        tree.ahead.read(*parent, name);
    }
    let mut bytes = vec![0; (size as usize).min(DATA_BYTES_MAX)];
    let file = file(tree, node, false)?;
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match pread(file, rest, offset.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    bytes.truncate(done);
    Ok(bytes)
}

fn write(tree: &mut Tree, node: u64, fields: &mut Fields<'_>) -> Answer {
    let (_handle, offset, size, how) = (fields.u64()?, fields.u64()?, fields.u32()?, fields.u32()?);
    let (_owner, flags, _) = (fields.u64()?, fields.u32()?, fields.u32()?);
    let bytes = fields.take(size as usize)?;
    // Where the end is, is known here; what a page of the guest's memory has, has its place.
    let appends = how & FROM_CACHE == 0 && OFlags::from_bits_retain(flags).contains(OFlags::APPEND);
    let file = file(tree, node, true)?;
    let mut done = 0;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        let at = offset.saturating_add(done as u64);
        let written =
            if appends { pwritev2(file, &[IoSlice::new(rest)], at, ReadWriteFlags::APPEND) } else { pwrite(file, rest, at) };
        match written {
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(_) if done > 0 => break,
            Err(errno) => return Err(errno),
        }
    }
    // Whether the next one will find room too, as far as that can be said.
    let room = u32::from(fstatvfs(file).is_ok_and(|found| found.f_bavail.saturating_mul(found.f_frsize) >= ROOM_BYTES));
    Ok(Out::default().u32(u32::try_from(done).unwrap_or(0)).u32(room).done())
}

const FROM_CACHE: u32 = 1;
/// With less free the guest waits for each write to be done.
const ROOM_BYTES: u64 = 256 << 20;

fn file_system(tree: &Tree, node: u64) -> Answer {
    let found = fstatvfs(tree.place(node)?)?;
    let mut out = Out::default();
    out.u64(found.f_blocks).u64(found.f_bfree).u64(found.f_bavail).u64(found.f_files).u64(found.f_ffree);
    let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    out.u32(small(found.f_bsize)).u32(NAME_BYTES_MAX as u32).u32(small(found.f_frsize)).bytes(&[0; 28]);
    Ok(out.done())
}

fn synchronize(tree: &mut Tree, node: u64, fields: &mut Fields<'_>) -> Answer {
    let (_handle, flags) = (fields.u64()?, fields.u32()?);
    let file = file(tree, node, false)?;
    if flags & 1 == 0 {
        fsync(file)?
    } else {
        fdatasync(file)?
    }
    Ok(Vec::new())
}

fn allocate(tree: &mut Tree, node: u64, fields: &mut Fields<'_>) -> Answer {
    let (_handle, offset, length, mode) = (fields.u64()?, fields.u64()?, fields.u64()?, fields.u32()?);
    let mode = FallocateFlags::from_bits(mode).ok_or(Errno::OPNOTSUPP)?;
    fallocate(file(tree, node, true)?, mode, offset, length)?;
    Ok(Vec::new())
}

fn seek_data(tree: &mut Tree, node: u64, fields: &mut Fields<'_>) -> Answer {
    let (_handle, offset, whence) = (fields.u64()?, fields.u64()?, fields.u32()?);
    let to = match whence {
        3 => SeekFrom::Data(offset),
        4 => SeekFrom::Hole(offset),
        _ => return Err(Errno::INVAL),
    };
    let found = seek(file(tree, node, false)?, to)?;
    Ok(Out::default().u64(found).done())
}
