//! `hutch-cell`: makes the place that a container runtime is executed in, and then becomes the runtime.
//! All of it lives in namespaces of its own, so nothing is left of it when the last process has ended,
//! however it ended: no mount, no network device, no namespace.
//!
//! ```text
//! hutch-cell --look
//! hutch-cell --look-at FILE DIR
//! hutch-cell --as-root UIDS GIDS -- PROGRAM ARG...
//! hutch-cell --as-root-of PID -- PROGRAM ARG...
//! hutch-cell --lower DIR [--image FILE] [--under DIR] [--over DIR] --upper DIR --work DIR --root DIR [--disk FILE --disk-at DIR] [--link DIR [--show FILE]...]
//!            [--volume FILE --volume-at DIR]... [--volume-ro FILE --volume-at DIR]... [--directory DIR --directory-at DIR]...
//!            [--uids UIDS --gids GIDS]
//!            [--net FILE --address A.B.C.D/PREFIX --gateway A.B.C.D --mac XX:… --mtu N --uid N --gid N]
//!            -- PROGRAM ARG...
//! ```
//!
//! `--look` is what a probe of a runtime runs: it ends with 0, with 3 where the runtime's kernel refuses `AT_NO_AUTOMOUNT`,
//! with 4 where it keeps to no limit of processes, and with 5 where both is so.
//!
//! `--look-at` ends with 0 where the image in FILE can be mounted, as it is then at DIR, in a namespace that is gone with it.
//!
//! Who is not root names users of their own, UIDS and GIDS as `FIRST:COUNT` (subuid(5)): then everything happens in a user
//! namespace of which they are root. `--as-root` does nothing but that; `--as-root-of` enters the namespace that PID is in.
//!
//! Each volume is an ext4 in a file too, mounted where its `--volume-at` says, with `--volume-ro` only to be read.
//!
//! Each directory of the host is seen where its `--directory-at` says, with what is mounted in it: that of exactly this path, which
//! may have no symlink in it. Whoever can rename something on the way may have put one there since the path was looked at.
//!
//! With `--image`, a squashfs in a file, that is mounted at `--lower` first. The directories in `--under` lie beneath it where
//! it lacks one of them; the files in `--over` lie over it, where it has an `/etc` and no `/etc/ld.so.preload` of its own.
//!
//! With `--disk`, an ext4 in a file, that is mounted at `--disk-at` first: `--upper` and `--work` lie in it and are made if
//! they are missing. At `--root` lies the overlay of the others, seen by PROGRAM and its children alone. Each FILE of
//! `--show` is read-only in the directory `--link` under its own name, where an empty file waits for it. With
//! `--net` there is a network namespace, bound to FILE in the same way, with the device `eth0` in it.
//! Its frames go over descriptor 3, a stream to passt, carried by a process that is user `--uid`.
mod ahead;
mod bridge;
mod count;
mod disk;
mod options;
mod sys;
mod tap;
mod users;

use crate::sys::Forked;
use options::{Net, Options};
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

/// The stream to passt, from the shim.
const PAIR: i32 = 3;
/// A program in a sandbox may not say that a look at a file mounts nothing.
const FLAG_REFUSED: u8 = 3;
/// More processes are begun in it than a limit lets.
const UNLIMITED: u8 = 4;
const BOTH: u8 = 5;
const REFUSED: u8 = 125;
/// What is on the private disk is damaged: the host tells that apart from whatever else goes wrong.
const DISK_DAMAGED: u8 = 124;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == "--look") {
        return match (sys::looks_without_automount(), count::is_limited()) {
            (true, true) => ExitCode::SUCCESS,
            (false, true) => ExitCode::from(FLAG_REFUSED),
            (true, false) => ExitCode::from(UNLIMITED),
            (false, false) => ExitCode::from(BOTH),
        };
    }
    if std::env::args_os().nth(1).is_some_and(|argument| argument == "--look-at") {
        return match (std::env::args_os().nth(2), std::env::args_os().nth(3)) {
            (Some(file), Some(at)) => {
                look_at(Path::new(&file), Path::new(&at)).map_or_else(|why| refused(&why), |()| ExitCode::SUCCESS)
            }
            _ => refused("--look-at needs FILE DIR"),
        };
    }
    if std::env::args_os().nth(1).is_some_and(|argument| argument == "--as-root") {
        return refused(&match users::parse(std::env::args_os().skip(2)) {
            Some((users, argv)) => {
                users::become_root(users).map_or_else(|why| why, |()| format!("cannot run it: {}", sys::exec(&argv)))
            }
            None => "--as-root needs UIDS GIDS -- PROGRAM".to_owned(),
        });
    }
    if std::env::args_os().nth(1).is_some_and(|argument| argument == "--as-root-of") {
        return refused(&match users::parse_joining(std::env::args_os().skip(2)) {
            Some((pid, argv)) => users::join(pid).map_or_else(|why| why, |()| format!("cannot run it: {}", sys::exec(&argv))),
            None => "--as-root-of needs PID -- PROGRAM".to_owned(),
        });
    }
    let Failed { why, code } = match options::parse(std::env::args_os().skip(1)) {
        Ok(options) => match enter(&options) {
            Ok(()) => format!("cannot run {}: {}", options.program(), sys::exec(&options.argv)).into(),
            Err(failed) => failed,
        },
        Err(why) => why.into(),
    };
    ended(&why, code)
}

