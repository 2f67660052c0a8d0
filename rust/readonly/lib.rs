//! Preloaded into QEMU, which is told that its memory file is shared, so that it leaves the memory out when it
//! saves its state. This opens that one file, named by `HUTCH_READONLY`, for reading, and maps it privately: what
//! the guest writes is seen by nobody else. Where `HUTCH_LAYERS` names a directory, what lies in its file `map` is
//! laid over it: page by page from the numbered files beside it, privately too. Memory that the guest has freed goes
//! back to the host by QEMU's madvise(2) alone: a hole in the file, which QEMU makes first, would be everybody's. A file is opened by which the
//! host can have the kernel note what is written. It has no dependency, not even on the C library's headers.
//!
//! Built by `rustc` alone: see docs/decisions. Every other file is opened and mapped as asked.
#![no_std]

use core::arch::asm;
use core::ffi::{c_char, c_int, c_long, c_void};
use core::sync::atomic::{AtomicI32, Ordering};

const O_ACCMODE: c_int = 0o3;
const O_RDWR: c_int = 0o2;
const AT_FDCWD: c_long = -100;
const SYS_CLOSE: c_long = 3;
const SYS_PREAD: c_long = 17;
const SYS_MMAP: c_long = 9;
const SYS_OPENAT: c_long = 257;
const SYS_FALLOCATE: c_long = 285;
const SYS_USERFAULTFD: c_long = 323;
const O_CLOEXEC: c_long = 0o2000000;
/// Faults of the kernel's are not waited for: that would need a right.
const UFFD_USER_MODE_ONLY: c_long = 1;
const NAME: &[u8] = b"HUTCH_READONLY=";
const LAYERS: &[u8] = b"HUTCH_LAYERS=";
const MAP_SHARED: c_int = 1;
const MAP_PRIVATE: c_int = 2;
/// Of `MAP_SHARED`, `MAP_PRIVATE` and `MAP_SHARED_VALIDATE`.
const MAP_TYPE: c_int = 0xf;
const MAP_FIXED: c_int = 0x10;
const MAP_FAILED: c_long = -1;
const EINVAL: c_long = 22;
const PAGE: u64 = 4096;
/// What a map begins with, and how long one run in it is: layer and pages (32 bits each), first page (64).
const MAGIC: [u8; 8] = *b"HUTCHMAP";
const RUN_BYTES: usize = 16;
const RUNS_AT_ONCE: usize = 256;
const NO_FILE: c_int = -1;

/// The memory file, once QEMU has opened it. It does so before it starts its threads.
static MEMORY: AtomicI32 = AtomicI32::new(NO_FILE);
/// Longest path that Linux takes, in bytes.
const PATH_MAX: usize = 4096;
const ENVIRONMENT_MAX: usize = 1024;

unsafe extern "C" {
    static environ: *const *const c_char;
    fn __errno_location() -> *mut c_int;
}

/// # Safety
/// As for the system call of that number.
unsafe fn call(number: c_long, a: c_long, b: c_long, c: c_long, d: c_long, e: c_long, f: c_long) -> c_long {
    let result: c_long;
    // SAFETY: the caller's own arguments; the kernel clobbers rcx and r11 only.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e,
             in("r9") f, lateout("rcx") _, lateout("r11") _);
    }
    result
}

/// -1 with errno, where the kernel said what is wrong.
fn told(result: c_long) -> c_long {
    if result >= 0 {
        return result;
    }
    // SAFETY: the C library's errno of this thread.
    unsafe { *__errno_location() = -result as c_int };
    -1
}

/// Takes the place of the C library's. The third argument is only read where the kernel reads it too.
///
/// # Safety
/// As for open(2): `path` points to a string that ends with NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: c_int) -> c_int {
    // SAFETY: `path` is a C string by this function's contract.
    let is_memory = flags & O_ACCMODE == O_RDWR && unsafe { variable(NAME).is_some_and(|name| same(name, path)) };
    let flags = if is_memory { flags & !O_ACCMODE } else { flags };
    // SAFETY: openat(2) with the caller's own arguments.
    let file = told(unsafe { call(SYS_OPENAT, AT_FDCWD, path as c_long, c_long::from(flags), c_long::from(mode), 0, 0) }) as c_int;
    if is_memory && file >= 0 {
        MEMORY.store(file, Ordering::Relaxed);
    }
    file
}

