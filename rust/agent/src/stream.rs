//! One stream of the connection: credit of both directions, frames that wait, and what it is about.
use crate::agent::Agent;
use crate::connect::Tunnel;
use crate::fault::{Fault, Outcome};
use crate::files::stream::{FileReader, FileWriter};
use crate::jobs::JobStream;
use crate::listen::Listener;
use crate::process::log::LogReader;
use crate::wire::frame::{CREDIT_START_BYTES, FRAME_BYTES_MAX, FrameType, OUTPUT_CREDIT_START_BYTES};
use crate::wire::value::Value;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;

/// More events than this, and the stream ends with `resource_exhausted`.
const EVENTS_MAX: usize = 4_096;
/// Credit goes back in pieces of at least this size.
pub const GRANT_BYTES: u32 = 65_536;

pub enum Kind {
    /// Waits for a reply that something else will give: a job, a start.
    Pending,
    Process {
        process: u64,
    },
    Wait {
        process: u64,
    },
    Log(LogReader),
    Read(Box<FileReader>),
    /// The host reads the file itself, and says when it has it.
    Lent(OwnedFd),
    Write(Box<FileWriter>),
    Job(JobStream),
    Tunnel(Box<Tunnel>),
    Listener(Listener),
    /// `watchEvents`
    Events,
}

pub struct Stream {
    pub kind: Kind,
    /// Bytes that may still be sent to the host.
    pub credit: u64,
    /// Bytes that the host may still send.
    pub window: u32,
    /// Bytes that were taken and not granted again yet.
    taken: u32,
    /// Granted with them, once.
    extra: u32,
    pub replied: bool,
    /// In the ring of those that have something to send.
    pub queued: bool,
    waiting: VecDeque<(FrameType, u8, Vec<u8>)>,
    /// The last frame. It waits until the data before it is out.
    close: Option<(FrameType, u8, Vec<u8>)>,
    /// No more data is to be sent: the close goes out at once.
    pub abandoned: bool,
    /// Data (within the credit) and END that came before the stream had its kind.
    pub early: Vec<u8>,
    pub early_end: bool,
}

fn too_large(bytes: usize) -> Fault {
    Fault::resource_exhausted(format!("the answer has {bytes} bytes; a frame holds {FRAME_BYTES_MAX}"))
}

/// The payload of an EVENT: the fields of `value`, and the name.
pub fn encode_event(name: &str, value: Value) -> Result<Vec<u8>, Fault> {
    let mut entries = vec![("e".to_owned(), Value::from(name))];
    if let Value::Map(fields) = value {
        entries.extend(fields);
    }
    let bytes = Value::Map(entries).encode();
    if bytes.len() > FRAME_BYTES_MAX { Err(too_large(bytes.len())) } else { Ok(bytes) }
}

impl Stream {
    pub fn new(kind: Kind) -> Stream {
        Stream {
            kind,
            credit: u64::from(OUTPUT_CREDIT_START_BYTES),
            window: CREDIT_START_BYTES,
            taken: 0,
            extra: 0,
            replied: false,
            queued: false,
            waiting: VecDeque::new(),
            close: None,
            abandoned: false,
            early: Vec::new(),
            early_end: false,
        }
    }

    /// The one REPLY of a streaming method.
    pub fn reply(&mut self, value: &Value) {
        if self.replied || self.close.is_some() {
            return;
        }
        let bytes = value.encode();
        if bytes.len() > FRAME_BYTES_MAX {
            self.finish(&Err(too_large(bytes.len())));
            return;
        }
        self.replied = true;
        self.waiting.push_back((FrameType::Reply, 0, bytes));
    }

    /// Ends the stream: with its REPLY, or with CLOSE where that is out.
    pub fn finish(&mut self, outcome: &Outcome) {
        if self.close.is_some() {
            return;
        }
        let kind = if self.replied { FrameType::Close } else { FrameType::Reply };
        let answer = outcome.as_ref().map(Value::encode);
        self.close = Some(match answer {
            Ok(bytes) if bytes.len() <= FRAME_BYTES_MAX => (kind, 0, bytes),
            Ok(bytes) => (kind, 1, too_large(bytes.len()).to_value().encode()),
            Err(fault) => (kind, 1, fault.to_value().encode()),
        });
        self.abandoned |= outcome.is_err();
    }

    pub fn is_finishing(&self) -> bool {
        self.close.is_some()
    }

    pub fn event(&mut self, name: &str, value: Value) {
        if self.close.is_some() {
            return;
        }
        if self.waiting.len() >= EVENTS_MAX {
            self.finish(&Err(Fault::resource_exhausted(format!("more than {EVENTS_MAX} events wait for the reader"))));
            return;
        }
        match encode_event(name, value) {
            Ok(bytes) => self.waiting.push_back((FrameType::Event, 0, bytes)),
            Err(fault) => self.finish(&Err(fault)),
        }
    }

    /// Nothing of its data is left that must go out before the close.
    pub fn is_drained(&self, agent: &Agent) -> bool {
        match &self.kind {
            Kind::Job(job) => job.is_drained(),
            Kind::Process { process } => agent.processes.get(*process).is_none_or(|process| process.exit.is_some()),
            _ => true,
        }
    }

    pub fn pop_waiting(&mut self) -> Option<(FrameType, u8, Vec<u8>)> {
        self.waiting.pop_front()
    }

    pub fn pop_close(&mut self) -> Option<(FrameType, u8, Vec<u8>)> {
        self.close.take()
    }

    /// Lets the host send `bytes` more than a new stream may, once it sends much: for what is taken as fast as it comes.
    pub fn widen(&mut self, bytes: u32) {
        self.extra = bytes;
    }

    /// The reader took `bytes` of what the host sent.
    pub fn take(&mut self, bytes: usize) {
        self.taken = self.taken.saturating_add(bytes as u32);
    }

    pub fn has_grant(&self) -> bool {
        self.taken >= GRANT_BYTES
    }

    /// Credit to be given back, if it is worth a frame.
    pub fn pop_grant(&mut self) -> Option<u32> {
        if self.taken < GRANT_BYTES || self.close.is_some() {
            return None;
        }
        let bytes = std::mem::take(&mut self.taken).saturating_add(std::mem::take(&mut self.extra));
        self.window = self.window.saturating_add(bytes);
        Some(bytes)
    }
}
