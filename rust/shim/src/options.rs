//! The command line (docs/shim.md). Anything that is not understood is refused before anything starts.
use std::ffi::{CString, OsStr, OsString};
use std::path::PathBuf;

use crate::sys::c_string;

const LOG_BYTES_MAX_DEFAULT: u64 = 10 * 1024 * 1024;
const LOG_BYTES_MIN: u64 = 4096;

pub struct Options {
    pub dir: PathBuf,
    pub log: PathBuf,
    pub log_bytes_max: u64,
    pub ids: Option<(u32, u32)>,
    pub cgroups: Vec<PathBuf>,
    pub cwd: PathBuf,
    /// Where the program's console goes.
    pub console: Option<PathBuf>,
    /// Whether the program and the first `--also` share a socket pair.
    pub pair: bool,
    /// Whether the starter is told the generation of the host's rules.
    pub rules: bool,
    /// Whether the program may run one that has more rights than its user.
    pub may_gain: bool,
    /// The file in `dir` that must be there to be taken away, else nothing is started.
    pub ticket: Option<CString>,
    pub also: Vec<Vec<CString>>,
    /// Unix sockets that must be listened on before the main program starts.
    pub sockets_awaited: Vec<PathBuf>,
    pub argv: Vec<CString>,
}

pub fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Options, String> {
    let mut options = Options {
        dir: PathBuf::new(),
        log: PathBuf::new(),
        log_bytes_max: LOG_BYTES_MAX_DEFAULT,
        ids: None,
        cgroups: Vec::new(),
        cwd: PathBuf::from("/"),
        console: None,
        pair: false,
        rules: false,
        may_gain: false,
        ticket: None,
        also: Vec::new(),
        sockets_awaited: Vec::new(),
        argv: Vec::new(),
    };
    let (mut uid, mut gid) = (None, None);
    while let Some(name) = args.next() {
        let name = name.to_string_lossy().into_owned();
        if name == "--" {
            options.argv = args.by_ref().map(|arg| word(&arg)).collect::<Result<_, _>>()?;
            break;
        }
        if name == "--also" {
            options.also.push(until_semicolon(&mut args)?);
            continue;
        }
        let flag = match name.as_str() {
            "--pair" => Some(&mut options.pair),
            "--rules" => Some(&mut options.rules),
            "--new-privileges" => Some(&mut options.may_gain),
            _ => None,
        };
        if let Some(flag) = flag {
            *flag = true;
            continue;
        }
        let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--dir" => options.dir = absolute(&name, &value)?,
            "--log" => options.log = absolute(&name, &value)?,
            "--log-bytes-max" => options.log_bytes_max = number::<u64>(&name, &value)?.max(LOG_BYTES_MIN),
            "--uid" => uid = Some(number(&name, &value)?),
            "--gid" => gid = Some(number(&name, &value)?),
            "--cgroup" => options.cgroups.push(absolute(&name, &value)?),
            "--console" => options.console = Some(absolute(&name, &value)?),
            "--cwd" => options.cwd = absolute(&name, &value)?,
            "--ticket" => options.ticket = Some(plain_name(&name, &value)?),
            "--await" => options.sockets_awaited.push(absolute(&name, &value)?),
            _ => return Err(format!("unknown option {name}")),
        }
    }
    options.ids = match (uid, gid) {
        (Some(uid), Some(gid)) => Some((uid, gid)),
        (None, None) => None,
        _ => return Err("--uid and --gid come together".into()),
    };
    if options.dir.as_os_str().is_empty() || options.log.as_os_str().is_empty() {
        return Err("--dir and --log are needed".into());
    }
    if options.pair && options.also.is_empty() {
        return Err("--pair needs an --also".into());
    }
    if options.argv.is_empty() {
        return Err("a program is needed after --".into());
    }
    Ok(options)
}

fn word(arg: &OsStr) -> Result<CString, String> {
    c_string(arg).map_err(|_| "an argument holds a NUL".into())
}

fn until_semicolon(args: &mut impl Iterator<Item = OsString>) -> Result<Vec<CString>, String> {
    let mut argv = Vec::new();
    for arg in args {
        if arg == ";" {
            return if argv.is_empty() { Err("--also needs a program".into()) } else { Ok(argv) };
        }
        argv.push(word(&arg)?);
    }
    Err("--also needs a closing ;".into())
}

fn absolute(name: &str, value: &OsStr) -> Result<PathBuf, String> {
    let path = PathBuf::from(value);
    if path.is_absolute() { Ok(path) } else { Err(format!("{name} needs an absolute path")) }
}

fn number<T: std::str::FromStr>(name: &str, value: &OsStr) -> Result<T, String> {
    value.to_str().and_then(|text| text.parse().ok()).ok_or_else(|| format!("{name} needs a number"))
}

fn plain_name(name: &str, value: &OsStr) -> Result<CString, String> {
    let text = value.to_string_lossy();
    if text.is_empty() || text.contains('/') || text == "." || text == ".." {
        return Err(format!("{name} needs the name of a file in --dir"));
    }
    word(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Options, String> {
        parse(line.split(' ').map(OsString::from))
    }

    #[test]
    fn a_whole_command_line_is_understood() {
        let options = parsed(
            "--dir /d --log /l --pair --console /c --uid 7 --gid 8 --also passt -f ; --also b ; --await /s -- qemu --dir x",
        )
        .unwrap();
        assert_eq!(options.ids, Some((7, 8)));
        assert_eq!((options.pair, options.console), (true, Some(PathBuf::from("/c"))));
        assert_eq!(options.also, [vec![c"passt".to_owned(), c"-f".to_owned()], vec![c"b".to_owned()]]);
        assert_eq!(options.argv, [c"qemu".to_owned(), c"--dir".to_owned(), c"x".to_owned()]);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for line in [
            "--dir /d --log /l",
            "--dir /d -- true",
            "--dir d --log /l -- true",
            "--dir /d --log /l --uid 7 -- true",
            "--dir /d --log /l --uid seven --gid 7 -- true",
            "--dir /d --log /l --also ; -- true",
            "--dir /d --log /l --also a -- true",
            "--dir /d --log /l --ticket ../x -- true",
            "--dir /d --log /l --colour red -- true",
            "--dir /d --log /l --pair -- true",
            "--dir /d --log /l --console c -- true",
            "--dir",
        ] {
            assert!(parsed(line).is_err(), "{line}");
        }
    }
}