/// Takes the place of the C library's.
///
/// # Safety
/// As for mmap(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap64(at: *mut c_void, bytes: usize, access: c_int, flags: c_int, file: c_int, offset: c_long) -> *mut c_void {
    let is_memory = file != NO_FILE && file == MEMORY.load(Ordering::Relaxed) && flags & MAP_TYPE == MAP_SHARED;
    let flags = if is_memory { flags & !MAP_TYPE | MAP_PRIVATE } else { flags };
    let (length, rights) = (bytes as c_long, c_long::from(access));
    // SAFETY: mmap(2) with the caller's own arguments, and less shared than asked.
    let start = told(unsafe { call(SYS_MMAP, at as c_long, length, rights, c_long::from(flags), c_long::from(file), offset) });
    if start == MAP_FAILED || !is_memory {
        return start as *mut c_void;
    }
    // Through it the host asks the kernel what was written since (rust/imprint), which the kernel tells only where the process itself has
    // opened it. Nothing is registered, and nothing changes, until then. An old kernel has none.
    // SAFETY: a new file, of numbers only.
    let _ = unsafe { call(SYS_USERFAULTFD, O_CLOEXEC | UFFD_USER_MODE_ONLY, 0, 0, 0, 0, 0) };
    // SAFETY: what was just mapped is this program's memory, which nothing uses yet.
    let laid = unsafe { variable(LAYERS).map_or(0, |directory| lay(directory, start, bytes as u64, rights, offset as u64)) };
    if told(laid) == -1 { MAP_FAILED as *mut c_void } else { start as *mut c_void }
}

/// Takes the place of the C library's. What is given back of the memory was a copy of this process's own; its page is what was
/// mapped there again, which a guest that was told nothing of zeros (`page-poison=off`) takes for anything.
///
/// # Safety
/// As for fallocate(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fallocate64(file: c_int, mode: c_int, offset: c_long, bytes: c_long) -> c_int {
    if file != NO_FILE && file == MEMORY.load(Ordering::Relaxed) {
        return 0;
    }
    // SAFETY: fallocate(2) with the caller's own arguments.
    told(unsafe { call(SYS_FALLOCATE, c_long::from(file), c_long::from(mode), offset, bytes, 0, 0) }) as c_int
}

/// Lays what the map says over the memory that begins at `start` and `offset` of it. 0, or what is wrong.
///
/// # Safety
/// `directory` is a C string; `bytes` from `start` on are a mapping that may be replaced.
unsafe fn lay(directory: *const c_char, start: c_long, bytes: u64, rights: c_long, offset: u64) -> c_long {
    // SAFETY: a C string; what is opened here is closed here.
    unsafe {
        let map = opened(directory, None);
        if map < 0 {
            return map;
        }
        let result = lay_runs(directory, map, start, bytes, rights, offset);
        call(SYS_CLOSE, map, 0, 0, 0, 0, 0);
        result
    }
}

/// # Safety
/// As for `lay`.
unsafe fn lay_runs(directory: *const c_char, map: c_long, start: c_long, bytes: u64, rights: c_long, offset: u64) -> c_long {
    let mut head = [0u8; MAGIC.len()];
    // SAFETY: room for as many bytes as are asked for.
    let got = unsafe { call(SYS_PREAD, map, head.as_mut_ptr() as c_long, head.len() as c_long, 0, 0, 0) };
    if got != head.len() as c_long || head != MAGIC || offset != 0 {
        return -EINVAL;
    }
    let mut runs = [[0u32; RUN_BYTES / 4]; RUNS_AT_ONCE];
    let mut at = MAGIC.len() as c_long;
    let (mut layer, mut file) = (0, -1);
    loop {
        // SAFETY: room for as many bytes as are asked for; any bytes are numbers.
        let got = unsafe { call(SYS_PREAD, map, runs.as_mut_ptr() as c_long, (RUN_BYTES * RUNS_AT_ONCE) as c_long, at, 0, 0) };
        if got < 0 || got % RUN_BYTES as c_long != 0 {
            return if got < 0 { got } else { -EINVAL };
        }
        for [of, pages, low, high] in runs.iter().copied().take(got as usize / RUN_BYTES) {
            let first = (u64::from(high) << 32 | u64::from(low)).wrapping_mul(PAGE);
            let length = u64::from(pages) * PAGE;
            if first >= bytes || length > bytes - first || length == 0 {
                return -EINVAL;
            }
            // SAFETY: a file of ours; the part that is replaced lies within the mapping.
            unsafe {
                if of != layer || file < 0 {
                    if file >= 0 {
                        call(SYS_CLOSE, file, 0, 0, 0, 0, 0);
                    }
                    file = opened(directory, Some(of));
                    layer = of;
                    if file < 0 {
                        return file;
                    }
                }
                let fixed = c_long::from(MAP_PRIVATE | MAP_FIXED);
                let laid = call(SYS_MMAP, start + first as c_long, length as c_long, rights, fixed, file, first as c_long);
                if laid < 0 {
                    return laid;
                }
            }
        }
        if got == 0 {
            if file >= 0 {
                // SAFETY: opened above.
                unsafe { call(SYS_CLOSE, file, 0, 0, 0, 0, 0) };
            }
            return 0;
        }
        at += got;
    }
}

