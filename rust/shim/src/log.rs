//! The log: what the programs write, copied from a pipe, so that it stays bounded. At its bound it
//! becomes `LOG.1`, over an older one: never more than twice the bound on disk. A full disk loses
//! output, it never stops the program that writes.
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const CHUNK_BYTES: usize = 16 * 1024;
/// Chunks per turn: a program that floods must not keep the shim from its socket.
const CHUNKS_PER_TURN: usize = 16;

pub struct Log {
    path: PathBuf,
    file: File,
    bytes: u64,
    bytes_max: u64,
    source: Option<File>,
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path)
}

impl Log {
    /// `source` is the reading end of the pipe, not blocking.
    pub fn new(path: &Path, bytes_max: u64, source: File) -> io::Result<Self> {
        let file = open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, bytes, bytes_max, source: Some(source) })
    }

    pub fn source(&self) -> Option<&File> {
        self.source.as_ref()
    }

    /// Copies what is there to be read, at most a turn's worth. Gives false when nothing is left.
    pub fn copy(&mut self) -> bool {
        let mut chunk = [0; CHUNK_BYTES];
        for _ in 0..CHUNKS_PER_TURN {
            let Some(source) = &mut self.source else { return false };
            match source.read(&mut chunk) {
                Ok(0) => self.source = None, // every writer is gone
                Ok(count) => self.write(chunk.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    pub fn say(&mut self, sentence: &str) {
        self.write(format!("hutch-shim: {sentence}\n").as_bytes());
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.bytes >= self.bytes_max {
            self.rotate();
        }
        // What cannot be written is lost: a full disk must not stop the sandbox.
        if self.file.write_all(bytes).is_ok() {
            self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        }
    }

    fn rotate(&mut self) {
        let mut older = self.path.clone().into_os_string();
        older.push(".1");
        let moved = fs::rename(&self.path, older).and_then(|()| open(&self.path));
        match moved {
            Ok(file) => self.file = file,
            // Its directory may be gone: the file that is open stays bounded all the same.
            Err(_) => drop(self.file.set_len(0)),
        }
        self.bytes = 0;
    }
}
