//! Output on its way from the pipe into the ring, and from the ring into frames.
use super::table::{Channel, Process, WhenUnread};
use crate::clock::wall_ms;
use crate::output::{DATA_BYTES_MAX, Output};
use crate::wire::frame::FrameType;
use crate::wire::value::Value;
use rustix::io::Errno;
use rustix::pipe::fcntl_setpipe_size;
use std::time::Instant;

/// Reads of one channel before others get their turn.
const READS_PER_TURN: usize = 8;
const LARGE_READ: usize = 16 * 1024;
const PIPE_BYTES: usize = 256 * 1024;

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
            let blocking = self.when_unread == WhenUnread::Block;
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
                channel.ring.fill(room, keep_from, |place| {
                    asked = place.len();
                    Ok(rustix::io::read(fd, place)?)
                })
            };
            match result {
                Ok(count) if count > 0 => {
                    // A pipe that gave less is empty, and the next byte brings an event. Terminals give what they like.
                    channel.readable = terminal || count == asked;
                    if count >= LARGE_READ && !channel.enlarged && !terminal {
                        // A program that writes much: fewer changes between it and us.
                        channel.enlarged = true;
                        let _ = fcntl_setpipe_size(fd, PIPE_BYTES);
                    }
                    self.last_output = Instant::now();
                    if let Some(log) = self.log.as_mut() {
                        let (first, second) = match channel.closed {
                            true => (scratch.get(..count).unwrap_or_default(), [].as_slice()),
                            false => channel.ring.slices(before, count),
                        };
                        log.append(index as u8 + 1, wall_ms(), &[first, second]);
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
    pub fn emit(&mut self, stream: u32, credit: u64, output: &mut Output) -> (usize, bool) {
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
                let limit = DATA_BYTES_MAX.min(usize::try_from(credit).unwrap_or(usize::MAX));
                if limit == 0 {
                    continue;
                }
                let (first, second) = channel.ring.slices(*position, limit);
                let count = first.len() + second.len();
                output.frame(FrameType::Data, number, stream, &[first, second]);
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
