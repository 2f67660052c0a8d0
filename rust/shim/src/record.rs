//! The run directory: `shim.json`, `exit.json`, `shim.sock`, the ticket. Everything goes through one
//! open descriptor of the directory, which is also locked: two shims never share one. When the
//! directory vanishes, writing fails and the shim goes on.
use std::ffi::CStr;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::start::{Birth, VERSION};
use crate::sys;

const SHIM_JSON: &CStr = c"shim.json";
const EXIT_JSON: &CStr = c"exit.json";
const SOCKET: &CStr = c"shim.sock";
const TEMP: &CStr = c".shim-tmp";

/// An earlier shim that has told of the end may still be seeing to it that nothing is left.
const IN_USE: Duration = Duration::from_secs(2);
const IN_USE_LOOK_EVERY: Duration = Duration::from_millis(1);

pub struct RunDir {
    dir: File,
}

impl RunDir {
    /// Opens and locks the directory, and removes what an earlier shim left there.
    /// It must not be writable by others: its files are the proof of how a sandbox ended.
    pub fn take(path: &Path) -> Result<Self, String> {
        let fail = |error: io::Error| format!("cannot use {}: {error}", path.display());
        let dir = File::open(path).map_err(fail)?;
        let info = dir.metadata().map_err(fail)?;
        if info.mode() & 0o022 != 0 || info.uid() != sys::effective_uid() {
            return Err(format!("{} must be ours alone to write", path.display()));
        }
        let until = Instant::now() + IN_USE;
        while sys::lock_exclusively(dir.as_raw_fd()).is_err() {
            if Instant::now() > until {
                return Err(format!("{} is in use by another shim", path.display()));
            }
            sleep(IN_USE_LOOK_EVERY);
        }
        for stale in [SHIM_JSON, EXIT_JSON, SOCKET, TEMP] {
            match sys::unlink_at(dir.as_raw_fd(), stale) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
                _ => {}
            }
        }
        Ok(Self { dir })
    }

    /// Has `sys::REMOVED` sent when something in it is removed. Where the kernel cannot, nobody is told.
    pub fn hear_removals(&self) {
        drop(sys::hear_removals(self.dir.as_raw_fd()));
    }

    /// Whether it was removed: then nobody can find this shim any more, and nobody ever will.
    pub fn is_gone(&self) -> bool {
        self.dir.metadata().is_ok_and(|info| info.nlink() == 0)
    }

    pub fn listen(&self) -> io::Result<UnixListener> {
        // Relative to the directory: an address holds 107 bytes, a path may have more.
        sys::change_dir_fd(self.dir.as_raw_fd())?;
        let listener = UnixListener::bind("shim.sock");
        std::env::set_current_dir("/")?;
        let listener = listener?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    /// Takes the ticket away. Whoever takes it first decides: we start, or nothing ever starts.
    pub fn claim(&self, ticket: &CStr) -> io::Result<()> {
        sys::unlink_at(self.dir.as_raw_fd(), ticket)
    }

    pub fn write_shim(&self, line: &str) -> io::Result<()> {
        self.write(SHIM_JSON, line)
    }

    pub fn write_exit(&self, line: &str) -> io::Result<()> {
        self.write(EXIT_JSON, line)?;
        self.dir.sync_all()
    }

    pub fn forget_start(&self) {
        drop(sys::unlink_at(self.dir.as_raw_fd(), SHIM_JSON));
    }

    pub fn forget_socket(&self) {
        drop(sys::unlink_at(self.dir.as_raw_fd(), SOCKET));
    }

    fn write(&self, name: &CStr, line: &str) -> io::Result<()> {
        let dir = self.dir.as_raw_fd();
        let mut file = sys::open_at(dir, TEMP, libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC)?;
        file.write_all(line.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        sys::rename_at(dir, TEMP, name)
    }
}

/// A JSON object on one line.
pub struct Json(String);

impl Json {
    pub fn new() -> Self {
        Self(String::from("{"))
    }

    fn name(&mut self, name: &str) {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        // Writing to a String cannot fail.
        let _ = write!(self.0, "\"{name}\":");
    }

    pub fn number(mut self, name: &str, value: impl Into<i64>) -> Self {
        self.name(name);
        let _ = write!(self.0, "{}", value.into());
        self
    }

    pub fn number_or_null(mut self, name: &str, value: Option<i32>) -> Self {
        match value {
            Some(value) => self.number(name, value),
            None => {
                self.name(name);
                self.0.push_str("null");
                self
            }
        }
    }

    pub fn truth(mut self, name: &str, value: bool) -> Self {
        self.name(name);
        let _ = write!(self.0, "{value}");
        self
    }

    pub fn text(mut self, name: &str, value: &str) -> Self {
        self.name(name);
        self.0.push('"');
        for c in value.chars() {
            match c {
                '"' | '\\' => self.0.extend(['\\', c]),
                c if c < ' ' => {
                    let _ = write!(self.0, "\\u{:04x}", u32::from(c));
                }
                c => self.0.push(c),
            }
        }
        self.0.push('"');
        self
    }

    pub fn text_or_null(mut self, name: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.text(name, value),
            None => {
                self.name(name);
                self.0.push_str("null");
                self
            }
        }
    }

    pub fn end(mut self) -> String {
        self.0.push('}');
        self.0
    }
}

