//! One program under the shim: made ready, held before `exec` until it is let go, ended with the shim.
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;

use crate::own_ports::share_no_ports;
use crate::sys::{self, Forked};

/// What every program of this shim gets.
pub struct Setting<'a> {
    pub null: &'a File,
    /// Where stdout and stderr go.
    pub output: &'a File,
    pub cgroups: &'a [PathBuf],
    pub ids: Option<(u32, u32)>,
    pub cwd: &'a PathBuf,
    /// What the starter had, before the shim lowered its own.
    pub oom_score_adj: &'a str,
    /// It runs a program that has more rights than its user, and gives such up itself.
    pub may_gain: bool,
    /// It shares no port of this machine with another (own_ports.rs).
    pub own_ports: bool,
}

/// A process that is ready and waits: it can be told of, and proven dead, before it does anything.
pub struct Waiting {
    pub pid: i32,
    go: File,
    status: File,
}

/// `given` are descriptors and the numbers that the program finds them under.
pub fn prepare(argv: &[CString], setting: &Setting<'_>, given: &[(RawFd, RawFd)]) -> io::Result<Waiting> {
    let (wait, go) = sys::pipe(0)?;
    let (status, report) = sys::pipe(0)?;
    let shim = i32::try_from(std::process::id()).unwrap_or(0);
    match sys::fork()? {
        Forked::Parent(pid) => Ok(Waiting { pid, go: File::from(go), status: File::from(status) }),
        Forked::Child => {
            drop((go, status));
            let failure = become_program(argv, setting, given, shim, File::from(wait));
            let text = format!("{} {}", failure.1.raw_os_error().unwrap_or(0), failure.0);
            drop(File::from(report).write_all(text.as_bytes()));
            sys::exit_now(127)
        }
    }
}

/// Why a program did not run.
pub struct NotRun {
    pub code: i32,
    pub why: String,
}

impl Waiting {
    /// Lets it run; returns once its program does, or has failed to.
    pub fn release(mut self) -> Result<i32, NotRun> {
        drop(self.go.write_all(b"g")); // if it is gone already, its report says why
        drop(self.go);
        let mut report = String::new();
        drop(self.status.read_to_string(&mut report));
        let Some((errno, what)) = report.split_once(' ') else { return Ok(self.pid) };
        let error = io::Error::from_raw_os_error(errno.parse().unwrap_or(0));
        let code = if error.kind() == io::ErrorKind::PermissionDenied { 126 } else { 127 };
        Err(NotRun { code, why: format!("cannot {what}: {error}") })
    }
}

type Failed = (String, io::Error);

fn become_program(argv: &[CString], setting: &Setting<'_>, given: &[(RawFd, RawFd)], shim: i32, mut wait: File) -> Failed {
    if let Err(failed) = set_up(setting, given, shim) {
        return failed;
    }
    let mut go = [0; 1];
    // The end of the pipe instead of a byte: the shim has thought better of it, or is gone.
    if wait.read_exact(&mut go).is_err() {
        sys::exit_now(127);
    }
    let program = argv.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    (format!("run {program}"), sys::exec(argv))
}

fn set_up(setting: &Setting<'_>, given: &[(RawFd, RawFd)], shim: i32) -> Result<(), Failed> {
    let to = |what: &'static str| move |error| (what.to_owned(), error);
    sys::die_with(shim).map_err(to("be bound to the shim"))?;
    sys::default_signals();
    sys::new_session().map_err(to("make a session"))?;
    for cgroup in setting.cgroups {
        let procs = cgroup.join("cgroup.procs");
        let join = OpenOptions::new().write(true).open(&procs).and_then(|mut file| file.write_all(b"0\n"));
        join.map_err(|error| (format!("join {}", cgroup.display()), error))?;
    }
    drop(fs::write("/proc/self/oom_score_adj", setting.oom_score_adj)); // a hint to the kernel
    sys::no_core_files().map_err(to("forbid core files"))?;
    sys::many_open_files();
    if !setting.may_gain {
        sys::no_new_privileges().map_err(to("give up new privileges"))?;
    }
    if setting.own_ports {
        share_no_ports().map_err(to("keep its ports to itself"))?;
    }
    if let Some((uid, gid)) = setting.ids {
        sys::set_ids(uid, gid).map_err(to("change the user"))?;
    }
    sys::die_with(shim).map_err(to("be bound to the shim"))?;
    std::env::set_current_dir(setting.cwd).map_err(|error| (format!("enter {}", setting.cwd.display()), error))?;
    let stdio = [setting.null.as_raw_fd(), setting.output.as_raw_fd(), setting.output.as_raw_fd()];
    for (number, fd) in (0..).zip(stdio) {
        sys::replace_fd(fd, number).map_err(to("set up its output"))?;
    }
    for (fd, number) in given {
        sys::replace_fd(*fd, *number).map_err(to("set up its descriptors"))?;
    }
    Ok(())
}
