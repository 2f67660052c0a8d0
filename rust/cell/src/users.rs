//! The root of a user namespace, where whoever starts this is not root: this user is its root, and the users that
//! `newuidmap` grants them (subuid(5)) are its others. So the files of an image keep their owners.
use crate::sys::{self, Forked};
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::Command;

/// `FIRST:COUNT` on the host; in the namespace they begin at 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    first: u32,
    count: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Users {
    pub uids: Range,
    pub gids: Range,
}

impl Range {
    pub fn parse(text: &OsStr) -> Option<Range> {
        let (first, count) = text.to_str()?.split_once(':')?;
        let range = Range { first: first.parse().ok()?, count: count.parse().ok()? };
        (range.count > 0 && range.first.checked_add(range.count).is_some()).then_some(range)
    }

    fn arguments(self, pid: u32, own: u32) -> [String; 7] {
        [pid, 0, own, 1, 1, self.first, self.count].map(|number| number.to_string())
    }
}

/// `--as-root UIDS GIDS -- PROGRAM ARG...`, after its name.
pub fn parse(args: impl Iterator<Item = OsString>) -> Option<(Users, Vec<CString>)> {
    use std::os::unix::ffi::OsStrExt;
    let args: Vec<OsString> = args.collect();
    let [uids, gids, dashes, argv @ ..] = args.as_slice() else { return None };
    let users = Users { uids: Range::parse(uids)?, gids: Range::parse(gids)? };
    let argv: Option<Vec<CString>> = argv.iter().map(|arg| CString::new(arg.as_bytes()).ok()).collect();
    (dashes == "--").then_some((users, argv.filter(|argv| !argv.is_empty())?))
}

/// `--as-root-of PID -- PROGRAM ARG...`, after its name.
pub fn parse_joining(mut args: impl Iterator<Item = OsString>) -> Option<(u32, Vec<CString>)> {
    use std::os::unix::ffi::OsStrExt;
    let pid = args.next()?.to_str()?.parse().ok()?;
    let dashes = args.next()?;
    let argv: Option<Vec<CString>> = args.map(|arg| CString::new(arg.as_bytes()).ok()).collect();
    (dashes == "--").then_some((pid, argv.filter(|argv| !argv.is_empty())?))
}

/// Root of the user namespace that another process is in.
pub fn join(pid: u32) -> Result<(), String> {
    let to = |what: &'static str| move |error: std::io::Error| format!("cannot {what}: {error}");
    let namespace = File::open(format!("/proc/{pid}/ns/user")).map_err(to("see its user namespace"))?;
    sys::enter_users(namespace.as_raw_fd()).map_err(to("enter its user namespace"))?;
    sys::set_ids(0, 0).map_err(to("become root of the namespace"))
}

/// From here on this process is root of a new user namespace, and of a new mount namespace.
pub fn become_root(users: Users) -> Result<(), String> {
    let to = |what: &'static str| move |error: std::io::Error| format!("cannot {what}: {error}");
    let (mut here, mut there) = UnixStream::pair().map_err(to("make a pair of sockets"))?;
    let (uid, gid) = sys::own_ids();
    let parent = std::process::id();
    match sys::fork().map_err(to("start the process that maps users"))? {
        Forked::Child => {
            drop(here);
            // Only one outside of the namespace may map what is outside of it.
            let mut go = [0];
            if there.read_exact(&mut go).is_err() {
                sys::exit_now(1)
            }
            let mapped = run("newuidmap", &users.uids.arguments(parent, uid))
                .and_then(|()| run("newgidmap", &users.gids.arguments(parent, gid)));
            drop(there.write_all(mapped.err().unwrap_or_default().as_bytes()));
            sys::exit_now(0)
        }
        Forked::Parent(child) => {
            drop(there);
            sys::own_users().map_err(to("make a user namespace"))?;
            here.write_all(b"x").map_err(to("ask for users"))?;
            let mut why = String::new();
            here.read_to_string(&mut why).map_err(to("hear of users"))?;
            sys::reap(child).map_err(to("wait for users"))?;
            if !why.is_empty() {
                return Err(why);
            }
            sys::no_new_privileges().map_err(to("give up new privileges"))?;
            sys::set_ids(0, 0).map_err(to("become root of the namespace"))
        }
    }
}

fn run(program: &str, arguments: &[String]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("cannot run {program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("users of its own are not granted: {}", said.trim()))
}

#[cfg(test)]
mod tests {
    use super::{Range, parse, parse_joining};
    use std::ffi::{OsStr, OsString};

    #[test]
    fn a_range_is_two_numbers_that_fit() {
        let range = |text: &str| Range::parse(OsStr::new(text)).map(|range| (range.first, range.count));
        assert_eq!(range("100000:65536"), Some((100_000, 65_536)));
        for wrong in ["", "1", "1:0", "1:2:3", "-1:2", "a:b", "4294967295:2"] {
            assert_eq!(range(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_program_follows_the_two_ranges() {
        let parsed = |line: &str| parse(line.split_whitespace().map(OsString::from));
        let (users, argv) = parsed("1:2 3:4 -- rm -rf /x").unwrap();
        assert_eq!((users.uids.first, users.gids.count, argv.len()), (1, 4, 3));
        for wrong in ["1:2 3:4 rm", "1:2 3:4 --", "1:2 -- rm", "1 3:4 -- rm"] {
            assert!(parsed(wrong).is_none(), "{wrong}");
        }
        let joining =
            |line: &str| parse_joining(line.split_whitespace().map(OsString::from)).map(|(pid, argv)| (pid, argv.len()));
        assert_eq!(joining("12 -- runsc pause x"), Some((12, 3)));
        for wrong in ["12 runsc", "-1 -- runsc", "12 --", ""] {
            assert!(joining(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn the_namespace_begins_with_its_maker() {
        let range = Range::parse(OsStr::new("100000:65536")).unwrap();
        assert_eq!(range.arguments(7, 1_000).join(" "), "7 0 1000 1 1 100000 65536");
    }
}
