//! `hutch-agent --layer …`: what a build asks of the private layer of its sandbox, done by a process of its own: in the
//! guest where the layer is the guest's disk, on the host where it lies there.
//!
//! ```text
//! hutch-agent --layer list UPPER MERGED      what is in the layer, a record for each, ended by NUL
//! hutch-agent --layer pack UPPER MERGED      a tar archive of the paths on stdin, each ended by NUL
//! hutch-agent --layer remove                 removes the paths on stdin; `PATH/.` is all that is in a directory
//! hutch-agent --layer kill                   ends every process but this one, init and the kernel's own
//! hutch-agent --layer tmpfs PATH [MIB]       memory over a directory; `uncover PATH` takes it away, as what the next two mount
//! hutch-agent --layer bind FROM PATH         a directory over a directory, or a file over a file
//! hutch-agent --layer view FROM EMPTY PATH   a directory over a directory, read-only; EMPTY is one with nothing in it
//! hutch-agent --layer alone UID:GID ARG…     runs a command without any network
//! ```
//!
//! UPPER is the directory in which overlayfs keeps what was changed, or `device:/dev/NAME` for the directory `upper` on an
//! ext4 that is mounted for this process alone. MERGED is the file system as its processes see it.
use crate::tar::header::{BLOCK, Header, Kind};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, lgetxattr, llistxattr, major, minor, open, readlinkat, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::{BufWriter, Read, StdoutLock, Write, stdin, stdout};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;

const CHUNK: usize = 256 * 1024;
/// All paths that are given at once.
const PATHS_BYTES_MAX: u64 = 64 << 20;
const DEPTH_MAX: usize = 1_024;
const XATTR_BYTES_MAX: usize = 64 * 1024;
const KILL_ROUNDS_MAX: usize = 200;
const MOUNTED_AT: &str = "/run/hutch-layer";

type Done = Result<(), String>;

pub fn main(arguments: &[OsString]) -> Done {
    let text: Vec<&str> = arguments.iter().map(|argument| argument.to_str().unwrap_or_default()).collect();
    match text.as_slice() {
        ["list", upper, merged] => Layer::open(upper, merged)?.list(),
        ["pack", upper, merged] => Layer::open(upper, merged)?.pack(),
        ["remove"] => remove(),
        ["kill"] => kill(),
        ["tmpfs", path, ..] => tmpfs(path, text.get(2).copied()),
        ["bind", from, path] => mount_bind(*from, *path).map_err(said(path.as_bytes())),
        ["view", from, empty, path] => view(from, empty, path),
        ["uncover", path] => unmount(*path, UnmountFlags::DETACH).map_err(said(path.as_bytes())),
        ["alone", user, _, ..] => alone(user, arguments.get(2..).unwrap_or_default()),
        _ => Err("unknown arguments".to_owned()),
    }
}

fn said(path: &[u8]) -> impl Fn(Errno) -> String {
    move |errno| format!("{}: {errno}", String::from_utf8_lossy(path))
}

fn io(error: &std::io::Error) -> String {
    error.to_string()
}

struct Layer {
    upper: Vec<u8>,
    merged: Vec<u8>,
}

/// What stands in the layer, or, below a directory that was moved, in the file system as it is seen.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    Upper,
    Merged,
}

impl Layer {
    fn open(upper: &str, merged: &str) -> Result<Layer, String> {
        let upper = match upper.strip_prefix("device:") {
            None => upper.to_owned(),
            Some(device) => {
                // It ends with this process.
                hutch_sys::own_mounts().map_err(|error| io(&error))?;
                let _ = rustix::fs::mkdir(MOUNTED_AT, Mode::from_raw_mode(0o700));
                mount(device, MOUNTED_AT, "ext4", MountFlags::NOATIME, None).map_err(said(device.as_bytes()))?;
                format!("{MOUNTED_AT}/upper")
            }
        };
        let merged = merged.trim_end_matches('/').as_bytes().to_vec();
        Ok(Layer { upper: upper.into_bytes(), merged })
    }

    fn place(&self, from: From, path: &[u8]) -> Vec<u8> {
        let base = if from == From::Upper { &self.upper } else { &self.merged };
        if path.is_empty() { [base.as_slice(), b"/."].concat() } else { [base.as_slice(), b"/", path].concat() }
    }

    fn list(&self) -> Done {
        let mut out = BufWriter::with_capacity(CHUNK, stdout().lock());
        let mut left: Vec<(From, Vec<u8>, usize)> = vec![(From::Upper, Vec::new(), 0)];
        while let Some((from, path, depth)) = left.pop() {
            if depth > DEPTH_MAX {
                return Err(format!("directories more than {DEPTH_MAX} levels deep"));
            }
            let place = self.place(from, &path);
            let stat = match statat(CWD, place.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(said(&path)(errno)),
            };
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            let mark = |name: &str| is_directory && from == From::Upper && overlay_mark(&place, name);
            let is_moved = mark("redirect");
            let flag = match (from, is_moved || mark("opaque")) {
                (From::Merged, _) => "m",
                (_, true) => "o",
                _ => "-",
            };
            record(&mut out, &stat, flag, &path).map_err(|error| io(&error))?;
            if !is_directory {
                continue;
            }
            let inner = if is_moved { From::Merged } else { from };
            for name in names_in(&self.place(inner, &path)).map_err(said(&path))? {
                let below = if path.is_empty() { name } else { [path.as_slice(), b"/", &name].concat() };
                left.push((inner, below, depth + 1));
            }
        }
        out.flush().map_err(|error| io(&error))
    }

