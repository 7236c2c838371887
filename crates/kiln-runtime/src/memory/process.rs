//! What the process and the machine hold in memory, where the operating system tells (Linux).

use std::fs;

/// Bytes of this process that are resident now.
pub fn resident() -> Option<u64> {
    of_status("VmRSS:")
}

/// Most bytes of this process that were resident, since it started or since [`reset_peak`].
pub fn peak() -> Option<u64> {
    of_status("VmHWM:")
}

/// Starts the count of [`peak`] anew from what is resident now; false where the system has no such thing.
pub fn reset_peak() -> bool {
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Bytes that this process can take without others giving any up: what the machine, or the process's group, has left,
/// and what is resident already.
pub fn available() -> Option<u64> {
    let free = kilobytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")?;
    let limits = [
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ];
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let left = limits.iter().filter_map(|(max, used)| Some(number(max)?.saturating_sub(number(used)?))).min();
    Some(left.map_or(free, |left| left.min(free)) + resident()?)
}

fn of_status(key: &str) -> Option<u64> {
    kilobytes(&fs::read_to_string("/proc/self/status").ok()?, key)
}

fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}
