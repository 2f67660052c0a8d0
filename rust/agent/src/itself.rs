//! Methods about the agent itself: `hello`, `sync`, `warm`.
use crate::agent::{Agent, Place};
use crate::clock::uptime_ms;
use crate::fault::{Fault, Outcome};
use crate::jobs::Ticket;
use crate::process::table::MAIN;
use crate::wire::fields::Fields;
use crate::wire::value::Value;
use rustix::fs::{Advice, Mode, OFlags, fadvise, fstat, open, syncfs};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, waitpid};
use std::os::fd::AsFd;
use std::time::Instant;

const FEATURES: [&str; 5] = ["warm", "resume", "tar", "ports", "listen"];
const WARM_PATHS_MAX: usize = 1_024;

impl Agent {
    pub fn hello(&mut self) -> Outcome {
        let uname = rustix::system::uname();
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Ok(Value::map([
            ("agentVersion", env!("CARGO_PKG_VERSION").into()),
            ("features", Value::Array(FEATURES.iter().map(|name| (*name).into()).collect())),
            ("bootId", boot_id.trim().into()),
            ("pid", rustix::process::getpid().as_raw_nonzero().get().into()),
            ("isInit", (self.place != Place::Process).into()),
            ("kernel", uname.release().to_string_lossy().into_owned().into()),
            ("uptimeMs", uptime_ms().into()),
            ("configured", self.settings.generation.is_some().into()),
            ("generation", self.settings.generation.as_deref().map_or(Value::Nil, Value::from)),
        ]))
    }

    pub fn sync(&mut self, ticket: Ticket) -> Result<(), Fault> {
        let disk = self.machine.disk.as_ref().and_then(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 3).ok());
        self.reply_from_thread(ticket, move || {
            let synced = match disk {
                Some(disk) => syncfs(&disk),
                None => open("/", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).and_then(syncfs),
            };
            synced.map(|()| Value::Nil).map_err(|errno| Fault::system("the disk cannot be written", errno))
        })
    }

    /// Reads files into the page cache and runs `/bin/true`, so that the first program after a restore
    /// finds them (and, under emulation, its own kernel paths translated).
    pub fn warm(&mut self, ticket: Ticket, p: Fields<'_>) -> Result<(), Fault> {
        let paths = p.opt_list("paths")?.unwrap_or_default();
        if paths.len() > WARM_PATHS_MAX {
            return Err(Fault::invalid_argument(format!("paths has more than {WARM_PATHS_MAX} entries")));
        }
        let root: &[u8] = if self.place == Place::Machine && !self.machine.has_root() { b"/base" } else { b"" };
        let paths: Vec<Vec<u8>> = paths.into_iter().map(|path| [root, b"/", path].concat()).collect();
        let root = root.to_vec();
        if self.place == Place::Machine && self.machine.has_root() {
            // The log of every main process begins in this file. Its making copies up the directories above it.
            drop(self.open_log(MAIN));
        }
        let notes = self.notes.clone();
        // The child is not one of ours by name: its end is waited for by whoever comes first.
        self.starting += 1;
        let began = self.pool.run(move || {
            let outcome = warm(&paths, &root);
            notes.post(move |agent| {
                agent.starting = agent.starting.saturating_sub(1);
                agent.finish(ticket, &outcome);
                agent.reap();
            });
        });
        if began.is_err() {
            self.starting -= 1;
        }
        began
    }
}

fn read_whole(path: &[u8]) -> Result<u64, Errno> {
    let fd = open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())?;
    if fstat(&fd)?.st_mode & 0o170_000 != 0o100_000 {
        return Err(Errno::INVAL);
    }
    let _ = fadvise(&fd, 0, None, Advice::Sequential);
    let mut buffer = vec![0; 64 * 1024];
    let mut bytes = 0;
    loop {
        match rustix::io::read(&fd, &mut buffer)? {
            0 => return Ok(bytes),
            count => bytes += count as u64,
        }
    }
}

fn warm(paths: &[Vec<u8>], root: &[u8]) -> Outcome {
    let started = Instant::now();
    let (mut files, mut bytes) = (0u64, 0u64);
    for path in paths {
        if let Ok(count) = read_whole(path) {
            files += 1;
            bytes += count;
        }
    }
    for _ in 0..2 {
        run_true(root)?;
    }
    let took = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(Value::map([("files", files.into()), ("bytes", bytes.into()), ("tookMs", took.into())]))
}

fn run_true(root: &[u8]) -> Result<(), Fault> {
    let null =
        open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| Fault::system("/dev/null", errno))?;
    let root = std::ffi::CString::new(root).unwrap_or_default();
    let program = hutch_sys::Program {
        candidates: &[c"/bin/true".to_owned(), c"/usr/bin/true".to_owned()],
        argv: &[c"true".to_owned()],
        env: &[],
        cwd: c"/",
        stdin: null.as_fd(),
        stdout: null.as_fd(),
        stderr: null.as_fd(),
        terminal: false,
        credentials: None,
        oom_score_adj: None,
        root: (!root.is_empty()).then_some(root.as_c_str()),
    };
    // An image without it needs no warming by it. Who waits first does not matter.
    if let Ok(pid) = hutch_sys::spawn(&program)
        && let Some(pid) = Pid::from_raw(pid)
    {
        let _ = waitpid(Some(pid), WaitOptions::empty());
    }
    Ok(())
}
