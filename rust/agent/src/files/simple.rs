//! The methods with one answer: stat, mkdir, rename, remove, chmod, chown, truncate, symlink, link.
use super::entry::entry_at;
use super::{Scene, failed, parent_of};
use crate::agent::Agent;
use crate::fault::{Fault, Outcome};
use crate::users::Users;
use crate::wire::fields::Fields;
use crate::wire::value::Value;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, chmodat, chownat, ftruncate, linkat, mkdirat, open, renameat, stat, symlinkat,
};
use rustix::io::Errno;
use std::os::fd::AsFd;

pub enum Change {
    Stat { follow: bool },
    Mkdir { mode: u32, parents: bool },
    Rename { to: Vec<u8> },
    Remove { recursive: bool },
    Chmod { mode: u32 },
    Chown { uid: Option<u32>, gid: Option<u32>, follow: bool },
    Truncate { size: u64 },
    Symlink { target: Vec<u8> },
    Link { target: Vec<u8> },
}

pub struct Request {
    path: Vec<u8>,
    change: Change,
}

/// `user`, `user:group`, `:group` or `user:` (with the user's own group).
fn parse_owner(users: &mut Users, owner: &str) -> Result<(Option<u32>, Option<u32>), Fault> {
    let in_owner = |fault: Fault| Fault { message: fault.message.replacen("user:", "owner:", 1), ..fault };
    match owner.split_once(':') {
        None => Ok((Some(users.resolve(Some(owner)).map_err(in_owner)?.uid), None)),
        Some(("", "")) => Err(Fault::invalid_argument("owner must be user, user:group or :group")),
        Some(("", group)) => Ok((None, Some(users.resolve(Some(&format!("0:{group}"))).map_err(in_owner)?.gid))),
        Some((user, group)) => {
            let spec = if group.is_empty() { user.to_owned() } else { format!("{user}:{group}") };
            let user = users.resolve(Some(&spec)).map_err(in_owner)?;
            Ok((Some(user.uid), Some(user.gid)))
        }
    }
}

pub fn mode_of(p: Fields<'_>) -> Result<Option<u32>, Fault> {
    Ok(p.opt_in("mode", 0, 0o7777)?.and_then(|mode| u32::try_from(mode).ok()))
}

impl Agent {
    pub fn simple_request(&mut self, method: &str, p: Fields<'_>, scene: &Scene) -> Result<Request, Fault> {
        let mode = || mode_of(p)?.ok_or_else(|| Fault::invalid_argument("mode is missing"));
        let (path_field, change) = match method {
            "file.stat" => ("path", Change::Stat { follow: p.bool_or("follow", true)? }),
            "file.mkdir" => ("path", Change::Mkdir { mode: mode_of(p)?.unwrap_or(0o755), parents: p.bool_or("parents", false)? }),
            "file.rename" => ("from", Change::Rename { to: self.path_of(p, "to", scene)? }),
            "file.remove" => ("path", Change::Remove { recursive: p.bool_or("recursive", false)? }),
            "file.chmod" => ("path", Change::Chmod { mode: mode()? }),
            "file.chown" => {
                let (uid, gid) = parse_owner(&mut self.users, p.str("owner")?)?;
                ("path", Change::Chown { uid, gid, follow: p.bool_or("follow", true)? })
            }
            "file.truncate" => ("path", Change::Truncate { size: p.u64("size")? }),
            // What a symbolic link says is text; where a hard link leads is a path.
            "file.symlink" => ("path", Change::Symlink { target: p.path("target")?.to_vec() }),
            "file.link" => ("path", Change::Link { target: self.path_of(p, "target", scene)? }),
            _ => return Err(Fault::unimplemented(format!("this agent has no method {method}"))),
        };
        Ok(Request { path: self.path_of(p, path_field, scene)?, change })
    }
}

pub fn run(scene: &mut Scene, request: &Request) -> Outcome {
    let path = request.path.as_slice();
    let (mut shown, mut follow) = (path, false);
    {
        let _acting = scene.act()?;
        let done = match &request.change {
            Change::Stat { follow: wanted } => {
                follow = *wanted;
                Ok(())
            }
            Change::Mkdir { mode, parents: false } => mkdirat(CWD, path, Mode::from_raw_mode(*mode)),
            Change::Mkdir { mode, parents: true } => make_directories(path, *mode),
            Change::Rename { to } => {
                shown = to;
                renameat(CWD, path, CWD, to.as_slice())
            }
            Change::Remove { recursive } => {
                super::remove::remove(path, *recursive).map_err(failed(path))?;
                return Ok(Value::Nil);
            }
            Change::Chmod { mode } => {
                follow = true;
                chmodat(CWD, path, Mode::from_raw_mode(*mode), AtFlags::empty())
            }
            Change::Chown { uid, gid, follow: wanted } => {
                follow = *wanted;
                let flags = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
                chownat(CWD, path, uid.map(Uid::from_raw), gid.map(Gid::from_raw), flags)
            }
            Change::Truncate { size } => {
                follow = true;
                truncate(path, *size)
            }
            Change::Symlink { target } => symlinkat(target.as_slice(), CWD, path),
            Change::Link { target } => linkat(CWD, target.as_slice(), CWD, path, AtFlags::empty()),
        };
        done.map_err(failed(path))?;
        // The mode of mkdir goes through the umask: what was asked for counts.
        if let Change::Mkdir { mode, .. } = &request.change {
            chmodat(CWD, path, Mode::from_raw_mode(*mode), AtFlags::empty()).map_err(failed(path))?;
        }
    }
    let _acting = become_reader(scene)?;
    let users = &mut Users::default();
    entry_at(CWD.as_fd(), shown, shown, follow, users).map_err(failed(shown))
}

fn become_reader(scene: &Scene) -> Result<super::Acting<'_>, Fault> {
    scene.act()
}

fn truncate(path: &[u8], size: u64) -> Result<(), Errno> {
    let fd = open(path, OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())?;
    ftruncate(fd, size)
}

/// Like `mkdir -p`: directories that are there are left as they are.
pub fn make_directories(path: &[u8], mode: u32) -> Result<(), Errno> {
    match mkdirat(CWD, path, Mode::from_raw_mode(mode)) {
        Ok(()) => return Ok(()),
        Err(Errno::EXIST) => return if is_directory(path) { Ok(()) } else { Err(Errno::EXIST) },
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    // From the first name on: what is missing is made.
    let mut end = 0;
    while let Some(slash) = path.get(end + 1..).and_then(|rest| rest.iter().position(|byte| *byte == b'/')) {
        end += 1 + slash;
        let part = path.get(..end).unwrap_or_default();
        match mkdirat(CWD, part, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST | Errno::ROFS | Errno::ACCESS) => {}
            Err(errno) => return Err(errno),
        }
    }
    match mkdirat(CWD, path, Mode::from_raw_mode(mode)) {
        Err(Errno::EXIST) if is_directory(path) => Ok(()),
        result => result,
    }
}

fn is_directory(path: &[u8]) -> bool {
    stat(path).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// The directory above `path`, made if it is missing.
pub fn make_parent(path: &[u8]) -> Result<(), Errno> {
    make_directories(parent_of(path), 0o755)
}