/// What every `exit.json` begins with.
pub fn exit_json(birth: &Birth, code: Option<i32>, signal: Option<i32>) -> Json {
    let (monotonic_ms, ended_at_ms) = sys::clocks_ms();
    Json::new()
        .number("version", VERSION)
        .number_or_null("code", code)
        .text_or_null("signal", signal.map(signal_name).as_deref())
        .number("endedAtMs", ended_at_ms)
        .number("monotonicMs", monotonic_ms)
        .text("bootId", &birth.boot_id)
        .number("startedAtMs", birth.started_at_ms)
}

pub fn boot_id() -> io::Result<String> {
    small_file("/proc/sys/kernel/random/boot_id").map(|text| text.trim().to_owned())
}

/// In clock ticks since boot: with the pid it names one process for ever.
pub fn start_ticks(pid: i32) -> io::Result<i64> {
    stat_field(pid, 22)
}

/// A number in /proc/PID/stat, counted from 1. The name in parentheses may hold anything: the third
/// field comes after the last `)`.
pub fn stat_field(pid: i32, field: usize) -> io::Result<i64> {
    let stat = small_file(format!("/proc/{pid}/stat"))?;
    stat.rsplit_once(')')
        .and_then(|(_, fields)| fields.split_ascii_whitespace().nth(field.checked_sub(3)?))
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// `oom_kill` of the first cgroup that counts it: `memory.events` (v2) or `memory.oom_control` (v1).
pub fn oom_kills(cgroups: &[std::path::PathBuf]) -> u64 {
    let counter = |dir: &std::path::PathBuf| {
        let text = small_file(dir.join("memory.events")).or_else(|_| small_file(dir.join("memory.oom_control"))).ok()?;
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
    };
    cgroups.iter().find_map(counter).unwrap_or(0)
}

const SMALL_FILE_BYTES_MAX: u64 = 4096;

pub fn small_file(path: impl AsRef<Path>) -> io::Result<String> {
    let mut bytes = Vec::with_capacity(512);
    File::open(path)?.take(SMALL_FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

pub fn signal_name(signal: i32) -> String {
    // One signal a line would be a page of its own.
    #[rustfmt::skip]
    const NAMES: [&str; 32] = [
        "", "SIGHUP", "SIGINT", "SIGQUIT", "SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGKILL", "SIGUSR1", "SIGSEGV",
        "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGTERM", "SIGSTKFLT", "SIGCHLD", "SIGCONT", "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU",
        "SIGURG", "SIGXCPU", "SIGXFSZ", "SIGVTALRM", "SIGPROF", "SIGWINCH", "SIGIO", "SIGPWR", "SIGSYS",
    ];
    match usize::try_from(signal).ok().and_then(|at| NAMES.get(at)) {
        Some(name) if !name.is_empty() => (*name).to_owned(),
        _ => format!("SIG{signal}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_holds_any_text() {
        let json = Json::new().number("n", 1).text("t", "a\"\\\n\u{e9}").text_or_null("x", None).truth("y", true).end();
        assert_eq!(json, "{\"n\":1,\"t\":\"a\\\"\\\\\\u000a\u{e9}\",\"x\":null,\"y\":true}");
    }

    #[test]
    fn our_own_start_time_is_read() {
        assert!(start_ticks(std::process::id() as i32).unwrap() > 0);
    }
}