    fn pack(&self) -> Done {
        let mut out = BufWriter::with_capacity(CHUNK, stdout().lock());
        let mut links: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
        for asked in paths()? {
            let (from, path) = match asked.split_first() {
                Some((b'u', path)) => (From::Upper, path.to_vec()),
                Some((b'm', path)) => (From::Merged, path.to_vec()),
                _ => return Err("a path without its place".to_owned()),
            };
            let place = self.place(from, &path);
            pack_one(&mut out, &place, &path, &mut links).map_err(|why| format!("{}: {why}", String::from_utf8_lossy(&path)))?;
        }
        out.write_all(&[0; 2 * BLOCK]).and_then(|()| out.flush()).map_err(|error| io(&error))
    }
}

/// `KIND INODE CTIME_NS MODE UID GID SIZE MTIME_NS FLAG PATH`
fn record(out: &mut impl Write, stat: &Stat, flag: &str, path: &[u8]) -> std::io::Result<()> {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => 'f',
        FileType::Directory => 'd',
        FileType::Symlink => 'l',
        FileType::Fifo => 'p',
        FileType::CharacterDevice if stat.st_rdev == 0 && flag != "m" => 'w',
        FileType::CharacterDevice => 'c',
        FileType::BlockDevice => 'b',
        _ => return Ok(()),
    };
    let nanoseconds = |seconds: i64, rest: u64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
    write!(
        out,
        "{kind} {} {} {} {} {} {} {} {flag} ",
        stat.st_ino,
        nanoseconds(stat.st_ctime, stat.st_ctime_nsec),
        stat.st_mode & 0o7777,
        stat.st_uid,
        stat.st_gid,
        stat.st_size,
        nanoseconds(stat.st_mtime, stat.st_mtime_nsec),
    )?;
    out.write_all(path)?;
    out.write_all(&[0])
}

fn overlay_mark(place: &[u8], name: &str) -> bool {
    let mut value = [0; 4096];
    ["trusted", "user"].iter().any(|space| {
        let count = lgetxattr(place, format!("{space}.overlay.{name}"), &mut value[..]);
        // Of `opaque`, `x` says that there are marks below, and not that it is.
        matches!(count, Ok(1..) if name != "opaque" || value.first() == Some(&b'y'))
    })
}

fn names_in(place: &[u8]) -> Result<Vec<Vec<u8>>, Errno> {
    let fd = open(place, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::read_from(&fd)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    Ok(names)
}

fn paths() -> Result<Vec<Vec<u8>>, String> {
    let mut all = Vec::new();
    stdin().lock().take(PATHS_BYTES_MAX).read_to_end(&mut all).map_err(|error| io(&error))?;
    Ok(all.split(|byte| *byte == 0).filter(|path| !path.is_empty()).map(<[u8]>::to_vec).collect())
}

type Out<'a> = BufWriter<StdoutLock<'a>>;

fn pack_one(out: &mut Out<'_>, place: &[u8], path: &[u8], links: &mut HashMap<(u64, u64), Vec<u8>>) -> Done {
    let stat = statat(CWD, place, AtFlags::SYMLINK_NOFOLLOW).map_err(|errno| errno.to_string())?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::CharacterDevice => Kind::Char,
        FileType::BlockDevice => Kind::Block,
        _ => return Ok(()),
    };
    let mut header = Header {
        kind,
        path: if kind == Kind::Directory { [path, b"/"].concat() } else { path.to_vec() },
        link: Vec::new(),
        size: 0,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (stat.st_mtime, 0),
        device: (0, 0),
        sparse: None,
    };
    if kind != Kind::Directory && stat.st_nlink > 1 {
        if let Some(first) = links.get(&(stat.st_dev, stat.st_ino)) {
            header.kind = Kind::HardLink;
            header.link.clone_from(first);
            return write_all(out, &header.encode());
        }
        links.insert((stat.st_dev, stat.st_ino), path.to_vec());
    }
    match kind {
        Kind::Symlink => {
            header.link = readlinkat(CWD, place, Vec::new()).map_err(|errno| errno.to_string())?.into_bytes();
        }
        Kind::Char | Kind::Block => header.device = (major(stat.st_rdev), minor(stat.st_rdev)),
        Kind::File => header.size = u64::try_from(stat.st_size).unwrap_or(0),
        _ => {}
    }
    write_all(out, &header.encode_with(&attributes(place)))?;
    if kind == Kind::File { content(out, place, header.size) } else { Ok(()) }
}

fn write_all(out: &mut Out<'_>, bytes: &[u8]) -> Done {
    out.write_all(bytes).map_err(|error| io(&error))
}

