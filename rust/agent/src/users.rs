//! Users and groups as the sandbox's own /etc/passwd and /etc/group name them. No NSS: the agent
//! is static and must not run code out of the image.
use crate::fault::Fault;
use rustix::fs::{Mode, OFlags, fstat, open, stat};
use std::collections::BTreeSet;

const DATABASE_BYTES_MAX: usize = 1 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups, without `gid`.
    pub groups: Vec<u32>,
    pub home: String,
    pub shell: String,
}

/// What tells whether a file is still the one that was read.
type Stamp = (u64, u64, i64, u64, i64);

#[derive(Debug, Default)]
pub struct Users {
    passwd: Cached,
    group: Cached,
}

#[derive(Debug, Default)]
struct Cached {
    stamp: Option<Stamp>,
    text: String,
}

impl Cached {
    fn refresh(&mut self, path: &str) {
        let stamp = stat(path).ok().map(|s| (s.st_dev, s.st_ino, s.st_size, s.st_mtime_nsec, s.st_mtime));
        if stamp.is_none() || stamp != self.stamp {
            self.text = read_database(path).unwrap_or_default();
            self.stamp = stamp;
        }
    }
}

/// Reads a regular file only: whoever owns the sandbox may have put a FIFO there.
fn read_database(path: &str) -> Option<String> {
    let fd = open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty()).ok()?;
    let size = fstat(&fd).ok().filter(|s| s.st_mode & 0o170_000 == 0o100_000)?.st_size;
    let mut bytes = vec![0; usize::try_from(size).ok()?.min(DATABASE_BYTES_MAX) + 1];
    let mut length = 0;
    while let Some(space) = bytes.get_mut(length..).filter(|space| !space.is_empty()) {
        match rustix::io::read(&fd, space) {
            Ok(0) | Err(_) => break,
            Ok(count) => length += count,
        }
    }
    bytes.truncate(length);
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

struct PasswdLine<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
    shell: &'a str,
}

fn passwd_lines(text: &str) -> impl Iterator<Item = PasswdLine<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim_end_matches('\r').split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1)?;
        let shell = fields.next().unwrap_or_default();
        Some(PasswdLine { name, uid, gid, home, shell })
    })
}

/// Name, gid and members.
fn group_lines(text: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim_end_matches('\r').split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

impl Users {
    /// Resolves `name`, `uid`, `name:group` or `uid:gid`; none is root.
    pub fn resolve(&mut self, spec: Option<&str>) -> Result<User, Fault> {
        self.passwd.refresh("/etc/passwd");
        self.group.refresh("/etc/group");
        resolve_in(&self.passwd.text, &self.group.text, spec.unwrap_or("0"))
    }

    pub fn user_name(&mut self, uid: u32) -> Option<String> {
        self.passwd.refresh("/etc/passwd");
        passwd_lines(&self.passwd.text).find(|line| line.uid == uid).map(|line| line.name.to_owned())
    }

    pub fn group_name(&mut self, gid: u32) -> Option<String> {
        self.group.refresh("/etc/group");
        group_lines(&self.group.text).find(|(_, id, _)| *id == gid).map(|(name, _, _)| name.to_owned())
    }
}

pub fn resolve_in(passwd: &str, group: &str, spec: &str) -> Result<User, Fault> {
    let (who, in_group) = match spec.split_once(':') {
        Some((who, group)) => (who, Some(group)),
        None => (spec, None),
    };
    let number: Option<u32> = who.parse().ok().filter(|_| who.bytes().all(|byte| byte.is_ascii_digit()));
    let line =
        passwd_lines(passwd).find(|line| line.name == who).or_else(|| passwd_lines(passwd).find(|line| Some(line.uid) == number));
    let mut user = match (line, number) {
        (Some(line), _) => User {
            name: line.name.to_owned(),
            uid: line.uid,
            gid: line.gid,
            groups: Vec::new(),
            home: non_empty(line.home, "/"),
            shell: non_empty(line.shell, "/bin/sh"),
        },
        (None, Some(uid)) => without_entry(who, uid),
        // An image without /etc/passwd still has a root.
        (None, None) if who == "root" => without_entry(who, 0),
        (None, None) => {
            return Err(Fault::invalid_argument(format!("user: there is no {who:?} in the sandbox's /etc/passwd")));
        }
    };
    match in_group {
        Some(name) => {
            let found = group_lines(group).find(|(group_name, _, _)| *group_name == name).map(|(_, gid, _)| gid);
            user.gid = found.or_else(|| name.parse().ok()).ok_or_else(|| {
                Fault::invalid_argument(format!("user: there is no group {name:?} in the sandbox's /etc/group"))
            })?;
        }
        None => {
            let groups: BTreeSet<u32> = group_lines(group)
                .filter(|(_, _, members)| members.split(',').any(|member| member.trim() == user.name))
                .map(|(_, gid, _)| gid)
                .filter(|gid| *gid != user.gid)
                .collect();
            user.groups = groups.into_iter().collect();
        }
    }
    Ok(user)
}

fn non_empty(text: &str, default: &str) -> String {
    if text.is_empty() { default.to_owned() } else { text.to_owned() }
}

fn without_entry(name: &str, uid: u32) -> User {
    let home = if uid == 0 { "/root" } else { "/" };
    User { name: name.to_owned(), uid, gid: 0, groups: Vec::new(), home: home.to_owned(), shell: "/bin/sh".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n# comment\nbroken line\nuser:x:1000:1001:A User,,,:/home/user:\n\
        1234:x:77:77::/odd:/bin/odd\r\nhalf:x:notanumber:1:::\n";
    const GROUP: &str = "root:x:0:\nuser:x:1001:\nsudo:x:27:user,other\ndocker:x:999: user\nbad:x:\n";

    fn resolve(spec: &str) -> User {
        resolve_in(PASSWD, GROUP, spec).expect("resolves")
    }

    #[test]
    fn a_name_brings_its_primary_and_supplementary_groups() {
        let user = resolve("user");
        assert_eq!((user.uid, user.gid, user.groups.as_slice()), (1000, 1001, [27, 999].as_slice()));
        assert_eq!((user.home.as_str(), user.shell.as_str()), ("/home/user", "/bin/sh"));
    }

    #[test]
    fn a_uid_finds_its_entry_and_works_without_one() {
        assert_eq!(resolve("1000"), resolve("user"));
        let user = resolve("4321");
        assert_eq!((user.uid, user.gid, user.home.as_str()), (4321, 0, "/"));
    }

    #[test]
    fn a_name_made_of_digits_is_a_name_first() {
        assert_eq!(resolve("1234").uid, 77);
    }

    #[test]
    fn a_group_that_is_given_replaces_all_others() {
        let user = resolve("user:sudo");
        assert_eq!((user.gid, user.groups.len()), (27, 0));
        assert_eq!(resolve("5:6").gid, 6);
    }

    #[test]
    fn what_does_not_exist_is_named() {
        let message = |spec| resolve_in(PASSWD, GROUP, spec).expect_err("is refused").message;
        assert!(message("nobody").contains("\"nobody\""));
        assert!(message("user:none").contains("\"none\""));
        assert!(message("").contains("\"\""));
        assert!(message("99999999999").contains("99999999999"));
        assert!(message("half").contains("half"));
    }

    #[test]
    fn root_exists_without_any_file() {
        assert_eq!(resolve_in("", "", "root").expect("resolves").uid, 0);
    }
}
