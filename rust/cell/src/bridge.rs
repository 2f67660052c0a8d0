//! Carries frames between the network device and passt, which takes each with its length before it. It
//! looks at nothing but lengths and what refuses a connection, and runs as the sandbox's own user, without any right.
use crate::options::Net;
use crate::sys;
use hutch_sys::acknowledge_reset_in;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::thread;

const LENGTH_BYTES: usize = 4;
/// The largest packet and its Ethernet header.
const FRAME_BYTES_MAX: usize = 65_535;
/// What is read from the stream at once.
const READ_BYTES: usize = 4 * (LENGTH_BYTES + FRAME_BYTES_MAX);

/// This process from here on; it ends with `parent`, or with either of its ends.
pub fn run(tap: &File, stream: &File, net: &Net, parent: u32) -> ! {
    let dropped = sys::set_ids(net.uid, net.gid).and_then(|()| sys::die_with(parent));
    if let Err(error) = dropped {
        eprintln!("hutch-cell: the bridge cannot change its user: {error}");
        sys::exit_now(1)
    }
    let error = carry(tap, stream).err();
    // Either end may close first: that is the end of the sandbox.
    if let Some(error) = error.filter(|error| !matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe)) {
        eprintln!("hutch-cell: the bridge to the network ended: {error}");
    }
    sys::exit_now(0)
}

/// Until one of them fails or ends.
fn carry(tap: &File, stream: &File) -> io::Result<()> {
    thread::scope(|scope| {
        // The process ends with whichever comes first.
        scope.spawn(|| {
            drop(outward(tap, stream));
            sys::exit_now(0)
        });
        inward(stream, tap)
    })
}

fn outward(mut tap: impl Read, mut stream: impl Write) -> io::Result<()> {
    let mut buffer = vec![0; LENGTH_BYTES + FRAME_BYTES_MAX];
    loop {
        let Some((header, frame)) = buffer.split_at_mut_checked(LENGTH_BYTES) else { return Ok(()) };
        let length = match tap.read(frame) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        header.copy_from_slice(&u32::try_from(length).unwrap_or(0).to_be_bytes());
        stream.write_all(buffer.get(..LENGTH_BYTES + length).unwrap_or_default())?;
    }
}

fn inward(mut stream: impl Read, mut tap: impl Write) -> io::Result<()> {
    let mut buffer = vec![0; READ_BYTES];
    let mut filled = 0;
    loop {
        filled += match stream.read(buffer.get_mut(filled..).unwrap_or_default()) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let mut taken = 0;
        while let Some(frame) = first_frame(buffer.get_mut(taken..filled).unwrap_or_default())? {
            acknowledge_reset_in(frame);
            // A frame that the device does not take is lost, as on any network.
            drop(tap.write(frame));
            taken += LENGTH_BYTES + frame.len();
        }
        buffer.copy_within(taken..filled, 0);
        filled -= taken;
    }
}

/// None: not all of it is there yet.
fn first_frame(bytes: &mut [u8]) -> io::Result<Option<&mut [u8]>> {
    let Some((header, rest)) = bytes.split_first_chunk_mut::<LENGTH_BYTES>() else { return Ok(None) };
    let length = u32::from_be_bytes(*header) as usize;
    if length == 0 || length > FRAME_BYTES_MAX {
        return Err(io::Error::other("a frame of an impossible length"));
    }
    Ok(rest.get_mut(..length))
}

#[cfg(test)]
mod tests {
    use super::{FRAME_BYTES_MAX, inward, outward};
    use std::io::{self, Read, Write};

    /// Gives one piece a read.
    struct Pieces(Vec<Vec<u8>>);

    impl Read for Pieces {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Ok(0);
            }
            let piece = self.0.remove(0);
            let (now, later) = piece.split_at(piece.len().min(buffer.len()));
            buffer[..now.len()].copy_from_slice(now);
            if !later.is_empty() {
                self.0.insert(0, later.to_vec());
            }
            Ok(now.len())
        }
    }

    /// Keeps what each write brought.
    #[derive(Default)]
    struct Writes(Vec<Vec<u8>>);

    impl Write for Writes {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.push(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn frames() -> Vec<Vec<u8>> {
        [1, 60, 1_514, FRAME_BYTES_MAX, 2].iter().map(|length| vec![*length as u8; *length]).collect()
    }

    #[test]
    fn frames_come_through_whatever_pieces_the_stream_makes_of_them() {
        let mut out = Writes::default();
        outward(Pieces(frames()), &mut out).unwrap();
        let bytes: Vec<u8> = out.0.concat();
        for size in [1, 3, 4_096, 70_000, bytes.len()] {
            let mut back = Writes::default();
            inward(Pieces(bytes.chunks(size).map(<[u8]>::to_vec).collect()), &mut back).unwrap();
            assert!(back.0 == frames(), "in pieces of {size}");
        }
    }

    #[test]
    fn an_impossible_length_ends_it() {
        for length in [0, FRAME_BYTES_MAX as u32 + 1, u32::MAX] {
            let stream = Pieces(vec![length.to_be_bytes().to_vec(), vec![0; 100]]);
            assert!(inward(stream, Writes::default()).is_err(), "{length}");
        }
    }
}
