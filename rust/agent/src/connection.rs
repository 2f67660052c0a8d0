//! The connection: preambles and frames that come in, and what they do to streams.
use crate::agent::Agent;
use crate::console::say;
use crate::fault::Fault;
use crate::stream::{Kind, Stream};
use crate::timers::Timer;
use crate::wire::decoder::Step;
use crate::wire::frame::{FrameError, FrameType, Header, MAGIC, OPEN_BYTES_MAX, STREAMS_MAX};
use rustix::io::Errno;
use std::time::Duration;

/// Reads of the link before others get their turn.
const READS_PER_TURN: usize = 32;
const PONGS_MAX: usize = 1_024;

impl Agent {
    pub fn open_link(&mut self) {
        if self.link.is_open() || self.shutdown.is_over() {
            return;
        }
        match self.link.open() {
            Ok(()) => {
                self.decoder.clear();
                let watched = self.watch_link();
                if let Err(fault) = watched {
                    // A plain file as stdin cannot be watched: nobody is there.
                    say(&fault.message);
                    self.link.close();
                    self.begin_shutdown(rustix::process::Signal::TERM, Duration::from_secs(1));
                    return;
                }
                self.receive();
            }
            Err(_) => {
                let delay = self.link.next_retry();
                self.timers.after(delay, Timer::Reconnect);
            }
        }
    }

