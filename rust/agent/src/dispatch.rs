//! From the method's name to what it does. A unary method's outcome is its reply; the others answer
//! by themselves.
use crate::agent::{Agent, Place};
use crate::fault::{Fault, Outcome};
use crate::jobs::Ticket;
use crate::stream::Kind;
use crate::wire::fields::Fields;
use crate::wire::value::{Value, decode};

const EMPTY: Value = Value::Nil;

impl Agent {
    pub fn dispatch(&mut self, ticket: Ticket, payload: &[u8]) -> Result<(), Fault> {
        let request = decode(payload)?;
        let request = Fields(&request);
        let method = request.str("m")?;
        let p = Fields(request.get("p").unwrap_or(&EMPTY));
        if needs_root(method) && self.place == Place::Machine && !self.machine.has_root() {
            return Err(Fault::failed_precondition(format!("{method}: the sandbox is not configured yet")));
        }
        let outcome = match method {
            "hello" => self.hello(),
            "clock" => self.clock(p),
            "shutdown" => self.shutdown_method(p),
            "prepareCheckpoint" => self.prepare_checkpoint(p),
            "process.signal" => self.process_signal(p),
            "process.resize" => self.process_resize(p),
            "process.closeInput" => self.process_close_input(p),
            "process.list" => self.process_list(),
            _ => return self.dispatch_streaming(ticket, method, p),
        };
        self.finish(ticket, &outcome);
        Ok(())
    }

    fn dispatch_streaming(&mut self, ticket: Ticket, method: &str, p: Fields<'_>) -> Result<(), Fault> {
        match method {
            "watchEvents" => {
                self.watch_events(ticket);
                Ok(())
            }
            "configure" => self.configure(ticket, p),
            "metrics" => self.metrics(ticket),
            "sync" => self.sync(ticket),
            "warm" => self.warm(ticket, p),
            "process.start" => self.process_start(ticket, p),
            "process.attach" => self.process_attach(ticket, p),
            "process.wait" => self.process_wait(ticket, p),
            "process.log" => self.process_log(ticket, p),
            "ports.list" => self.ports_list(ticket),
            "ports.watch" => self.ports_watch(ticket),
            "connect" => self.connect(ticket, p),
            "listen" => self.listen(ticket, p),
            "accept" => self.accept(ticket, p),
            _ if method.starts_with("file.") || method.starts_with("tar.") => self.file_method(ticket, method, p),
            _ => Err(Fault::unimplemented(format!("this agent has no method {method}"))),
        }
    }

    fn watch_events(&mut self, ticket: Ticket) {
        let ended = self.processes.key_of(crate::process::table::MAIN).and_then(|key| self.processes.get(key));
        let ended = ended.and_then(|process| process.exit.as_ref()).map(crate::process::table::Exit::to_value);
        self.with_stream(ticket.stream, |stream| {
            stream.kind = Kind::Events;
            stream.reply(&Value::Nil);
            if let Some(exit) = ended {
                stream.event("mainExited", exit);
            }
        });
    }

    /// Runs `job` on a thread; its outcome is the reply.
    pub fn reply_from_thread(&mut self, ticket: Ticket, job: impl FnOnce() -> Outcome + Send + 'static) -> Result<(), Fault> {
        let notes = self.notes.clone();
        self.pool.run(move || {
            let outcome = job();
            notes.post(move |agent| agent.finish(ticket, &outcome));
        })
    }
}

/// Methods that mean the sandbox's own root: before it is there they would see the initramfs.
fn needs_root(method: &str) -> bool {
    ["process.", "file.", "tar.", "ports.", "connect", "listen", "accept"].iter().any(|prefix| method.starts_with(prefix))
}