struct Failed {
    why: String,
    code: u8,
}

impl From<String> for Failed {
    fn from(why: String) -> Failed {
        Failed { why, code: REFUSED }
    }
}

fn refused(why: &str) -> ExitCode {
    ended(why, REFUSED)
}

fn ended(why: &str, code: u8) -> ExitCode {
    eprintln!("hutch-cell: {why}");
    ExitCode::from(code)
}

fn look_at(image: &Path, at: &Path) -> Result<(), String> {
    sys::own_mounts().map_err(|error| format!("cannot make a mount namespace: {error}"))?;
    disk::mount_image(image, at)?;
    fs::read_dir(at).map(drop).map_err(|error| format!("cannot read {}: {error}", image.display()))
}

fn enter(options: &Options) -> Result<(), Failed> {
    if let Some(users) = options.users {
        users::become_root(users)?;
    }
    sys::own_mounts().map_err(|error| format!("cannot make a mount namespace: {error}"))?;
    if let Some(file) = &options.image {
        disk::mount_image(file, &options.lower)?;
    }
    if let Some((file, at)) = &options.disk {
        let device = disk::attach_alone(file)?;
        disk::open(device, at, [(&options.upper, 0o755), (&options.work, 0o700)])
            .map_err(|error| Failed { why: format!("cannot mount {}: {error}", file.display()), code: DISK_DAMAGED })?;
    }
    for volume in &options.volumes {
        disk::mount(&volume.file, &volume.at, volume.access)?;
    }
    for (directory, at) in &options.directories {
        show_directory(directory, at)
            .map_err(|error| format!("cannot take {}: {error}; a symlink on the way is not followed", directory.display()))?;
    }
    ahead::place(&options.lower, &options.upper, options.net.is_some())
        .map_err(|error| format!("cannot prepare /etc in {}: {error}", options.upper.display()))?;
    mount_root(options)?;
    show_files(options)?;
    if let Some(net) = &options.net {
        open_network(net)?;
    }
    Ok(())
}

fn mount_root(options: &Options) -> Result<(), String> {
    let data = CString::new(overlay_options(options)).map_err(|_| "a path holds a NUL".to_owned())?;
    sys::mount_overlay(&options.root, &data)
        .map_err(|error| format!("cannot mount an overlay at {}: {error}", options.root.display()))
}

fn overlay_options(options: &Options) -> Vec<u8> {
    let over = options.over.as_ref().filter(|_| takes_over(&options.lower));
    let under = options.under.as_ref().filter(|under| lacks_one_of(&options.lower, under));
    let lower: Vec<_> = over.into_iter().chain([&options.lower]).chain(under).map(|path| escaped(path)).collect();
    let lower = lower.join(&b':');
    let named = [(&b"lowerdir="[..], lower), (b",upperdir=", escaped(&options.upper)), (b",workdir=", escaped(&options.work))];
    // Its notes about files are another kind where root is not the machine's.
    let notes = if options.users.is_some() { &b",userxattr"[..] } else { b"" };
    named.into_iter().flat_map(|(name, value)| [name, &value].concat()).chain(notes.iter().copied()).collect()
}

/// Libraries that the image itself has every program load matter more.
fn takes_over(lower: &Path) -> bool {
    let etc = lower.join("etc");
    fs::symlink_metadata(&etc).is_ok_and(|found| found.is_dir()) && fs::symlink_metadata(etc.join("ld.so.preload")).is_err()
}

/// Runtimes mount at these, and an image made from nothing need not have them.
fn lacks_one_of(lower: &Path, under: &Path) -> bool {
    let names = fs::read_dir(under).into_iter().flatten().filter_map(Result::ok);
    names.map(|entry| entry.file_name()).any(|name| fs::symlink_metadata(lower.join(name)).is_err())
}

/// One directory for all that the host lends: each mount of a sandbox costs it time when it starts.
fn show_files(options: &Options) -> Result<(), String> {
    for (file, at) in &options.shown {
        sys::bind(file, at)
            .and_then(|()| sys::make_read_only(at))
            .map_err(|error| format!("cannot show {} at {}: {error}", file.display(), at.display()))?;
    }
    Ok(())
}

