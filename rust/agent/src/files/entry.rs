//! `entry`: what is told of one file.
use super::name_of;
use crate::users::Users;
use crate::wire::value::Value;
use rustix::fs::{AtFlags, FileType, Stat, readlinkat, statat};
use rustix::io::Errno;
use std::os::fd::BorrowedFd;

pub fn type_name(mode: u32) -> &'static str {
    match FileType::from_raw_mode(mode) {
        FileType::Directory => "dir",
        FileType::Symlink => "symlink",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        FileType::CharacterDevice => "char",
        FileType::BlockDevice => "block",
        _ => "file",
    }
}

pub fn mtime_ms(stat: &Stat) -> i64 {
    stat.st_mtime * 1000 + i64::try_from(stat.st_mtime_nsec / 1_000_000).unwrap_or(0)
}

pub fn entry(path: &[u8], stat: &Stat, target: Option<&[u8]>, users: &mut Users) -> Value {
    Value::map([
        ("path", Value::text(path)),
        ("name", Value::text(name_of(path))),
        ("type", type_name(stat.st_mode).into()),
        ("size", u64::try_from(stat.st_size).unwrap_or(0).into()),
        ("mode", (stat.st_mode & 0o7777).into()),
        ("uid", stat.st_uid.into()),
        ("gid", stat.st_gid.into()),
        ("mtimeMs", mtime_ms(stat).into()),
        ("inode", stat.st_ino.into()),
        ("nlink", stat.st_nlink.into()),
    ])
    .with("user", users.user_name(stat.st_uid).map(Value::from))
    .with("group", users.group_name(stat.st_gid).map(Value::from))
    .with("target", target.map(Value::text))
}

/// Looks at `name` in `directory`; `path` is what it is called in the answer.
pub fn entry_at(directory: BorrowedFd<'_>, name: &[u8], path: &[u8], follow: bool, users: &mut Users) -> Result<Value, Errno> {
    let flags = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
    let stat = statat(directory, name, flags)?;
    let target = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => readlinkat(directory, name, Vec::new()).ok().map(std::ffi::CString::into_bytes),
        _ => None,
    };
    Ok(entry(path, &stat, target.as_deref(), users))
}
