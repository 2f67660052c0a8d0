//! `process.log`, and where a process's log comes from.
use super::log::{Log, LogReader};
use crate::agent::Agent;
use crate::console::say;
use crate::fault::{Fault, describe};
use crate::jobs::Ticket;
use crate::output::Output;
use crate::stream::Kind;
use crate::wire::fields::Fields;
use crate::wire::value::Value;

impl Agent {
    /// None, with a word on the console, where no log can be written: the process runs all the same.
    pub fn open_log(&mut self, id: &str) -> Option<Log> {
        if self.log_directories.is_empty() {
            return None;
        }
        match Log::open(&self.log_directories, id, self.settings.log_bytes_max, self.settings.log_files) {
            Ok(log) => Some(log),
            Err(errno) => {
                say(&format!("no log of {id} can be kept: {}", describe(errno)));
                None
            }
        }
    }

    pub fn process_log(&mut self, ticket: Ticket, p: Fields<'_>) -> Result<(), Fault> {
        let id = p.str("id")?;
        let (offset, tail) = (p.opt_u64("offset")?, p.opt_u64("tailBytes")?);
        let follow = p.bool_or("follow", false)?;
        let key =
            self.processes.key_of(id).ok_or_else(|| Fault::not_found(format!("there is no process {id} in the sandbox")))?;
        let log = self.processes.get(key).and_then(|process| process.log.as_ref());
        let log = log.ok_or_else(|| Fault::not_found(format!("no log of {id} is kept")))?;
        let offset = match (offset, tail) {
            (Some(offset), _) => offset.clamp(log.start(), log.end()),
            (None, Some(bytes)) => log.tail(bytes),
            (None, None) => log.start(),
        };
        self.with_stream(ticket.stream, |stream| {
            stream.kind = Kind::Log(LogReader::new(key, offset, follow));
            stream.reply(&Value::map([("offset", offset.into())]));
        });
        Ok(())
    }

    /// One frame of the log; at its end the stream waits, or is over.
    pub fn emit_log(&mut self, number: u32, reader: &mut LogReader, credit: u64, output: &mut Output) -> LogTurn {
        let Some(process) = self.processes.get_mut(reader.process) else { return LogTurn::Over(Ok(Value::Nil)) };
        let ended = process.exit.is_some();
        let Some(log) = process.log.as_mut() else { return LogTurn::Over(Ok(Value::Nil)) };
        if reader.offset < log.start() {
            // Rotated away before it was read: whoever reads asks again, and learns where the log begins now.
            return LogTurn::Over(Err(Fault::resource_exhausted("the log was rotated before this part of it was read")));
        }
        if reader.offset >= log.end() {
            if !reader.follow || ended {
                return LogTurn::Over(Ok(Value::Nil));
            }
            log.follow(number);
            return LogTurn::Sent(0, false);
        }
        match reader.emit(log, number, credit, output) {
            Ok(count) => LogTurn::Sent(count, count > 0 || credit > 0),
            Err(errno) => LogTurn::Over(Err(Fault::system("the log cannot be read", errno))),
        }
    }
}

pub enum LogTurn {
    /// Bytes, and whether there may be more now.
    Sent(usize, bool),
    Over(crate::fault::Outcome),
}
