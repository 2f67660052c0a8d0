//! The command line. Anything that is not understood is refused before anything is made.
use crate::users::{Range, Users};
use std::ffi::{CString, OsStr, OsString};
use std::net::Ipv4Addr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

#[derive(Debug)]
pub struct Options {
    pub lower: PathBuf,
    /// The file with what is mounted at `lower`; none: it is there.
    pub image: Option<PathBuf>,
    /// Directories that lie under `lower` where that lacks one of them.
    pub under: Option<PathBuf>,
    /// Files that lie over those of `lower`.
    pub over: Option<PathBuf>,
    /// Whose root this is to be first; none: it is root.
    pub users: Option<Users>,
    pub upper: PathBuf,
    pub work: PathBuf,
    pub root: PathBuf,
    /// The file with the private layer, and where it is mounted.
    pub disk: Option<(PathBuf, PathBuf)>,
    /// Files with an ext4 each, where each is mounted, and whether it may be written.
    pub volumes: Vec<Volume>,
    /// Directories of the host, and where each is seen.
    pub directories: Vec<(PathBuf, PathBuf)>,
    /// Files of the host, and where each is seen.
    pub shown: Vec<(PathBuf, PathBuf)>,
    pub net: Option<Net>,
    pub argv: Vec<CString>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Volume {
    pub file: PathBuf,
    pub at: PathBuf,
    pub access: Access,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    ReadWrite,
    ReadOnly,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Net {
    /// Where the namespace is bound to.
    pub path: PathBuf,
    pub address: Ipv4Addr,
    pub prefix: u8,
    pub gateway: Ipv4Addr,
    pub mac: [u8; 6],
    pub mtu: u32,
    /// Who carries the frames.
    pub uid: u32,
    pub gid: u32,
}

const MTU_MIN: u32 = 576;
const MTU_MAX: u32 = 65_521;

impl Options {
    pub fn program(&self) -> String {
        self.argv.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

pub fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Options, String> {
    let mut found: Vec<(String, OsString)> = Vec::new();
    let mut argv = Vec::new();
    while let Some(name) = args.next() {
        let name = name.to_string_lossy().into_owned();
        if name == "--" {
            argv = args.by_ref().map(|arg| word(&arg)).collect::<Result<_, _>>()?;
            break;
        }
        if !NAMES.contains(&name.as_str()) {
            return Err(format!("unknown option {name}"));
        }
        let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
        found.push((name, value));
    }
    if argv.is_empty() {
        return Err("a program is needed after --".into());
    }
    let is_given = |wanted: &str| found.iter().any(|(name, _)| name == wanted);
    let net = if is_given("--net") { Some(parse_net(&found)?) } else { None };
    Ok(Options {
        lower: directory(&found, "--lower")?,
        image: if is_given("--image") { Some(directory(&found, "--image")?) } else { None },
        under: if is_given("--under") { Some(directory(&found, "--under")?) } else { None },
        over: if is_given("--over") { Some(directory(&found, "--over")?) } else { None },
        users: if is_given("--uids") { Some(parse_users(&found)?) } else { None },
        upper: directory(&found, "--upper")?,
        work: directory(&found, "--work")?,
        root: directory(&found, "--root")?,
        disk: if is_given("--disk") { Some((directory(&found, "--disk")?, directory(&found, "--disk-at")?)) } else { None },
        volumes: volumes(&found)?,
        directories: directories(&found)?,
        shown: shown(&found)?,
        net,
        argv,
    })
}

const NAMES: [&str; 25] = [
    "--uids",
    "--gids",
    "--lower",
    "--image",
    "--under",
    "--over",
    "--upper",
    "--work",
    "--root",
    "--disk",
    "--disk-at",
    "--volume",
    "--volume-ro",
    "--volume-at",
    "--directory",
    "--directory-at",
    "--link",
    "--show",
    "--net",
    "--address",
    "--gateway",
    "--mac",
    "--mtu",
    "--uid",
    "--gid",
];

type Found = [(String, OsString)];

fn value<'a>(found: &'a Found, name: &str) -> Result<&'a OsStr, String> {
    let value = found.iter().rev().find(|(found, _)| found == name).map(|(_, value)| value.as_os_str());
    value.ok_or_else(|| format!("{name} is missing"))
}

fn parse_users(found: &Found) -> Result<Users, String> {
    let range = |name| Range::parse(value(found, name)?).ok_or_else(|| format!("{name} needs the form FIRST:COUNT"));
    Ok(Users { uids: range("--uids")?, gids: range("--gids")? })
}

fn directory(found: &Found, name: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(value(found, name)?);
    if path.is_absolute() { Ok(path) } else { Err(format!("{name} needs an absolute path")) }
}

/// Each `--volume` or `--volume-ro` is followed by its `--volume-at`.
fn volumes(found: &Found) -> Result<Vec<Volume>, String> {
    let mut volumes = Vec::new();
    let mut waiting: Option<(PathBuf, Access)> = None;
    for (name, value) in found.iter().filter(|(name, _)| name.starts_with("--volume")) {
        let path = PathBuf::from(value);
        if !path.is_absolute() {
            return Err(format!("{name} needs an absolute path"));
        }
        waiting = match (name.as_str(), waiting) {
            ("--volume", None) => Some((path, Access::ReadWrite)),
            ("--volume-ro", None) => Some((path, Access::ReadOnly)),
            ("--volume-at", Some((file, access))) => {
                volumes.push(Volume { file, at: path, access });
                None
            }
            _ => return Err("each volume needs one --volume-at behind it".into()),
        };
    }
    if waiting.is_some() { Err("each volume needs one --volume-at behind it".into()) } else { Ok(volumes) }
}

/// Each `--directory` is followed by its `--directory-at`.
fn directories(found: &Found) -> Result<Vec<(PathBuf, PathBuf)>, String> {
    let given: Vec<_> = found.iter().filter(|(name, _)| name.starts_with("--directory")).collect();
    given
        .chunks(2)
        .map(|pair| match pair {
            [(first, directory), (second, at)] if first == "--directory" && second == "--directory-at" => {
                let (directory, at) = (PathBuf::from(directory), PathBuf::from(at));
                let are_absolute = directory.is_absolute() && at.is_absolute();
                if are_absolute { Ok((directory, at)) } else { Err("--directory needs absolute paths".into()) }
            }
            _ => Err("each directory needs one --directory-at behind it".into()),
        })
        .collect()
}

fn shown(found: &Found) -> Result<Vec<(PathBuf, PathBuf)>, String> {
    let files = found.iter().filter(|(name, _)| name == "--show").map(|(_, value)| PathBuf::from(value));
    files
        .map(|file| {
            let name = file.file_name().filter(|_| file.is_absolute()).ok_or("--show needs an absolute path")?;
            Ok((file.clone(), directory(found, "--link")?.join(name)))
        })
        .collect()
}

fn read<T: std::str::FromStr>(found: &Found, name: &str, wanted: &str) -> Result<T, String> {
    let text = value(found, name)?.to_str();
    text.and_then(|text| text.parse().ok()).ok_or_else(|| format!("{name} needs {wanted}"))
}

fn parse_net(found: &Found) -> Result<Net, String> {
    let wanted = "--address needs the form 192.0.0.2/29";
    let (address, prefix) = value(found, "--address")?.to_str().and_then(|text| text.split_once('/')).ok_or(wanted)?;
    let prefix = prefix.parse().ok().filter(|prefix| (1..=30).contains(prefix)).ok_or(wanted)?;
    let mtu = read(found, "--mtu", "a number")?;
    if !(MTU_MIN..=MTU_MAX).contains(&mtu) {
        return Err(format!("--mtu must lie between {MTU_MIN} and {MTU_MAX}"));
    }
    Ok(Net {
        path: directory(found, "--net")?,
        address: address.parse().map_err(|_| wanted)?,
        prefix,
        gateway: read(found, "--gateway", "an IPv4 address")?,
        mac: mac(value(found, "--mac")?).ok_or("--mac needs the form 02:00:00:00:00:01")?,
        mtu,
        uid: read(found, "--uid", "a number")?,
        gid: read(found, "--gid", "a number")?,
    })
}

fn mac(text: &OsStr) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text.to_str()?.split(':').map(|pair| u8::from_str_radix(pair, 16).ok()).collect();
    bytes?.try_into().ok()
}

fn word(arg: &OsStr) -> Result<CString, String> {
    CString::new(arg.as_bytes()).map_err(|_| "an argument holds a NUL".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "--lower /l --upper /u --work /w --root /r";
    const NET: &str = "--net /n --address 192.0.0.2/29 --gateway 192.0.0.1 --mac 02:00:00:00:00:0a --mtu 65520 --uid 7 --gid 8";

    fn parsed(line: &str) -> Result<Options, String> {
        parse(line.split(' ').map(OsString::from))
    }

    #[test]
    fn a_whole_command_line_is_understood() {
        let options = parsed(&format!("{ROOT} {NET} -- runsc --root x")).unwrap();
        assert_eq!((options.lower, options.root), (PathBuf::from("/l"), PathBuf::from("/r")));
        assert_eq!(options.argv, [c"runsc".to_owned(), c"--root".to_owned(), c"x".to_owned()]);
        let net = options.net.unwrap();
        assert_eq!((net.address, net.prefix, net.gateway), (Ipv4Addr::new(192, 0, 0, 2), 29, Ipv4Addr::new(192, 0, 0, 1)));
        assert_eq!((net.mac, net.mtu, net.uid, net.gid), ([2, 0, 0, 0, 0, 10], 65_520, 7, 8));
    }

    #[test]
    fn files_are_shown_under_their_own_names() {
        let options = parsed(&format!("{ROOT} --link /k --show /a/b --show /c -- true")).unwrap();
        let paths = |from: &str, to: &str| (PathBuf::from(from), PathBuf::from(to));
        assert_eq!(options.shown, [paths("/a/b", "/k/b"), paths("/c", "/k/c")]);
    }

    #[test]
    fn an_image_may_lie_in_a_file() {
        assert_eq!(parsed(&format!("{ROOT} -- true")).unwrap().image, None);
        let options = parsed(&format!("{ROOT} --image /i --under /p -- true")).unwrap();
        assert_eq!((options.image, options.under), (Some("/i".into()), Some("/p".into())));
    }

    #[test]
    fn a_disk_has_a_place() {
        let options = parsed(&format!("{ROOT} --disk /a --disk-at /b -- true")).unwrap();
        assert_eq!(options.disk, Some((PathBuf::from("/a"), PathBuf::from("/b"))));
    }

    #[test]
    fn volumes_have_a_place_each_and_may_be_read_only() {
        let options = parsed(&format!("{ROOT} --volume /a --volume-at /b --volume-ro /c --volume-at /d -- true")).unwrap();
        let volume = |file: &str, at: &str, access| Volume { file: file.into(), at: at.into(), access };
        assert_eq!(options.volumes, [volume("/a", "/b", Access::ReadWrite), volume("/c", "/d", Access::ReadOnly)]);
    }

    #[test]
    fn directories_have_a_place_each() {
        let options =
            parsed(&format!("{ROOT} --directory /a --directory-at /b --directory /c --directory-at /d -- true")).unwrap();
        assert_eq!(options.directories, [("/a".into(), "/b".into()), ("/c".into(), "/d".into())]);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        assert!(parsed(&format!("{ROOT} -- true")).is_ok());
        for line in [
            ROOT.to_owned(),
            "--lower /l -- true".to_owned(),
            format!("{} -- true", ROOT.replace("/w", "w")),
            format!("{ROOT} --colour red -- true"),
            format!("{ROOT} --net /n -- true"),
            format!("{ROOT} {} -- true", NET.replace("/29", "")),
            format!("{ROOT} {} -- true", NET.replace("/29", "/33")),
            format!("{ROOT} {} -- true", NET.replace("65520", "65522")),
            format!("{ROOT} {} -- true", NET.replace(":0a", "")),
            format!("{ROOT} {} -- true", NET.replace("--uid 7", "--uid seven")),
            "--lower".to_owned(),
            format!("{ROOT} --disk /a -- true"),
            format!("{ROOT} --disk a --disk-at /b -- true"),
            format!("{ROOT} --volume /a -- true"),
            format!("{ROOT} --volume-at /a -- true"),
            format!("{ROOT} --volume /a --volume /b --volume-at /c -- true"),
            format!("{ROOT} --volume a --volume-at /c -- true"),
            format!("{ROOT} --over a -- true"),
            format!("{ROOT} --image a -- true"),
            format!("{ROOT} --under a -- true"),
            format!("{ROOT} --directory /a -- true"),
            format!("{ROOT} --directory-at /a --directory /b -- true"),
            format!("{ROOT} --directory a --directory-at /b -- true"),
            format!("{ROOT} --uids 1:2 -- true"),
            format!("{ROOT} --uids 1 --gids 1:2 -- true"),
            format!("{ROOT} --show /a -- true"),
            format!("{ROOT} --link /k --show a -- true"),
            format!("{ROOT} --link /k --show / -- true"),
        ] {
            assert!(parsed(&line).is_err(), "{line}");
        }
    }
}
