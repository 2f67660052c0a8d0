//! `metrics`: counters of the whole machine, as its kernel keeps them.
use crate::agent::{Agent, Place};
use crate::clock::{uptime_ms, wall_ms};
use crate::fault::{Fault, Outcome};
use crate::jobs::Ticket;
use crate::kernel::Kernel;
use crate::wire::value::Value;
use rustix::fs::{fstatvfs, statvfs};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// The kernel counts CPU time in hundredths of a second.
const TICK_US: u64 = 10_000;
const SECTOR_BYTES: u64 = 512;
/// Beyond so many, kernel threads are counted as well.
const PIDS_LOOKED_AT_MAX: usize = 4_096;
const PF_KTHREAD: u64 = 0x0020_0000;

impl Agent {
    pub fn metrics(&mut self, ticket: Ticket) -> Result<(), Fault> {
        let kernel = self.kernel.clone();
        let layer = self.machine.disk.as_ref().and_then(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 3).ok());
        let (place, kills) = (self.place, self.oom.count());
        self.reply_from_thread(ticket, move || collect(&kernel, layer, place, kills))
    }
}

fn collect(kernel: &Arc<Kernel>, layer: Option<OwnedFd>, place: Place, kills: u64) -> Outcome {
    let stat = kernel.proc("stat").map_err(|errno| Fault::system("/proc/stat", errno))?;
    let memory = kernel.proc("meminfo").unwrap_or_default();
    // Where the kernel is not the sandbox's own, these are of the whole host.
    let (oom_kills, uptime_ms) = if place == Place::Machine {
        let vmstat = kernel.proc("vmstat").unwrap_or_default();
        let counted = vmstat.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok());
        (counted.unwrap_or(kills).max(kills), uptime_ms())
    } else {
        (kills, uptime_ms().saturating_sub(began_ms(&kernel.proc("self/stat").unwrap_or_default())))
    };
    let metrics = Value::map([
        ("takenAtMs", wall_ms().into()),
        ("uptimeMs", uptime_ms.into()),
        ("cpu", cpu(&stat)),
        ("memory", memory_of(&memory)),
        ("disk", disk(kernel, layer)),
        ("network", network(&kernel.proc("net/dev").unwrap_or_default())),
        ("processes", processes(kernel).into()),
        ("oomKills", oom_kills.into()),
    ]);
    Ok(metrics.with("pressure", pressure(kernel)))
}

/// When a process began, of its /proc/PID/stat, as `uptime_ms` counts.
fn began_ms(stat: &str) -> u64 {
    // After the name, which may hold anything: its state, and the start time as the twentieth.
    let ticks = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19)?.parse::<u64>().ok());
    ticks.unwrap_or(0) * TICK_US / 1_000
}

fn numbers(line: &str) -> Vec<u64> {
    line.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

fn cpu(stat: &str) -> Value {
    let mut lines = stat.lines();
    let total = numbers(lines.next().unwrap_or_default());
    let at = |index: usize| total.get(index).copied().unwrap_or(0) * TICK_US;
    let count = lines.take_while(|line| line.starts_with("cpu")).count();
    // user nice system idle iowait irq softirq steal
    Value::map([
        ("userUs", (at(0) + at(1)).into()),
        ("systemUs", (at(2) + at(5) + at(6)).into()),
        ("idleUs", (at(3) + at(4)).into()),
        ("stealUs", at(7).into()),
        ("count", count.into()),
    ])
}

fn memory_of(meminfo: &str) -> Value {
    let bytes = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|line| numbers(line).first().copied()).unwrap_or(0) * 1024
    };
    let (total, available) = (bytes("MemTotal"), bytes("MemAvailable"));
    Value::map([
        ("totalBytes", total.into()),
        ("availableBytes", available.into()),
        ("usedBytes", total.saturating_sub(available).into()),
        ("cacheBytes", (bytes("Cached") + bytes("Buffers") + bytes("SReclaimable")).into()),
    ])
}

