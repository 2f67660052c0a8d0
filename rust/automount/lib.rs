//! Preloaded in sandboxes of a gVisor that knows `statx` and `newfstatat`, but refuses their flag
//! `AT_NO_AUTOMOUNT`, which `ls -l` and `stat` of today always set. There is nothing there that could be
//! mounted by looking at it, so the flag means nothing and is left out. It has no dependency, not even
//! on the C library's headers.
#![no_std]

use core::arch::asm;
use core::ffi::{c_char, c_int, c_long, c_uint, c_void};

const AT_NO_AUTOMOUNT: c_int = 0x800;
const SYS_NEWFSTATAT: c_long = 262;
const SYS_STATX: c_long = 332;

unsafe extern "C" {
    fn __errno_location() -> *mut c_int;
}

/// # Safety
/// As for statx(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statx(dir: c_int, path: *const c_char, flags: c_int, mask: c_uint, found: *mut c_void) -> c_int {
    let result: c_long;
    // SAFETY: statx(2) with the caller's own arguments; the kernel clobbers rcx and r11 only.
    unsafe {
        asm!("syscall", inlateout("rax") SYS_STATX => result, in("rdi") c_long::from(dir), in("rsi") path,
             in("rdx") c_long::from(flags & !AT_NO_AUTOMOUNT), in("r10") c_long::from(mask), in("r8") found,
             lateout("rcx") _, lateout("r11") _);
    }
    // SAFETY: as in this function's contract.
    unsafe { answer(result) }
}

/// # Safety
/// As for fstatat(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fstatat64(dir: c_int, path: *const c_char, found: *mut c_void, flags: c_int) -> c_int {
    let result: c_long;
    // SAFETY: newfstatat(2) with the caller's own arguments, whose structure is the C library's; as above.
    unsafe {
        asm!("syscall", inlateout("rax") SYS_NEWFSTATAT => result, in("rdi") c_long::from(dir), in("rsi") path,
             in("rdx") found, in("r10") c_long::from(flags & !AT_NO_AUTOMOUNT), lateout("rcx") _, lateout("r11") _);
    }
    // SAFETY: as in this function's contract.
    unsafe { answer(result) }
}

/// The same where files are always large.
///
/// # Safety
/// As for fstatat(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fstatat(dir: c_int, path: *const c_char, found: *mut c_void, flags: c_int) -> c_int {
    // SAFETY: the same contract.
    unsafe { fstatat64(dir, path, found, flags) }
}

/// # Safety
/// Called in a program with the C library.
unsafe fn answer(result: c_long) -> c_int {
    if result >= 0 {
        return result as c_int;
    }
    // SAFETY: the C library's errno of this thread.
    unsafe { *__errno_location() = -result as c_int };
    -1
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