fn show_directory(directory: &Path, at: &Path) -> std::io::Result<()> {
    let opened = sys::open_directory(directory)?;
    sys::bind_all(&opened, at)
}

/// As overlayfs reads its options: a colon would end a directory, a comma the option.
fn escaped(path: &Path) -> Vec<u8> {
    let special = |byte: &u8| b"\\:,".contains(byte);
    path.as_os_str().as_bytes().iter().flat_map(|byte| special(byte).then_some(b'\\').into_iter().chain([*byte])).collect()
}

/// Made by the process that carries its frames: who is root of a user namespace alone could not come back from it.
fn open_network(net: &Net) -> Result<(), String> {
    let to = |what: &'static str| move |error: std::io::Error| format!("cannot {what}: {error}");
    let stream = sys::take(PAIR).map_err(to("take the stream to passt"))?;
    let (mut here, mut there) = UnixStream::pair().map_err(to("make a pair of sockets"))?;
    let parent = std::process::id();
    match sys::fork().map_err(to("start the bridge"))? {
        Forked::Child => {
            drop(here);
            match make_network(net) {
                Ok(tap) => {
                    drop(there);
                    bridge::run(&tap, &stream, net, parent)
                }
                Err(why) => {
                    drop(there.write_all(why.as_bytes()));
                    sys::exit_now(1)
                }
            }
        }
        Forked::Parent(_) => {
            drop(there);
            let mut why = String::new();
            here.read_to_string(&mut why).map_err(to("hear of the bridge"))?;
            if why.is_empty() { Ok(()) } else { Err(why) }
        }
    }
}

fn make_network(net: &Net) -> Result<File, String> {
    let to = |what: &'static str| move |error: std::io::Error| format!("cannot {what}: {error}");
    sys::new_network().map_err(to("make a network namespace"))?;
    let tap = tap::make(net).map_err(|(what, error)| format!("cannot {what}: {error}"))?;
    let bound = File::create(&net.path).and_then(|_| sys::bind(Path::new("/proc/self/ns/net"), &net.path));
    bound.map_err(to("bind the network namespace"))?;
    hide_root_mark();
    Ok(tap)
}

/// By this file older releases of runsc tell the machine's own network namespace, in which they refuse
/// to work. Newer kernels show it in every one, so it is hidden here, where it tells nothing.
fn hide_root_mark() {
    if Path::new("/proc/sys/net/core/rmem_default").exists()
        && let Err(error) = sys::mount_nothing(Path::new("/proc/sys/net/core"))
    {
        eprintln!("hutch-cell: cannot hide /proc/sys/net/core, so the network may be refused: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::{escaped, options, overlay_options};
    use std::{fs, path::Path};

    #[test]
    fn what_lies_over_the_image_comes_before_it_and_what_it_lacks_behind() {
        let lower = std::env::temp_dir().join(format!("hutch-cell-overlay-{}", std::process::id()));
        let at = lower.display().to_string();
        let overlay = |more: &str| {
            let line = format!("--lower {at} {more}--upper /u --work /w --root /r -- true");
            let options = options::parse(line.split_whitespace().map(Into::into)).unwrap();
            String::from_utf8(overlay_options(&options)).unwrap().replace(&at, "/l")
        };
        fs::create_dir_all(lower.join("etc")).unwrap();
        fs::create_dir_all(lower.join("points/etc")).unwrap();
        let under = format!("--under {at}/points ");
        assert_eq!(overlay(""), "lowerdir=/l,upperdir=/u,workdir=/w");
        assert_eq!(overlay("--over /o:o "), "lowerdir=/o\\:o:/l,upperdir=/u,workdir=/w");
        assert_eq!(overlay("--uids 1:2 --gids 1:2 "), "lowerdir=/l,upperdir=/u,workdir=/w,userxattr");
        assert_eq!(overlay(&under), "lowerdir=/l,upperdir=/u,workdir=/w");
        fs::create_dir(lower.join("points/proc")).unwrap();
        assert_eq!(overlay(&under), "lowerdir=/l:/l/points,upperdir=/u,workdir=/w");
        fs::write(lower.join("etc/ld.so.preload"), "/own.so").unwrap();
        assert_eq!(overlay("--over /o "), "lowerdir=/l,upperdir=/u,workdir=/w");
        fs::remove_dir_all(lower.join("etc")).unwrap();
        assert_eq!(overlay("--over /o "), "lowerdir=/l,upperdir=/u,workdir=/w");
        fs::remove_dir_all(lower).unwrap();
    }

    #[test]
    fn a_path_cannot_add_an_option() {
        assert_eq!(escaped(Path::new("/a,b:c\\d")), b"/a\\,b\\:c\\\\d");
        assert_eq!(escaped(Path::new("/plain/path")), b"/plain/path");
    }
}