fn disk(kernel: &Kernel, layer: Option<OwnedFd>) -> Value {
    let stat = match &layer {
        Some(layer) => fstatvfs(layer),
        None => statvfs("/"),
    };
    let (total, used) = stat.map_or((0, 0), |stat| {
        let block = stat.f_frsize.max(1);
        (stat.f_blocks * block, stat.f_blocks.saturating_sub(stat.f_bfree) * block)
    });
    let (mut read, mut written) = (0, 0);
    for line in kernel.proc("diskstats").unwrap_or_default().lines() {
        let mut words = line.split_whitespace().skip(2);
        // Whole virtio disks: vda, vdb, …
        if words.next().is_some_and(|name| name.len() == 3 && name.starts_with("vd")) {
            let counts: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
            read += counts.get(2).copied().unwrap_or(0) * SECTOR_BYTES;
            written += counts.get(6).copied().unwrap_or(0) * SECTOR_BYTES;
        }
    }
    Value::map([
        ("totalBytes", total.into()),
        ("usedBytes", used.into()),
        ("readBytes", read.into()),
        ("writtenBytes", written.into()),
    ])
}

fn network(dev: &str) -> Value {
    let (mut received, mut sent) = (0, 0);
    for line in dev.lines() {
        let Some((name, counts)) = line.split_once(':') else { continue };
        if name.trim() != "lo" {
            let counts = numbers(counts);
            received += counts.first().copied().unwrap_or(0);
            sent += counts.get(8).copied().unwrap_or(0);
        }
    }
    Value::map([("rxBytes", received.into()), ("txBytes", sent.into())])
}

/// Processes, without the kernel's own threads.
fn processes(kernel: &Kernel) -> usize {
    let pids = kernel.pids();
    if pids.len() > PIDS_LOOKED_AT_MAX {
        return pids.len();
    }
    let is_program = |pid: &i32| {
        let stat = kernel.proc(&format!("{pid}/stat")).unwrap_or_default();
        // After the name, which may hold anything: state ppid pgrp session tty tpgid flags
        let flags = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(6)?.parse::<u64>().ok());
        flags.is_some_and(|flags| flags & PF_KTHREAD == 0)
    };
    pids.iter().filter(|pid| is_program(pid)).count()
}

fn pressure(kernel: &Kernel) -> Option<Value> {
    let total = |name: &str| -> Option<u64> {
        let text = kernel.proc(&format!("pressure/{name}")).ok()?;
        text.lines().find(|line| line.starts_with("some"))?.rsplit_once("total=")?.1.trim().parse().ok()
    };
    Some(Value::map([
        ("cpuSomeUs", total("cpu")?.into()),
        ("memorySomeUs", total("memory")?.into()),
        ("ioSomeUs", total("io")?.into()),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::fields::number_of;

    fn field(value: &Value, name: &str) -> u64 {
        value.get(name).and_then(number_of).expect("a number")
    }

    #[test]
    fn a_process_began_when_its_stat_says() {
        let stat = "7 (a) 1 b) S 0 1 1 0 -1 4194560 1130 0 0 0 2 1 0 0 20 0 2 0 5084709 2654208 417 1";
        assert_eq!(began_ms(stat), 50_847_090);
        assert_eq!(began_ms(""), 0);
    }

    #[test]
    fn counters_are_read_from_the_kernels_texts() {
        let stat = cpu("cpu  10 1 5 100 3 2 1 7 0 0\ncpu0 5 0\ncpu1 5 1\nintr 5\n");
        assert_eq!(
            ["userUs", "systemUs", "idleUs", "stealUs", "count"].map(|name| field(&stat, name)),
            [110_000, 80_000, 1_030_000, 70_000, 2]
        );
        let memory = memory_of("MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 400 kB\nBuffers: 10 kB\nCached: 20 kB\n");
        assert_eq!((field(&memory, "usedBytes"), field(&memory, "cacheBytes")), (600 * 1024, 30 * 1024));
        let dev = network("Inter-| Receive\n face |bytes\n    lo: 9 9 9 9 9 9 9 9 9 9\n  eth0: 100 1 0 0 0 0 0 0 200 1\n");
        assert_eq!((field(&dev, "rxBytes"), field(&dev, "txBytes")), (100, 200));
    }
}
