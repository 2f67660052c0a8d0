//! What the connection sends: streams take turns, one frame of data each, as far as the link takes them.
use crate::agent::Agent;
use crate::fault::Fault;
use crate::jobs::Pulled;
use crate::output::{Body, DATA_BYTES_MAX, Output, Source};
use crate::process::logs::LogTurn;
use crate::shutdown::Ending;
use crate::stream::{Kind, Stream, encode_event};
use crate::timers::Timer;
use crate::wire::frame::FrameType;
use rustix::io::Errno;
use std::os::fd::AsFd;

const WRITES_PER_TURN: usize = 32;

impl Agent {
    pub fn has_output(&self) -> bool {
        !self.output.is_empty() || !self.turns.is_empty() || !self.pongs.is_empty()
    }

    /// Makes frames and writes them, as far as the link takes them or a turn goes.
    pub fn flush(&mut self) {
        for _ in 0..WRITES_PER_TURN {
            // Only then: what is made waits for nothing but its own write.
            if self.output.wants_more() {
                self.make_frames();
            }
            if self.output.is_empty() {
                self.check_ending();
                return;
            }
            if !self.link.writable {
                return;
            }
            match self.write_some() {
                Ok(()) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.await_link();
                    return;
                }
                Err(_) => {
                    self.hung_up();
                    return;
                }
            }
        }
    }

    fn write_some(&mut self) -> Result<(), Errno> {
        if !self.output.waiting().is_empty() {
            let count = self.link.write(self.output.waiting())?;
            self.output.advance(count);
            return Ok(());
        }
        let Some(body) = self.output.body() else { return Ok(()) };
        let Body { stream, left, .. } = body;
        match self.body_bytes(body) {
            Some(bytes) if !bytes.is_empty() => {
                let count = self.link.write(bytes)?;
                self.output.advance_body(count);
            }
            // The process was forgotten while its reader stood still.
            _ if self.streams.get(&stream).is_some_and(|stream| !stream.abandoned) => self.disconnect("output was forgotten"),
            // Overwritten, because its reader has given it up: nobody looks at the rest of the frame.
            _ => {
                let zeros = [0; 4_096];
                let count = self.link.write(zeros.get(..left.min(zeros.len())).unwrap_or_default())?;
                self.output.advance_body(count);
            }
        }
        Ok(())
    }

    /// What is left of a body, as far as it lies in one piece; None when it is not there any more.
    fn body_bytes(&self, Body { stream, source, offset, left }: Body) -> Option<&[u8]> {
        match source {
            Source::Ring { process, channel } => {
                let ring = &self.processes.get(process)?.channels.get(channel)?.ring;
                (ring.start() <= offset).then(|| ring.slices(offset, left).0)
            }
            Source::Block => match &self.streams.get(&stream)?.kind {
                Kind::Read(reader) => reader.held_from(offset, left),
                _ => None,
            },
        }
    }

    fn make_frames(&mut self) {
        while let Some(pong) = self.pongs.pop_front() {
            self.output.frame(FrameType::Pong, 0, 0, &[&pong]);
        }
        // Round robin: one frame of data each, so that no stream stands long behind another.
        while !self.output.is_full() {
            let Some(number) = self.turns.pop_front() else { return };
            let Some(mut stream) = self.streams.remove(&number) else { continue };
            stream.queued = false;
            let mut output = std::mem::take(&mut self.output);
            let turn = self.take_turn(number, &mut stream, &mut output);
            self.output = output;
            match turn {
                Turn::Over => {
                    let kind = std::mem::replace(&mut stream.kind, Kind::Pending);
                    self.release(number, kind);
                }
                Turn::Again => {
                    stream.queued = true;
                    self.streams.insert(number, stream);
                    self.turns.push_back(number);
                }
                Turn::Idle => {
                    self.streams.insert(number, stream);
                }
            }
        }
    }

    fn take_turn(&mut self, number: u32, stream: &mut Stream, output: &mut Output) -> Turn {
        while let Some((kind, flag, payload)) = stream.pop_waiting() {
            output.frame(kind, flag, number, &[&payload]);
            if output.is_full() {
                return Turn::Again;
            }
        }
        if let Some(bytes) = stream.pop_grant() {
            output.frame(FrameType::Credit, 0, number, &[&bytes.to_le_bytes()]);
        }
        if !stream.abandoned {
            // A job's thread may have sent already while its reply is still on the way to the loop.
            let more = stream.replied && self.send_data(number, stream, output);
            if more {
                return Turn::Again;
            }
            if !stream.is_drained(self) {
                return Turn::Idle;
            }
        }
        match stream.pop_close() {
            None => Turn::Idle,
            Some((kind, flag, payload)) => {
                output.frame(kind, flag, number, &[&payload]);
                Turn::Over
            }
        }
    }

    /// One frame of data, if there is data and credit. True: there may be more.
    fn send_data(&mut self, number: u32, stream: &mut Stream, output: &mut Output) -> bool {
        // A job's outcome comes while its last data still wait; all others end when they have sent all.
        if stream.is_finishing() && !matches!(stream.kind, Kind::Job(_)) {
            return false;
        }
        let credit = stream.credit;
        let (count, more) = match &mut stream.kind {
            Kind::Process { process } => {
                let key = *process;
                let sent = self.emit_process(key, number, credit, output);
                let process = self.processes.get(key);
                if process.is_none_or(|process| process.is_delivered(number)) {
                    let exit = process.and_then(|process| process.exit.as_ref()).map(crate::process::table::Exit::to_value);
                    stream.finish(&exit.ok_or_else(|| Fault::not_found("the process is forgotten")));
                    return true;
                }
                sent
            }
            Kind::Log(reader) => match self.emit_log(number, reader, credit, output) {
                LogTurn::Sent(count, more) => (count, more),
                LogTurn::Over(outcome) => {
                    stream.finish(&outcome);
                    (0, true)
                }
            },
            Kind::Read(reader) => match reader.emit(number, credit, output) {
                Ok(sent) => sent,
                Err(outcome) => {
                    stream.finish(&outcome);
                    (0, true)
                }
            },
            Kind::Tunnel(tunnel) => match tunnel.emit(number, credit, output) {
                Ok(sent) => {
                    if let Err(fault) = tunnel.watch(self.epoll.as_fd(), number) {
                        stream.finish(&Err(fault));
                    }
                    sent
                }
                Err(outcome) => {
                    stream.finish(&outcome);
                    (0, true)
                }
            },
            Kind::Job(job) => {
                let limit = usize::try_from(credit).unwrap_or(usize::MAX).min(DATA_BYTES_MAX);
                match job.pull(limit) {
                    (Pulled::Nothing, _) => (0, false),
                    (Pulled::Event(name, value), more) => {
                        match encode_event(name, value) {
                            Ok(payload) => output.frame(FrameType::Event, 0, number, &[&payload]),
                            Err(fault) => stream.finish(&Err(fault)),
                        }
                        (0, more)
                    }
                    (Pulled::Data(data), more) => {
                        output.frame(FrameType::Data, 0, number, &[&data]);
                        (data.len(), more)
                    }
                }
            }
            _ => (0, false),
        };
        stream.credit = stream.credit.saturating_sub(count as u64);
        more
    }

    fn check_ending(&mut self) {
        if let Some(ending) = self.shutdown.take_ending() {
            match ending {
                Ending::LetGo { reconnect } => {
                    self.disconnect("a checkpoint is made");
                    self.link.close();
                    self.decoder.clear();
                    self.timers.after(reconnect, Timer::Reconnect);
                }
                Ending::Shutdown { signal, grace } => self.begin_shutdown(signal, grace),
            }
        }
    }
}

enum Turn {
    /// The stream is over.
    Over,
    /// It has more to send.
    Again,
    Idle,
}
