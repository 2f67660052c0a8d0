//! Work that may block (starting programs, files, archives) runs on a few threads; the loop never
//! waits for them. A job speaks to the loop by notes (closures that the loop runs) and, where it
//! streams, through a pipe of bounded size.
use crate::agent::Agent;
use crate::fault::{Fault, Outcome};
use crate::wire::value::Value;
use rustix::event::{EventfdFlags, eventfd};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// A hung file system may hold as many threads; what comes then is refused.
const THREADS_MAX: usize = 64;
const STACK_BYTES: usize = 256 * 1024;
const IDLE: Duration = Duration::from_secs(10);
/// What a streaming job may be ahead of the connection, in bytes.
const PIPE_BYTES_MAX: usize = 256 * 1024;
const PIPE_ITEMS_MAX: usize = 64;

pub type Note = Box<dyn FnOnce(&mut Agent) + Send>;

/// Poisoning cannot happen to matter: every job is caught, and the data stays whole.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Names a stream also when its connection is over: late results are dropped then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    pub connection: u64,
    pub stream: u32,
}

pub struct Notes {
    queue: Mutex<Vec<Note>>,
    wake: OwnedFd,
}

impl Notes {
    pub fn new() -> rustix::io::Result<Arc<Notes>> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Notes { queue: Mutex::new(Vec::new()), wake }))
    }

    pub fn post(&self, note: impl FnOnce(&mut Agent) + Send + 'static) {
        let mut queue = lock(&self.queue);
        queue.push(Box::new(note));
        if queue.len() == 1 {
            drop(queue);
            // Full means awake already.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }

    pub fn take(&self) -> Vec<Note> {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.wake, &mut count);
        std::mem::take(&mut *lock(&self.queue))
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct PoolState {
    queue: VecDeque<Job>,
    idle: usize,
    threads: usize,
}

#[derive(Clone, Default)]
pub struct Pool(Arc<(Mutex<PoolState>, Condvar)>);

impl Pool {
    /// Runs `job` on an idle thread or a new one.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) -> Result<(), Fault> {
        let (state, wake) = &*self.0;
        let mut pool = lock(state);
        if pool.idle > pool.queue.len() {
            pool.queue.push_back(Box::new(job));
            wake.notify_one();
            return Ok(());
        }
        if pool.threads >= THREADS_MAX {
            return Err(Fault::resource_exhausted(format!("{THREADS_MAX} operations are under way in the sandbox")));
        }
        let shared = self.clone();
        pool.queue.push_back(Box::new(job));
        let started = thread::Builder::new().stack_size(STACK_BYTES).spawn(move || shared.work());
        if started.is_err() {
            pool.queue.pop_back();
            return Err(Fault::resource_exhausted("no thread can be started in the sandbox"));
        }
        pool.threads += 1;
        Ok(())
    }

    fn work(&self) {
        // The loop's way is inherited; programs are started from here and must not have it.
        hutch_sys::set_scheduling(hutch_sys::Scheduling::Usual);
        let (state, wake) = &*self.0;
        let mut pool = lock(state);
        loop {
            while let Some(job) = pool.queue.pop_front() {
                drop(pool);
                if catch_unwind(AssertUnwindSafe(job)).is_err() {
                    crate::console::say("a job failed unexpectedly");
                }
                pool = lock(state);
            }
            pool.idle += 1;
            let (next, waited) = wake.wait_timeout(pool, IDLE).unwrap_or_else(PoisonError::into_inner);
            pool = next;
            pool.idle -= 1;
            // One thread stays, so that a start after a pause (or a restore) need not make one.
            if waited.timed_out() && pool.queue.is_empty() && pool.threads > 1 {
                pool.threads -= 1;
                return;
            }
        }
    }
}

/// What a streaming job sends: content, or an encoded event.
enum Item {
    Data(Vec<u8>),
    Event(&'static str, Value),
}

#[derive(Default)]
struct Pipe {
    to_host: VecDeque<Item>,
    to_host_bytes: usize,
    from_host: VecDeque<Vec<u8>>,
    from_host_ended: bool,
    cancelled: bool,
    /// Written to at cancellation, for a job that waits in poll.
    alarm: Option<OwnedFd>,
}

/// The loop's end of a streaming job. Dropping it cancels the job.
pub struct JobStream(Arc<(Mutex<Pipe>, Condvar)>);

pub enum Pulled {
    Nothing,
    Data(Vec<u8>),
    Event(&'static str, Value),
}

impl JobStream {
    pub fn push(&self, bytes: &[u8]) {
        let (pipe, wake) = &*self.0;
        lock(pipe).from_host.push_back(bytes.to_vec());
        wake.notify_all();
    }

    pub fn end(&self) {
        let (pipe, wake) = &*self.0;
        lock(pipe).from_host_ended = true;
        wake.notify_all();
    }

    /// At most `credit` bytes, or the next event. The second value: there is more.
    pub fn pull(&self, credit: usize) -> (Pulled, bool) {
        let (pipe, wake) = &*self.0;
        let mut pipe = lock(pipe);
        let pulled = match pipe.to_host.pop_front() {
            None => Pulled::Nothing,
            Some(Item::Event(name, value)) => Pulled::Event(name, value),
            Some(Item::Data(data)) if credit == 0 => {
                pipe.to_host.push_front(Item::Data(data));
                return (Pulled::Nothing, false);
            }
            Some(Item::Data(mut data)) => {
                if data.len() > credit {
                    pipe.to_host.push_front(Item::Data(data.split_off(credit)));
                }
                pipe.to_host_bytes -= data.len();
                Pulled::Data(data)
            }
        };
        wake.notify_all();
        let more = !pipe.to_host.is_empty();
        (pulled, more)
    }

    pub fn is_drained(&self) -> bool {
        lock(&self.0.0).to_host.is_empty()
    }
}

impl Drop for JobStream {
    fn drop(&mut self) {
        let (pipe, wake) = &*self.0;
        let mut pipe = lock(pipe);
        pipe.cancelled = true;
        if let Some(alarm) = &pipe.alarm {
            let _ = rustix::io::write(alarm, &1u64.to_ne_bytes());
        }
        wake.notify_all();
    }
}

/// The job's end.
pub struct JobPort {
    pipe: Arc<(Mutex<Pipe>, Condvar)>,
    notes: Arc<Notes>,
    ticket: Ticket,
}

/// The stream is gone: nobody wants the rest.
#[derive(Debug)]
pub struct Cancelled;

impl From<Cancelled> for Fault {
    fn from(_: Cancelled) -> Fault {
        Fault::cancelled("the stream was given up")
    }
}

impl JobPort {
    pub fn new(notes: Arc<Notes>, ticket: Ticket) -> (JobStream, JobPort) {
        let pipe = Arc::<(Mutex<Pipe>, Condvar)>::default();
        (JobStream(pipe.clone()), JobPort { pipe, notes, ticket })
    }

    fn push(&self, item: Item, bytes: usize) -> Result<(), Cancelled> {
        let (pipe, wake) = &*self.pipe;
        let mut pipe = lock(pipe);
        while !pipe.cancelled && (pipe.to_host_bytes >= PIPE_BYTES_MAX || pipe.to_host.len() >= PIPE_ITEMS_MAX) {
            pipe = wake.wait(pipe).unwrap_or_else(PoisonError::into_inner);
        }
        if pipe.cancelled {
            return Err(Cancelled);
        }
        pipe.to_host_bytes += bytes;
        pipe.to_host.push_back(item);
        if pipe.to_host.len() == 1 {
            let ticket = self.ticket;
            self.notes.post(move |agent| agent.touch(ticket));
        }
        Ok(())
    }

    pub fn send(&self, data: Vec<u8>) -> Result<(), Cancelled> {
        if data.is_empty() {
            return Ok(());
        }
        let bytes = data.len();
        self.push(Item::Data(data), bytes)
    }

    pub fn event(&self, name: &'static str, value: Value) -> Result<(), Cancelled> {
        self.push(Item::Event(name, value), 0)
    }

    /// The next bytes from the host; None after its END.
    pub fn receive(&self) -> Result<Option<Vec<u8>>, Cancelled> {
        let (pipe, wake) = &*self.pipe;
        let mut pipe = lock(pipe);
        loop {
            if pipe.cancelled {
                return Err(Cancelled);
            }
            if let Some(data) = pipe.from_host.pop_front() {
                let (ticket, bytes) = (self.ticket, data.len());
                self.notes.post(move |agent| agent.taken(ticket, bytes));
                return Ok(Some(data));
            }
            if pipe.from_host_ended {
                return Ok(None);
            }
            pipe = wake.wait(pipe).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A descriptor that becomes readable when the stream is given up.
    pub fn alarm(&self) -> rustix::io::Result<OwnedFd> {
        let alarm = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let mut pipe = lock(&self.pipe.0);
        if pipe.cancelled {
            rustix::io::write(&alarm, &1u64.to_ne_bytes())?;
        }
        pipe.alarm = Some(rustix::io::fcntl_dupfd_cloexec(&alarm, 3)?);
        Ok(alarm)
    }

    /// Waits, but hears when the stream is given up.
    pub fn sleep(&self, time: Duration) -> Result<(), Cancelled> {
        let (pipe, wake) = &*self.pipe;
        let deadline = std::time::Instant::now() + time;
        let mut pipe = lock(pipe);
        loop {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            if pipe.cancelled {
                return Err(Cancelled);
            }
            if left.is_zero() {
                return Ok(());
            }
            pipe = wake.wait_timeout(pipe, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub fn is_cancelled(&self) -> bool {
        lock(&self.pipe.0).cancelled
    }

    pub fn reply(&self, value: Value) {
        let ticket = self.ticket;
        self.notes.post(move |agent| agent.reply(ticket, &value));
    }

    pub fn finish(self, outcome: Outcome) {
        let ticket = self.ticket;
        self.notes.post(move |agent| agent.finish(ticket, &outcome));
    }
}
