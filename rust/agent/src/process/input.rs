//! Input on its way from the host to the program. Bytes count as accepted when the program's pipe
//! has them; what was received and not written is forgotten with its stream and sent again.
use super::output::is_transient;
use super::table::{InputStream, Process};
use super::typed;
use std::collections::VecDeque;

/// Types end-of-file on a terminal: ^D, unless the program changed it.
const END_OF_TRANSMISSION: u8 = 4;

impl Process {
    /// Makes `stream` the one whose input is taken; returns the stream that was it before.
    pub fn take_input(&mut self, stream: u32) -> Option<u32> {
        let input = InputStream { stream, buffer: VecDeque::new(), ended: false };
        self.input.replace(input).map(|before| before.stream)
    }

    /// Takes DATA of `stream`; returns how many bytes left the hands of the stream.
    pub fn feed(&mut self, stream: u32, bytes: &[u8]) -> usize {
        if self.input.as_ref().is_none_or(|input| input.stream != stream) {
            // Another stream has the input now: what still comes here goes nowhere.
            return bytes.len();
        }
        let direct = if self.input.as_ref().is_some_and(|input| input.buffer.is_empty()) { self.write_input(bytes) } else { 0 };
        if let (Some(input), Some(rest)) = (self.input.as_mut(), bytes.get(direct..)) {
            input.buffer.extend(rest);
        }
        direct
    }

    /// Writes what waits; returns how many bytes that were.
    pub fn flush_input(&mut self) -> usize {
        let mut written = 0;
        while let Some(mut input) = self.input.take() {
            let count = self.write_input(input.buffer.as_slices().0);
            input.buffer.drain(..count);
            written += count;
            let (empty, ended) = (input.buffer.is_empty(), input.ended);
            self.input = Some(input);
            if empty && ended {
                self.close_input();
            }
            if empty || count == 0 {
                break;
            }
        }
        written
    }

    pub fn end_input(&mut self, stream: u32) {
        if let Some(input) = self.input.as_mut().filter(|input| input.stream == stream) {
            input.ended = true;
            self.flush_input();
        }
    }

    pub fn close_input(&mut self) {
        if self.terminal {
            if let Some(fd) = &self.stdin {
                let _ = rustix::io::write(fd, &[END_OF_TRANSMISSION]);
            }
            if let Some(input) = self.input.as_mut() {
                input.ended = false;
            }
        } else {
            self.stdin = None;
            self.stdin_watched = false;
        }
    }

    /// Writes as much as goes now. A program that reads no more takes everything: into nothing.
    fn write_input(&mut self, bytes: &[u8]) -> usize {
        let mut written = 0;
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            let Some(fd) = &self.stdin else {
                // While it is being started there is a pipe already: none means closed.
                written = bytes.len();
                break;
            };
            let mut rest = rest;
            if self.terminal && typed::is_left_to_us() {
                match typed::first_signal(fd, rest) {
                    Some((0, signal)) => {
                        typed::tell(fd, self.pid, signal);
                        written += 1;
                        continue;
                    }
                    Some((at, _)) => rest = rest.get(..at).unwrap_or_default(),
                    None => {}
                }
            }
            match rustix::io::write(fd, rest) {
                Ok(count) => written += count,
                Err(errno) if is_transient(errno) => break,
                Err(_) => {
                    self.stdin = None;
                    self.stdin_watched = false;
                }
            }
        }
        self.input_offset += written as u64;
        written
    }
}
