//! From the fork to the loop. Everything that can fail does so before the program runs, and is told to
//! the starter and by `exit.json`.
//!
//! Order matters: the program's process exists, held before `exec`, when `shim.json` is written; then
//! the ticket is taken; then it runs. So whoever finds no `shim.json` and takes the ticket knows that
//! nothing was started, and that nothing will be.
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::child::{self, NotRun, Setting};
use crate::clients::Clients;
use crate::descendants;
use crate::log::Log;
use crate::options::Options;
use crate::record::{self, Json, RunDir};
use crate::rules;
use crate::supervise::{Programs, Supervised};
use crate::sys;

pub const VERSION: i64 = 1;
/// The kernel looks for others first when memory runs out: the shim is a witness, and tiny.
const OOM_SCORE_ADJ: &str = "-900";
const SOCKET_AWAITED: Duration = Duration::from_secs(5);
const SOCKET_LOOK_EVERY: Duration = Duration::from_millis(1);
pub const DESCENDANTS_GONE: Duration = Duration::from_secs(5);

/// What stands in both files.
pub struct Birth {
    pub boot_id: String,
    pub started_at_ms: i64,
}

pub fn shim(options: &Options, mut starter: File) {
    match RunDir::take(&options.dir).and_then(|dir| start(options, dir)) {
        Ok((supervised, greeting)) => {
            // A starter that is gone cannot know of the sandbox: then there must be none.
            let told = starter.write_all(first_line(options, &greeting).as_bytes()).is_ok();
            drop(starter);
            supervised.until_the_end(&greeting, told);
        }
        Err(why) => drop(starter.write_all(Json::new().text("error", &why).end().as_bytes())),
    }
}

enum Failure {
    NotRun(NotRun),
    /// Somebody else took the ticket, and has concluded that nothing was started.
    Revoked,
}

fn failed<E: std::fmt::Display>(what: &str) -> impl FnOnce(E) -> Failure {
    move |error| Failure::NotRun(NotRun { code: 127, why: format!("cannot {what}: {error}") })
}

fn start(options: &Options, dir: RunDir) -> Result<(Supervised, String), String> {
    let boot_id = record::boot_id().map_err(|error| format!("cannot read the boot id: {error}"))?;
    let birth = Birth { boot_id, started_at_ms: sys::clocks_ms().1 };
    match begin(options, &dir, &birth) {
        Ok((programs, greeting)) => Ok((Supervised { dir, birth, programs }, greeting)),
        Err(failure) => {
            descendants::end_all(DESCENDANTS_GONE);
            let why = match failure {
                Failure::Revoked => {
                    dir.forget_start();
                    "the ticket is gone: the start was called off".into()
                }
                Failure::NotRun(not_run) => {
                    drop(dir.write_exit(&not_run_json(&birth, &not_run)));
                    not_run.why
                }
            };
            dir.forget_socket();
            Err(why)
        }
    }
}