fn content(out: &mut Out<'_>, place: &[u8], size: u64) -> Done {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = open(place, flags, Mode::empty()).map_err(|errno| errno.to_string())?;
    let mut buffer = vec![0; CHUNK];
    let mut left = size;
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        let place = buffer.get_mut(..want).unwrap_or_default();
        let count = match rustix::io::read(&file, &mut *place) {
            Ok(0) => return Err("it became shorter while it was read".to_owned()),
            Ok(count) => count,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.to_string()),
        };
        write_all(out, buffer.get(..count).unwrap_or_default())?;
        left -= count as u64;
    }
    let padding = usize::try_from(size.next_multiple_of(BLOCK as u64) - size).unwrap_or(0);
    write_all(out, [0; BLOCK].get(..padding).unwrap_or_default())
}

/// But those by which overlayfs remembers what it did.
fn attributes(place: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = vec![0; XATTR_BYTES_MAX];
    let Ok(length) = llistxattr(place, &mut names[..]) else { return Vec::new() };
    let mut found = Vec::new();
    for name in names.get(..length).unwrap_or_default().split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
            continue;
        }
        let mut value = vec![0; XATTR_BYTES_MAX];
        if let Ok(length) = lgetxattr(place, name, &mut value[..]) {
            value.truncate(length);
            found.push((name.to_vec(), value));
        }
    }
    found
}

/// Without following a symlink at the end.
fn remove() -> Done {
    for path in paths()? {
        if let Some(directory) = path.strip_suffix(b"/.") {
            let directory = if directory.is_empty() { b"/".as_slice() } else { directory };
            for name in names_in(directory).unwrap_or_default() {
                remove_tree(&[directory, b"/", &name].concat())?;
            }
        } else {
            remove_tree(&path)?;
        }
    }
    Ok(())
}

fn remove_tree(path: &[u8]) -> Done {
    let done = match statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
            return std::fs::remove_dir_all(OsStr::from_bytes(path))
                .map_err(|error| format!("{}: {error}", String::from_utf8_lossy(path)));
        }
        Ok(_) => unlinkat(CWD, path, AtFlags::empty()),
        Err(errno) => Err(errno),
    };
    match done {
        Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
        Err(errno) => Err(said(path)(errno)),
    }
}

/// What a command leaves running is no part of an image, and must not write while its files are looked at.
fn kill() -> Done {
    let own = rustix::process::getpid();
    for _ in 0..KILL_ROUNDS_MAX {
        let mut alive = 0;
        let names = std::fs::read_dir("/proc").map_err(|error| io(&error))?;
        for name in names.flatten() {
            let Some(pid) = name.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else {
                continue;
            };
            if pid.is_init() || pid == own || !is_process(pid) {
                continue;
            }
            alive += 1;
            let _ = kill_process(pid, Signal::KILL);
        }
        if alive == 0 {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    Err("processes that cannot be ended".to_owned())
}

/// No zombie, and none of the kernel's, which are children of the second process.
fn is_process(pid: Pid) -> bool {
    let stat = std::fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    let stat = String::from_utf8_lossy(&stat);
    let Some((_, rest)) = stat.rsplit_once(')') else { return false };
    let mut fields = rest.split_whitespace();
    let (state, parent) = (fields.next().unwrap_or("Z"), fields.next().unwrap_or("0"));
    let is_kernels = parent == "2"
        || (pid.as_raw_nonzero().get() == 2 && parent == "0" && std::path::Path::new("/proc/2/exe").read_link().is_err());
    !matches!(state, "Z" | "X") && !is_kernels
}

fn tmpfs(path: &str, mib: Option<&str>) -> Done {
    let options = mib.and_then(|mib| mib.parse::<u32>().ok()).map_or_else(String::new, |mib| format!(",size={mib}m"));
    let options = std::ffi::CString::new(format!("mode=755{options}")).map_err(|_| "a NUL".to_owned())?;
    mount("tmpfs", path, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(options.as_c_str())).map_err(said(path.as_bytes()))
}

/// gVisor has no bind mount that is read-only, and an overlay is none without a second directory.
fn view(from: &str, empty: &str, path: &str) -> Done {
    let options = std::ffi::CString::new(format!("lowerdir={from}:{empty}")).map_err(|_| "a NUL".to_owned())?;
    mount("overlay", path, "overlay", MountFlags::empty(), Some(options.as_c_str())).map_err(said(path.as_bytes()))
}

fn alone(user: &str, argv: &[OsString]) -> Done {
    let (uid, gid) = user.split_once(':').ok_or("no user")?;
    let (uid, gid) = (uid.parse().map_err(|_| "no user")?, gid.parse().map_err(|_| "no group")?);
    let (program, rest) = argv.split_first().ok_or("no command")?;
    hutch_sys::own_network().map_err(|error| io(&error))?;
    let mut command = std::process::Command::new(program);
    command.args(rest);
    if uid != 0 || gid != 0 {
        command.gid(gid).uid(uid);
    }
    let error = command.exec();
    Err(format!("{}: {error}", program.to_string_lossy()))
}
