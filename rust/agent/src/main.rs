//! `hutch-agent`: as PID 1 of a machine it sets that up; elsewhere it connects out, or speaks over
//! stdin and stdout.
#![forbid(unsafe_code)]

use hutch_agent::agent::{Agent, Place};
use hutch_agent::console::{fill_standard_descriptors, say};
use hutch_agent::layer;
use hutch_agent::link::{Link, Target};
use hutch_agent::machine::{Machine, boot};
use hutch_sys::SignalFd;
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage: hutch-agent (--connect SOCKET | --stdio) [--root DIRECTORY] [--logs DIRECTORY] | --version";
const SIGCHLD: i32 = 17;
const SIGTERM: i32 = 15;
const SIGINT: i32 = 2;

enum Command {
    Version,
    Run { target: Target, root: Option<PathBuf>, logs: Option<String> },
}

fn parse(mut arguments: impl Iterator<Item = std::ffi::OsString>) -> Result<Command, String> {
    let mut target = None;
    let mut root = None;
    let mut logs = None;
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{} needs a value", argument.to_string_lossy()));
        match argument.to_str() {
            Some("--version") => return Ok(Command::Version),
            Some("--connect") => target = Some(Target::Connect(PathBuf::from(value()?))),
            Some("--stdio") => target = Some(Target::Stdio),
            // As the agent sees it, within the root. The default is the sandbox's own.
            Some("--logs") => logs = Some(value()?.to_string_lossy().into_owned()),
            Some("--root") => root = Some(PathBuf::from(value()?)),
            _ => return Err(format!("unknown argument {}", argument.to_string_lossy())),
        }
    }
    let target = target.ok_or("--connect or --stdio is missing")?;
    Ok(Command::Run { target, root, logs })
}

fn main() -> ExitCode {
    hutch_sys::close_inherited();
    fill_standard_descriptors();
    hutch_sys::limit_heap();
    let is_init = rustix::process::getpid().is_init();
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if !is_init
        && let Some((first, rest)) = arguments.split_first()
        && first == "--layer"
    {
        return match layer::main(rest) {
            Ok(()) => ExitCode::SUCCESS,
            Err(message) => fail(&message),
        };
    }
    // The kernel gives its init what it did not understand of its command line; our own arguments begin with --.
    let is_machine = is_init && !arguments.iter().any(|argument| argument.to_string_lossy().starts_with("--"));
    let signals = match SignalFd::new(&[SIGCHLD, SIGTERM, SIGINT]) {
        Ok(signals) => signals,
        Err(error) => return fail(&format!("signals: {error}")),
    };
    let mut log_directory = None;
    let (place, machine, link) = if is_machine {
        let (machine, options) = boot();
        (Place::Machine, machine, Link::new(Target::Port(options.port)))
    } else {
        match parse(arguments.into_iter()) {
            Ok(Command::Version) => {
                println!("hutch-agent {}", env!("CARGO_PKG_VERSION"));
                return ExitCode::SUCCESS;
            }
            Ok(Command::Run { target, root, logs }) => {
                log_directory = logs;
                if let Err(message) = enter(root) {
                    return fail(&message);
                }
                (if is_init { Place::Init } else { Place::Process }, Machine::default(), Link::new(target))
            }
            Err(message) => return fail(&format!("{message}\n{USAGE}")),
        }
    };
    if !is_init {
        let own = rustix::process::getpid();
        let _ = rustix::process::set_child_subreaper(Some(own));
    }
    // Whoever writes to us goes on until there is something worth sending, or the CPU is free.
    hutch_sys::set_scheduling(hutch_sys::Scheduling::Batch);
    match Agent::new(place, machine, link, signals) {
        Ok(mut agent) => {
            if let Some(directory) = log_directory {
                agent.log_directories = vec![directory];
            }
            ExitCode::from(agent.run())
        }
        Err(errno) => fail(&format!("the agent cannot start: {errno}")),
    }
}

/// Everything the agent does happens in this root.
fn enter(root: Option<PathBuf>) -> Result<(), String> {
    let Some(root) = root.filter(|root| root.as_os_str() != "/") else { return Ok(()) };
    rustix::process::chroot(&root)
        .and_then(|()| rustix::process::chdir("/"))
        .map_err(|errno| format!("{} cannot be made the root: {errno}", root.display()))
}

fn fail(message: &str) -> ExitCode {
    say(message);
    ExitCode::from(125)
}