fn begin(options: &Options, dir: &RunDir, birth: &Birth) -> Result<(Programs, String), Failure> {
    let signals = sys::signal_fd().map_err(failed("hear signals"))?;
    sys::new_session().map_err(failed("make a session"))?;
    sys::become_subreaper().map_err(failed("become a subreaper"))?;
    let oom_score_adj = record::small_file("/proc/self/oom_score_adj").unwrap_or_else(|_| "0".into());
    drop(fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ)); // root alone may lower it

    let null = OpenOptions::new().read(true).write(true).open("/dev/null").map_err(failed("open /dev/null"))?;
    let (log_source, output) = sys::pipe(0).map_err(failed("make a pipe"))?;
    sys::set_nonblocking(log_source.as_raw_fd()).map_err(failed("set up a pipe"))?;
    let log = Log::new(&options.log, options.log_bytes_max, log_source.into());
    let mut log = log.map_err(failed(&format!("open {}", options.log.display())))?;
    for number in 0..3 {
        sys::replace_fd(null.as_raw_fd(), number).map_err(failed("let go of stdio"))?;
    }

    let (console, console_output) = match &options.console {
        None => (None, None),
        Some(path) => {
            // A guest's console must never hold up its processors: what does not fit is the VMM's to keep or lose.
            let (source, writer) = sys::pipe(libc::O_NONBLOCK).map_err(failed("make a pipe"))?;
            let console = Log::new(path, options.log_bytes_max, source.into());
            (Some(console.map_err(failed(&format!("open {}", path.display())))?), Some(writer))
        }
    };
    let pair = options.pair.then(sys::socket_pair).transpose().map_err(failed("make a socket pair"))?;
    let mut given = Vec::new();
    given.extend(pair.as_ref().map(|(ours, _)| (ours.as_raw_fd(), sys::PAIR)));
    given.extend(console_output.as_ref().map(|writer| (writer.as_raw_fd(), sys::CONSOLE)));
    let given_beside: Vec<_> = pair.iter().map(|(_, theirs)| (theirs.as_raw_fd(), sys::PAIR)).collect();

    let output = File::from(output);
    let oom_score_adj = oom_score_adj.trim();
    let Options { cgroups, cwd, .. } = options;
    let setting = Setting {
        null: &null,
        output: &output,
        cgroups,
        ids: ids_to_take(options.ids),
        cwd,
        oom_score_adj,
        may_gain: false,
        own_ports: false,
    };
    let main =
        child::prepare(&options.argv, &Setting { may_gain: options.may_gain, ..setting }, &given).map_err(failed("fork"))?;

    let listener = dir.listen().map_err(failed("listen on shim.sock"))?;
    let greeting = shim_json(birth, main.pid).map_err(failed("read start times"))?;
    dir.write_shim(&greeting).map_err(failed("write shim.json"))?;
    if let Some(ticket) = &options.ticket {
        dir.claim(ticket).map_err(|_| Failure::Revoked)?;
    }

    let mut companions = Vec::new();
    for (index, argv) in options.also.iter().enumerate() {
        let given: &[_] = if index == 0 { &given_beside } else { &[] };
        let waiting = child::prepare(argv, &Setting { own_ports: true, ..setting }, given).map_err(failed("fork"))?;
        companions.push(waiting.release().map_err(Failure::NotRun)?);
    }
    for socket in &options.sockets_awaited {
        await_socket(socket, &companions, &mut log).map_err(failed(&format!("wait for {}", socket.display())))?;
    }
    let oom_kills = record::oom_kills(cgroups);
    let main = main.release().map_err(Failure::NotRun)?;
    let clients = Clients::new(listener);
    let programs = Programs { signals, log, console, clients, main, companions, cgroups: cgroups.clone(), oom_kills };
    Ok((programs, greeting))
}

/// The greeting, and what else the starter wants to know.
fn first_line(options: &Options, greeting: &str) -> String {
    let generation = if options.rules { rules::generation().ok() } else { None };
    match (generation, greeting.strip_suffix('}')) {
        (Some(generation), Some(fields)) => format!("{fields},\"rulesGeneration\":{generation}}}"),
        _ => greeting.to_owned(),
    }
}

/// Our own ids need no change, and a user may not ask for one.
fn ids_to_take(ids: Option<(u32, u32)>) -> Option<(u32, u32)> {
    ids.filter(|(uid, _)| sys::effective_uid() == 0 || sys::effective_uid() != *uid)
}

fn await_socket(path: &Path, companions: &[i32], log: &mut Log) -> io::Result<()> {
    let until = Instant::now() + SOCKET_AWAITED;
    while !is_listened_on(path)? {
        log.copy(); // whoever makes the socket may have much to say before
        for pid in companions {
            if let Ok(Some(end)) = sys::reap(*pid)
                && end.code != Some(0)
            {
                return Err(io::Error::other("the program that would make it has ended"));
            }
        }
        if Instant::now() > until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        sleep(SOCKET_LOOK_EVERY);
    }
    Ok(())
}

/// Bound and listening: `__SO_ACCEPTCON` in /proc/net/unix. A connection would be the one that counts.
fn is_listened_on(path: &Path) -> io::Result<bool> {
    if !path.try_exists()? {
        return Ok(false);
    }
    let path = path.to_string_lossy();
    let table = fs::read_to_string("/proc/net/unix")?;
    Ok(table.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace().skip(3);
        fields.next() == Some("00010000") && fields.nth(3) == Some(path.as_ref())
    }))
}

fn shim_json(birth: &Birth, pid: i32) -> io::Result<String> {
    let shim_pid = i32::try_from(std::process::id()).map_err(io::Error::other)?;
    let json = Json::new()
        .number("version", VERSION)
        .number("shimPid", shim_pid)
        .number("shimStartTicks", record::start_ticks(shim_pid)?)
        .number("pid", pid)
        .number("startTicks", record::start_ticks(pid)?)
        .text("bootId", &birth.boot_id)
        .number("startedAtMs", birth.started_at_ms);
    Ok(json.end())
}

fn not_run_json(birth: &Birth, not_run: &NotRun) -> String {
    record::exit_json(birth, Some(not_run.code), None).text("failed", &not_run.why).end()
}
