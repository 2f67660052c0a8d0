//! Everything that the programs have started. The shim is their subreaper: whatever loses its parent
//! becomes our child, so killing and reaping children until there are none reaches all of them.
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::record;
use crate::sys;

/// Of /proc/PID/stat, counted from 1 as in proc(5).
const PARENT_FIELD: usize = 4;
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// SIGKILL to every child that is there now. They are not reaped yet: their pids are their own.
pub fn kill_all() {
    for pid in children() {
        drop(sys::kill(pid, libc::SIGKILL));
    }
}

fn children() -> Vec<i32> {
    let own = std::process::id();
    // Whole, not bounded: half a pid would be another process.
    match fs::read_to_string(format!("/proc/self/task/{own}/children")) {
        Ok(listed) => listed.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect(),
        Err(_) => children_by_parent(own), // a kernel without CONFIG_PROC_CHILDREN
    }
}

fn children_by_parent(own: u32) -> Vec<i32> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| record::stat_field(*pid, PARENT_FIELD).is_ok_and(|parent| parent == i64::from(own))).collect()
}

/// Kills and reaps until nothing is left; false when something outlived the time.
pub fn end_all(time: Duration) -> bool {
    let until = Instant::now() + time;
    loop {
        kill_all();
        loop {
            match sys::reap(-1) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return true, // there is no child
            }
        }
        if Instant::now() > until {
            return false;
        }
        sleep(LOOK_EVERY);
    }
}
