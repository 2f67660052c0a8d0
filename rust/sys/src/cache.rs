//! What of a file lies in the page cache.
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

/// At most so many pages are looked at.
const PAGES_MAX: usize = 64;
const PAGE_BYTES: usize = 4096;

/// Whether all of the file's pages from `offset` on, which begins a page, are in memory: as many as `bytes` needs, 64
/// at most. It is asked by mapping them: they are not read for that.
pub fn is_cached(file: BorrowedFd<'_>, offset: u64, bytes: usize) -> io::Result<bool> {
    let pages = bytes.div_ceil(PAGE_BYTES).clamp(1, PAGES_MAX);
    let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut resident = [0u8; PAGES_MAX];
    // SAFETY: a new mapping at an address of the kernel's choice, of which nothing is read or written; `resident` has
    // room for a byte of each page of it, and it is unmapped with the length that it was made with.
    let asked = unsafe {
        let place = libc::mmap(ptr::null_mut(), pages * PAGE_BYTES, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), offset);
        if place == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let asked = match libc::mincore(place, pages * PAGE_BYTES, resident.as_mut_ptr()) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        };
        libc::munmap(place, pages * PAGE_BYTES);
        asked
    };
    asked?;
    Ok(resident.iter().take(pages).all(|page| page & 1 == 1))
}

#[cfg(test)]
mod tests {
    use super::is_cached;
    use std::io::Write;
    use std::os::fd::AsFd;

    #[test]
    fn what_was_just_written_is_cached_and_what_lies_behind_it_is_not() {
        let path = std::env::temp_dir().join(format!("hutch-cached-{}", std::process::id()));
        let mut file = std::fs::File::options().read(true).write(true).create_new(true).open(&path).expect("opens");
        let removed = std::fs::remove_file(&path);
        file.write_all(&[7; 64 * 1024]).expect("writes");
        file.set_len(1 << 20).expect("grows");
        assert!(removed.is_ok());
        assert!(is_cached(file.as_fd(), 0, 64 * 1024).expect("asks"));
        assert!(!is_cached(file.as_fd(), 32 * 1024, 64 * 1024).expect("asks"));
        assert!(!is_cached(file.as_fd(), 512 * 1024, 1).expect("asks"));
        assert!(is_cached(file.as_fd(), 17, 1).is_err(), "no page begins there");
    }
}
