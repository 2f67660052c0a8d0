//! `hutch-imprint`: what of a running machine's memory and disks differs from what was stored before, written beside
//! it as a new layer.
//!
//! ```text
//! hutch-imprint take [--before] [--passing] [--noted] [--keep] {--memory PID FILE DIR BYTES LAYER MAPPED | --disk FILE DIR BYTES LAYER}...
//! hutch-imprint lay DIR BYTES FILE     makes FILE what is stored in DIR
//! hutch-imprint forget PID FILE BYTES  what `--keep` left in a memory goes
//! hutch-imprint hash FILE...           a line for each
//! hutch-imprint data FILE...           where there is more than holes: lines of FROM UNTIL, and an empty one after each file
//! ```
//!
//! DIR holds what is stored: `map`, the layers by their numbers and, under a memory, `base`. LAYER is the number of the
//! new one. FILE of a memory is one that process PID has mapped as its guest's memory; layers up to MAPPED are mapped
//! in it too, privately, so that only what it has written can differ.
//!
//! `take` with `--before` takes what differs while the machine still runs, says `before`, and waits for a line: the
//! machine stands still then. Without it, it stands still from the start. It takes what (still) differs, says `taken`:
//! the machine may go on. Then it writes all to the disk, reads it for its checksum, and says a line of JSON for each memory
//! and disk. With `--passing`, what is taken is there as long as this host runs: it says those lines at once, without checksums.
//! With `--keep` the kernel goes on noting what is written to the memory. `--noted`: it does since the last layer in DIR was taken with
//! `--keep`, and no other take of that memory was begun since; then only what was written is looked at.
mod hash;
mod layers;
mod map;
mod source;
mod sys;
mod take;
mod writes;

use layers::{Layers, data_of, hash_of};
use source::Source;
use std::fs::File;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use take::{Again, Lasting, Notes, Take};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["take", rest @ ..] => take_all(rest),
        ["lay", dir, bytes, file] => number(bytes).and_then(|bytes| {
            let layers = Layers::open(Path::new(dir), bytes)?;
            layers.lay_out(Path::new(file), bytes).map_err(|error| format!("{file}: {error}"))
        }),
        ["forget", pid, file, bytes] => number(bytes).and_then(|bytes: u64| {
            Source::process(number(pid)?, Path::new(file))?.forget_writes(bytes.div_ceil(map::PAGE));
            Ok(())
        }),
        ["hash", files @ ..] => files.iter().try_for_each(|file| {
            let hash = hash_of(Path::new(file)).map_err(|error| format!("{file}: {error}"))?;
            say(&format!("{hash:016x}"))
        }),
        ["data", files @ ..] => files.iter().try_for_each(|file| {
            let ranges = data_of(Path::new(file)).map_err(|error| format!("{file}: {error}"))?;
            let lines: String = ranges.iter().map(|(from, until)| format!("{from} {until}\n")).collect();
            say(&lines)
        }),
        _ => Err("usage: hutch-imprint take|lay|hash|data …".to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("hutch-imprint: {why}");
            ExitCode::FAILURE
        }
    }
}

fn take_all(words: &[&str]) -> Result<(), String> {
    let (is_before, words) = match words {
        ["--before", rest @ ..] => (true, rest),
        _ => (false, words),
    };
    let (lasting, words) = match words {
        ["--passing", rest @ ..] => (Lasting::No, rest),
        _ => (Lasting::Yes, words),
    };
    let (are_there, words) = match words {
        ["--noted", rest @ ..] => (true, rest),
        _ => (false, words),
    };
    let (go_on, mut rest) = match words {
        ["--keep", rest @ ..] => (true, rest),
        _ => (false, words),
    };
    let notes = Notes { are_there, go_on };
    let mut takes: Vec<(PathBuf, Take)> = Vec::new();
    while !rest.is_empty() {
        let (dir, bytes, layer, mapped, source);
        match rest {
            ["--memory", pid, file, to, size, of, up_to, others @ ..] => {
                (dir, bytes, layer, mapped) = (Path::new(to), number(size)?, number(of)?, number(up_to)?);
                source = Source::process(number(pid)?, Path::new(file))?;
                rest = others;
            }
            ["--disk", file, to, size, of, others @ ..] => {
                (dir, bytes, layer, mapped) = (Path::new(to), number(size)?, number(of)?, 0);
                source = Source::File(File::open(file).map_err(|error| format!("{file}: {error}"))?);
                rest = others;
            }
            _ => return Err(format!("what is meant by {}?", rest.join(" "))),
        }
        takes.push((dir.to_owned(), Take::new(Layers::open(dir, bytes)?, source, layer, mapped, notes)?));
    }
    if is_before {
        pass(&mut takes, Again::Yes)?;
        // What was written while the first pass took its time, where that is known, does not have to be taken while the machine stands still.
        takes.iter_mut().try_for_each(|(dir, take)| take.catch_up().map_err(|error| format!("{}: {error}", dir.display())))?;
        say("before")?;
        let mut line = String::new();
        if std::io::stdin().lock().read_line(&mut line).map_err(|error| error.to_string())? == 0 {
            return Err("nobody waits any more".to_owned());
        }
    }
    pass(&mut takes, Again::No)?;
    say("taken")?;
    for (dir, take) in takes {
        let said = |error: std::io::Error| format!("{}: {error}", dir.display());
        let taken = take.finish(lasting).map_err(said)?;
        let hash = match lasting {
            Lasting::Yes => format!("\"{:016x}\"", hash_of(&dir.join(taken.layer.to_string())).map_err(said)?),
            Lasting::No => "null".to_owned(),
        };
        say(&format!("{{\"layer\":{},\"pages\":{},\"bytes\":{},\"hash\":{hash}}}", taken.layer, taken.pages, taken.bytes))?;
    }
    Ok(())
}

fn pass(takes: &mut [(PathBuf, Take)], again: Again) -> Result<(), String> {
    takes.iter_mut().try_for_each(|(dir, take)| take.pass(again).map_err(|error| format!("{}: {error}", dir.display())))
}

fn number<T: std::str::FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("{word} is no such number"))
}

/// Lines are read as they come: the machine stands still for them.
fn say(line: &str) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|error| error.to_string())
}
