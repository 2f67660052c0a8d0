//! hutch-shim: parent of one VMM or runtime, and the only witness of its end (docs/shim.md).
//!
//! The process that is started says in one line on its stdout how the start went, and ends; the shim
//! proper is its child, in a session of its own. It has one thread and one loop (`supervise.rs`).
mod child;
mod clients;
mod descendants;
mod log;
mod options;
mod own_ports;
mod record;
mod rules;
mod start;
mod supervise;
mod sys;

use std::fs::File;
use std::io::{Read, Write};
use std::process::ExitCode;

use record::Json;
use sys::Forked;

fn main() -> ExitCode {
    sys::close_inherited();
    if let Err(error) = sys::reserve_given() {
        tell_starter(&Json::new().text("error", &format!("cannot open /dev/null: {error}")).end());
        return ExitCode::FAILURE;
    }
    sys::private_umask();
    match launch() {
        Ok(line) => {
            tell_starter(&line);
            if line.starts_with("{\"error\"") { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Err(why) => {
            tell_starter(&Json::new().text("error", &why).end());
            ExitCode::FAILURE
        }
    }
}

fn tell_starter(line: &str) {
    // A starter that is gone is not told: the shim's files say the same.
    drop(std::io::stdout().write_all(format!("{line}\n").as_bytes()));
}

/// Gives the line with which the shim proper says how the start went.
fn launch() -> Result<String, String> {
    let options = options::parse(std::env::args_os().skip(1))?;
    let (from_shim, to_starter) = sys::pipe(0).map_err(|error| format!("cannot make a pipe: {error}"))?;
    match sys::fork().map_err(|error| format!("cannot fork: {error}"))? {
        Forked::Parent(_) => {
            drop(to_starter);
            let mut line = String::new();
            drop(File::from(from_shim).read_to_string(&mut line));
            if line.is_empty() { Err("the shim ended while it started".into()) } else { Ok(line.trim_end().to_owned()) }
        }
        Forked::Child => {
            drop(from_shim);
            start::shim(&options, File::from(to_starter));
            sys::exit_now(0)
        }
    }
}