    /// Takes what has come, up to a bound; more of it gets the next turn.
    pub fn receive(&mut self) {
        // The decoder's bytes are used while the rest of the agent changes.
        let mut decoder = std::mem::take(&mut self.decoder);
        let mut hung_up = false;
        let mut greeted = false;
        for turn in 0.. {
            if turn == READS_PER_TURN {
                self.notes.post(|agent| agent.receive());
                break;
            }
            let space = decoder.space();
            let room = space.len();
            let is_all = match self.link.read(space) {
                Ok(0) => {
                    hung_up = true;
                    break;
                }
                Ok(count) => {
                    decoder.filled(count);
                    count < room && self.link.is_told_again()
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => continue,
                Err(_) => {
                    hung_up = true;
                    break;
                }
            };
            loop {
                let connection = self.connection;
                match decoder.step() {
                    Step::NeedMore => break,
                    Step::Preamble { nonce } => {
                        self.connected(nonce);
                        greeted = true;
                    }
                    Step::OtherVersion { nonce, version } => {
                        say(&format!("the host speaks version {version} of the protocol"));
                        self.output.reset([0; 4]);
                        self.output.raw(&[MAGIC, nonce].concat());
                    }
                    Step::Broken(error) => self.disconnect(&error.to_string()),
                    Step::Frame { header, payload } => {
                        if let Err(error) = self.frame(header, payload) {
                            self.disconnect(&error.to_string());
                            decoder.disconnect();
                        }
                    }
                }
                debug_assert!(self.connection >= connection);
            }
            if is_all {
                break;
            }
        }
        self.decoder = decoder;
        // A port reads as closed until the guest's kernel has heard that the host is there, and the preamble
        // may come before: a host that has just greeted is no host that has gone.
        if hung_up && !(greeted && self.link.survives_hangup()) {
            self.hung_up();
        }
    }

    pub fn hung_up(&mut self) {
        self.disconnect("the host is gone");
        self.decoder.clear();
        if self.link.is_stdio() {
            self.link.close();
            self.begin_shutdown(rustix::process::Signal::TERM, Duration::from_secs(5));
        } else if !self.link.survives_hangup() {
            self.link.close();
            let delay = self.link.next_retry();
            self.timers.after(delay, Timer::Reconnect);
        }
    }

    /// A new connection: the old one's streams are forgotten, processes go on.
    fn connected(&mut self, nonce: [u8; 8]) {
        self.forget_streams();
        let [m0, m1, m2, m3, ..] = nonce;
        self.output.reset([m0, m1, m2, m3]);
        self.output.raw(&[MAGIC, nonce].concat());
    }

    /// Ends the connection. The link stays as it is: the next preamble comes over it.
    pub fn disconnect(&mut self, why: &str) {
        if !self.streams.is_empty() {
            say(&format!("connection over: {why}"));
        }
        self.decoder.disconnect();
        self.forget_streams();
        self.output.reset([0; 4]);
    }

    fn forget_streams(&mut self) {
        self.connection += 1;
        self.turns.clear();
        self.pongs.clear();
        self.opening = None;
        self.lose_followers();
        // Dropping a stream gives up its job, its socket, its files.
        self.streams.clear();
    }

    fn frame(&mut self, header: Header, payload: &[u8]) -> Result<(), FrameError> {
        let number = header.stream;
        match header.kind {
            FrameType::Open => return self.opened(number, payload),
            FrameType::Part => return self.part(number, payload),
            FrameType::Ping => {
                if self.pongs.len() >= PONGS_MAX {
                    return Err(FrameError::TooManyPings);
                }
                self.pongs.extend(payload.first_chunk::<8>());
            }
            FrameType::Data => return self.data(number, payload),
            FrameType::Credit => {
                let bytes = payload.first_chunk::<4>().map_or(0, |bytes| u32::from_le_bytes(*bytes));
                if let Some(stream) = self.streams.get_mut(&number) {
                    stream.credit = stream.credit.saturating_add(u64::from(bytes));
                    if let Kind::Process { process } = stream.kind {
                        self.output_taken(process, number, bytes);
                    }
                    self.ready(number);
                }
            }
            FrameType::End => self.ended(number),
            FrameType::Cancel => self.cancelled(number),
            _ => {}
        }
        Ok(())
    }

    /// The beginning of a call that is too large for one frame. One such call at a time.
    fn part(&mut self, number: u32, payload: &[u8]) -> Result<(), FrameError> {
        let (of, parts) = self.opening.get_or_insert_with(|| (number, Vec::new()));
        if *of != number {
            return Err(FrameError::StrayPart(number));
        }
        if parts.len() + payload.len() > OPEN_BYTES_MAX {
            return Err(FrameError::CallTooLong(number));
        }
        parts.extend_from_slice(payload);
        Ok(())
    }

    fn opened(&mut self, number: u32, payload: &[u8]) -> Result<(), FrameError> {
        if self.opening.is_some() {
            self.part(number, payload)?;
        }
        let whole = self.opening.take().map(|(_, parts)| parts);
        let payload = whole.as_deref().unwrap_or(payload);
        if self.streams.contains_key(&number) {
            return Err(FrameError::StreamInUse(number));
        }
        if self.streams.len() >= STREAMS_MAX {
            return Err(FrameError::TooManyStreams);
        }
        self.streams.insert(number, Stream::new(Kind::Pending));
        let ticket = crate::jobs::Ticket { connection: self.connection, stream: number };
        if let Err(fault) = self.dispatch(ticket, payload) {
            self.finish(ticket, &Err(fault));
        }
        Ok(())
    }

    fn data(&mut self, number: u32, payload: &[u8]) -> Result<(), FrameError> {
        let Some(stream) = self.streams.get_mut(&number) else { return Ok(()) };
        let length = payload.len() as u32;
        stream.window = stream.window.checked_sub(length).ok_or(FrameError::BeyondCredit(number))?;
        if stream.is_finishing() {
            return Ok(());
        }
        let taken = match &mut stream.kind {
            Kind::Process { process } => {
                let key = *process;
                let taken = self.processes.get_mut(key).map_or(payload.len(), |process| process.feed(number, payload));
                self.watch_input(key);
                taken
            }
            Kind::Write(writer) => match writer.write(payload) {
                Ok(()) => payload.len(),
                Err(fault) => {
                    self.finish_stream(number, &Err(fault));
                    0
                }
            },
            Kind::Job(job) => {
                job.push(payload);
                0
            }
            Kind::Tunnel(tunnel) => {
                let taken = tunnel.feed(payload);
                self.watch_tunnel(number);
                taken
            }
            // A host that is quick sends input before it has the reply.
            Kind::Pending => {
                stream.early.extend_from_slice(payload);
                0
            }
            _ => payload.len(),
        };
        self.taken_of(number, taken);
        Ok(())
    }

    fn taken_of(&mut self, number: u32, bytes: usize) {
        if let Some(stream) = self.streams.get_mut(&number) {
            stream.take(bytes);
            if stream.has_grant() || stream.is_finishing() {
                self.ready(number);
            }
        }
    }

    /// Bytes that a program or a socket took from what had waited.
    pub fn input_taken(&mut self, number: u32, bytes: usize) {
        self.taken_of(number, bytes);
    }

    fn ended(&mut self, number: u32) {
        let Some(stream) = self.streams.get_mut(&number) else { return };
        match &mut stream.kind {
            Kind::Process { process } => {
                let key = *process;
                if let Some(process) = self.processes.get_mut(key) {
                    process.end_input(number);
                }
                self.watch_input(key);
            }
            Kind::Write(_) => self.end_write(number),
            Kind::Job(job) => job.end(),
            Kind::Tunnel(tunnel) => {
                tunnel.end();
                self.ready(number);
            }
            Kind::Pending => stream.early_end = true,
            _ => {}
        }
    }

    /// What came before the stream had its kind.
    pub fn deliver_early(&mut self, number: u32) {
        let Some(stream) = self.streams.get_mut(&number) else { return };
        let early = std::mem::take(&mut stream.early);
        let ended = std::mem::take(&mut stream.early_end);
        if !early.is_empty() {
            stream.window = stream.window.saturating_add(early.len() as u32);
            // It was within the credit when it came.
            let _ = self.data(number, &early);
        }
        if ended {
            self.ended(number);
        }
    }

    fn cancelled(&mut self, number: u32) {
        let Some(stream) = self.streams.get_mut(&number) else { return };
        stream.abandoned = true;
        stream.finish(&Err(Fault::cancelled("the stream was given up")));
        // What it holds is released now, not when the last frame goes out.
        let kind = std::mem::replace(&mut stream.kind, Kind::Pending);
        self.release(number, kind);
        self.ready(number);
    }

    /// Lets go of what a stream held.
    pub fn release(&mut self, number: u32, kind: Kind) {
        match kind {
            Kind::Process { process } | Kind::Wait { process } => self.leave_process(process, number),
            _ => {}
        }
        if self.streams.is_empty() {
            self.output.shrink();
        }
    }
}
