//! Preloaded into a QEMU older than 8.2, which opens the memory file for writing even where it only
//! maps it privately. Then every sandbox's user would have to be allowed to write the template that
//! all sandboxes share. This opens that one file, named by `HUTCH_READONLY`, for reading instead: a
//! private mapping needs no more. It has no dependency, not even on the C library's headers.
//!
//! Built by `rustc` alone: see docs/decisions. Every other file is opened as asked.
#![no_std]

use core::arch::asm;
use core::ffi::{c_char, c_int, c_long};

const O_ACCMODE: c_int = 0o3;
const O_RDWR: c_int = 0o2;
const AT_FDCWD: c_long = -100;
const SYS_OPENAT: c_long = 257;
const NAME: &[u8] = b"HUTCH_READONLY=";
/// Longest path that Linux takes, in bytes.
const PATH_MAX: usize = 4096;
const ENVIRONMENT_MAX: usize = 1024;

unsafe extern "C" {
    static environ: *const *const c_char;
    fn __errno_location() -> *mut c_int;
}

/// Takes the place of the C library's. The third argument is only read where the kernel reads it too.
///
/// # Safety
/// As for open(2): `path` points to a string that ends with NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: c_int) -> c_int {
    // SAFETY: `path` is a C string by this function's contract.
    let flags = if flags & O_ACCMODE == O_RDWR && unsafe { is_named(path) } { flags & !O_ACCMODE } else { flags };
    let result: c_long;
    // SAFETY: openat(2) with the caller's own arguments; the kernel clobbers rcx and r11 only.
    unsafe {
        asm!("syscall", inlateout("rax") SYS_OPENAT => result, in("rdi") AT_FDCWD, in("rsi") path,
             in("rdx") c_long::from(flags), in("r10") c_long::from(mode), lateout("rcx") _, lateout("r11") _);
    }
    if result < 0 {
        // SAFETY: the C library's errno of this thread.
        unsafe { *__errno_location() = -result as c_int };
        return -1;
    }
    result as c_int
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

/// Whether `path` is the value of `HUTCH_READONLY`.
///
/// # Safety
/// `path` is a C string.
unsafe fn is_named(path: *const c_char) -> bool {
    for index in 0..ENVIRONMENT_MAX {
        // SAFETY: `environ` is an array of C strings that ends with a null pointer, at which this stops.
        let entry = unsafe { if environ.is_null() { return false } else { *environ.add(index) } };
        if entry.is_null() {
            return false;
        }
        // SAFETY: both are C strings; `after` looks at no byte beyond the first that differs or the NUL.
        if let Some(value) = unsafe { after(entry, NAME) } {
            return unsafe { same(value, path) };
        }
    }
    false
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