/// The map of a directory, or one layer in it, for reading.
///
/// # Safety
/// `directory` is a C string.
unsafe fn opened(directory: *const c_char, layer: Option<u32>) -> c_long {
    const ROOM: usize = PATH_MAX - 16;
    let mut path = [0u8; PATH_MAX];
    let mut length = 0;
    // SAFETY: no byte beyond the NUL is read.
    while length < ROOM && unsafe { *directory.add(length) } != 0 {
        // SAFETY: as above; `length` is below the path's own.
        unsafe { *path.as_mut_ptr().add(length) = *directory.add(length) as u8 };
        length += 1;
    }
    let mut digits = [0u8; 10];
    let mut count = 0;
    if let Some(mut rest) = layer {
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
            count += 1;
            if rest == 0 {
                break;
            }
        }
    }
    let number = digits.iter().skip(digits.len() - count);
    let name = b"map".iter().take(if layer.is_none() { 3 } else { 0 }).chain(number);
    for (slot, &byte) in path.iter_mut().skip(length).zip(b"/".iter().chain(name)) {
        *slot = byte;
    }
    // SAFETY: a C string: the array ends with zeros.
    unsafe { call(SYS_OPENAT, AT_FDCWD, path.as_ptr() as c_long, 0, 0, 0, 0) }
}

/// What a program built with `_FORTIFY_SOURCE` calls for an open(2) of two arguments.
///
/// # Safety
/// As for `open64`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __open64_2(path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: the same contract; without O_CREAT no mode is read.
    unsafe { open64(path, flags, 0) }
}

/// What stands behind `name`, with its equals sign, in the environment.
///
/// # Safety
/// The environment is as the C library keeps it.
unsafe fn variable(name: &[u8]) -> Option<*const c_char> {
    for index in 0..ENVIRONMENT_MAX {
        // SAFETY: `environ` is an array of C strings that ends with a null pointer, at which this stops.
        let entry = unsafe { if environ.is_null() { return None } else { *environ.add(index) } };
        if entry.is_null() {
            return None;
        }
        // SAFETY: a C string; `after` looks at no byte beyond the first that differs or the NUL.
        if let Some(value) = unsafe { after(entry, name) } {
            return Some(value);
        }
    }
    None
}

/// # Safety
/// `text` is a C string.
unsafe fn after(text: *const c_char, prefix: &[u8]) -> Option<*const c_char> {
    for (index, &byte) in prefix.iter().enumerate() {
        // SAFETY: all bytes before this one were equal to the prefix's, which has no NUL.
        if unsafe { *text.add(index) } as u8 != byte {
            return None;
        }
    }
    // SAFETY: the NUL is not before this.
    Some(unsafe { text.add(prefix.len()) })
}

/// # Safety
/// Both are C strings.
unsafe fn same(a: *const c_char, b: *const c_char) -> bool {
    for index in 0..PATH_MAX {
        // SAFETY: neither has had its NUL yet.
        let (x, y) = unsafe { (*a.add(index), *b.add(index)) };
        if x != y {
            return false;
        }
        if x == 0 {
            return true;
        }
    }
    false
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
