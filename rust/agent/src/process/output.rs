//! Output on its way from the pipe into the ring, and from the ring into frames.
use super::ring::RING_BYTES_MAX;
use super::table::{Channel, Process, WhenUnread};
use crate::clock::wall_ms;
use crate::output::{BODY_BYTES_MAX, Body, DATA_BYTES_MAX, Output, Source};
use crate::wire::frame::FrameType;
use crate::wire::value::Value;
use rustix::io::Errno;
use rustix::pipe::fcntl_setpipe_size;
use std::time::Instant;

/// Reads of one channel before others get their turn.
const READS_PER_TURN: usize = 2;
const LARGE_READ: usize = 16 * 1024;
const PIPE_BYTES: usize = 256 * 1024;
const LARGE_PIPE_BYTES: usize = 1024 * 1024;
/// A file of the log is larger than asked for by one record at most.
const LOG_RECORD_BYTES: usize = 64 * 1024;
/// Less is copied beside its header: one write instead of two.
const BODY_BYTES_MIN: usize = 16 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Subscribers have something new to get, or the channel has ended.
    pub news: bool,
    /// There is more to read, and room for it.
    pub again: bool,
}

impl Process {
    /// Reads what is there, as far as the readers allow.
    pub fn read_output(&mut self, index: usize) -> Progress {
        let mut progress = Progress { news: false, again: false };
        for _ in 0..READS_PER_TURN {
            let slowest = self.slowest(index);
            // Whoever waits for the start gets the first byte, whether they keep up then or not.
            let blocking = self.when_unread == WhenUnread::Block || self.pid.is_none();
            let terminal = self.terminal;
            let Some(channel) = self.channels.get_mut(index) else { return progress };
            let Some(fd) = channel.fd.as_ref().filter(|_| channel.readable) else { return progress };
            let keep_from = slowest.filter(|_| blocking && !channel.closed);
            let room = channel.ring.room(keep_from);
            if room == 0 {
                return progress;
            }
            let mut asked = 0;
            let before = channel.ring.end();
            let mut scratch = [0; 4096];
            let result = if channel.closed {
                asked = scratch.len();
                rustix::io::read(fd, &mut scratch).map_err(std::io::Error::from)
            } else {
                channel.ring.fill(room, keep_from, |places| {
                    asked = places.iter().map(|place| place.len()).sum();
                    Ok(rustix::io::readv(fd, places)?)
                })
            };
            match result {
                Ok(count) if count > 0 => {
                    // A pipe that gave less is empty, and the next byte brings an event. Terminals give what they like.
                    channel.readable = terminal || count == asked;
                    if count >= LARGE_READ && !channel.enlarged && !terminal {
                        // A program that writes much: fewer changes between it and us.
                        channel.enlarged = true;
                        let bytes = if channel.ring.enlarge() { LARGE_PIPE_BYTES } else { PIPE_BYTES };
                        let _ = fcntl_setpipe_size(fd, bytes);
                    }
                    self.last_output = Instant::now();
                    if let Some(log) = self.log.as_mut() {
                        let number = index as u8 + 1;
                        if channel.closed {
                            log.append(number, wall_ms(), &[scratch.get(..count).unwrap_or_default()]);
                        } else {
                            for at in (0..count).step_by(LOG_RECORD_BYTES) {
                                let (first, second) = channel.ring.slices(before + at as u64, LOG_RECORD_BYTES);
                                log.append(number, wall_ms(), &[first, second]);
                            }
                        }
                    }
                    progress.news |= !channel.closed;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    channel.readable = false;
                    return progress;
                }
                // End-of-file; a terminal whose other side is closed says EIO.
                Ok(_) | Err(_) => {
                    channel.end();
                    progress.news = true;
                    return progress;
                }
            }
        }
        progress.again = self.channels.get(index).is_some_and(|channel| channel.readable);
        progress
    }

    /// One frame for the subscriber with stream number `stream`. Returns the bytes sent and whether
    /// there may be more to send now.
    pub fn emit(&mut self, key: u64, stream: u32, credit: u64, output: &mut Output) -> (usize, bool) {
        let Some(subscriber) = self.subscribers.iter_mut().find(|s| s.stream == stream && s.lost_until.is_none()) else {
            return (0, false);
        };
        for (index, channel) in self.channels.iter().enumerate() {
            let (Some(position), Some(ended)) = (subscriber.position.get_mut(index), subscriber.ended.get_mut(index)) else {
                continue;
            };
            let number = index as u8 + 1;
            let (start, end) = (channel.ring.start(), channel.ring.end());
            if *position < start {
                let lost = Value::map([
                    ("e", "dropped".into()),
                    ("channel", number.into()),
                    ("fromOffset", (*position).into()),
                    ("bytes", (start - *position).into()),
                ]);
                output.frame(FrameType::Event, 0, stream, &[&lost.encode()]);
                *position = start;
                return (0, true);
            }
            if *position < end {
                // What this subscriber has not taken stays in the ring, so it can be written from there.
                let stays = self.when_unread == WhenUnread::Block;
                let most = if stays { BODY_BYTES_MAX } else { DATA_BYTES_MAX };
                let limit = most.min(usize::try_from(credit).unwrap_or(usize::MAX));
                if limit == 0 {
                    continue;
                }
                let (first, second) = channel.ring.slices(*position, limit);
                let count = first.len() + second.len();
                if stays && count >= BODY_BYTES_MIN {
                    output.data_of(
                        number,
                        Body { stream, source: Source::Ring { process: key, channel: index }, offset: *position, left: count },
                    );
                } else {
                    output.frame(FrameType::Data, number, stream, &[first, second]);
                }
                *position += count as u64;
                subscriber.sent += count as u64;
                return (count, true);
            }
            if channel.closed && !*ended {
                *ended = true;
                output.frame(FrameType::End, number, stream, &[]);
                return (0, true);
            }
        }
        (0, false)
    }

    /// Whether this subscriber has got everything that will ever come.
    pub fn is_delivered(&self, stream: u32) -> bool {
        self.exit.is_some()
            && self
                .subscribers
                .iter()
                .find(|s| s.stream == stream && s.lost_until.is_none())
                .is_none_or(|s| s.ended == [true, true])
    }

    /// It has ended, nobody follows it, and more is held than is kept in any case.
    pub fn is_untidy(&self) -> bool {
        let large = self.channels.iter().any(|channel| channel.ring.memory() > RING_BYTES_MAX);
        large && self.exit.is_some() && self.subscribers.is_empty()
    }

    /// Gives back what was held for readers.
    pub fn tidy(&mut self) {
        if self.is_untidy() {
            self.channels.iter_mut().for_each(|channel| channel.ring.settle());
        }
    }

    pub fn output_complete(&self) -> bool {
        self.channels.iter().all(|channel| channel.closed)
    }
}

impl Channel {
    /// No more output: the descriptor is at its end.
    pub fn end(&mut self) {
        self.closed = true;
        self.readable = false;
        self.fd = None;
    }
}

/// A read that found nothing is no failure of the descriptor.
pub fn is_transient(errno: Errno) -> bool {
    matches!(errno, Errno::AGAIN | Errno::INTR)
}
