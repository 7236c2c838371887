//! What the process and the machine hold in memory, where the operating system tells (Linux).

use std::fs;
use std::path::{Path, PathBuf};

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

/// Bytes that this process can hold without others giving any up: what the machine has left, or the control groups that
/// the process is in, and what it holds already. The page cache counts as free.
pub fn available() -> Option<u64> {
    let own = of_status("RssAnon:").unwrap_or(0);
    let free = kilobytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")? + own;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let groups = group_folders(&groups);
    let limits = groups.iter().filter_map(|folder| left_in(folder, own)).chain(addresses_left());
    Some(limits.fold(free, u64::min))
}

/// What `ulimit -v` leaves.
#[cfg(target_os = "linux")]
fn addresses_left() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    let limit: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(limit.saturating_sub(of_status("VmSize:")?))
}

#[cfg(not(target_os = "linux"))]
fn addresses_left() -> Option<u64> {
    None
}

/// Folders of the memory controllers of the groups that `/proc/self/cgroup` lists, with those around them.
fn group_folders(groups: &str) -> Vec<PathBuf> {
    let mounted = |line: &str| {
        let (controllers, group) = line.split_once(':')?.1.split_once(':')?;
        let root = match controllers {
            "" => Path::new("/sys/fs/cgroup"),
            names if names.split(',').any(|name| name == "memory") => Path::new("/sys/fs/cgroup/memory"),
            _ => return None,
        };
        let inner = root.join(group.trim_start_matches('/'));
        Some(inner.ancestors().take_while(|folder| folder.starts_with(root)).map(Path::to_path_buf).collect())
    };
    groups.lines().filter_map(mounted).flat_map(|folders: Vec<PathBuf>| folders).collect()
}

/// What a group's limit leaves to a process that has `own` bytes of memory that no file backs.
fn left_in(folder: &Path, own: u64) -> Option<u64> {
    let number = |name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    let limits = ["memory.max", "memory.high", "memory.limit_in_bytes"];
    let limit = limits.iter().filter_map(|name| number(name)).min()?;
    let used = number("memory.current").or_else(|| number("memory.usage_in_bytes"))?;
    let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let of_stat = |key: &str| stat.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok());
    let shared = of_stat("shmem ").or_else(|| of_stat("total_shmem ")).unwrap_or(0);
    let cache = of_stat("file ").or_else(|| of_stat("total_cache ")).unwrap_or(0).saturating_sub(shared);
    Some(limit.saturating_sub(used.saturating_sub(cache).saturating_sub(own)))
}

fn of_status(key: &str) -> Option<u64> {
    kilobytes(&fs::read_to_string("/proc/self/status").ok()?, key)
}

fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_with_those_around_them() {
        let folders = |text: &str| -> Vec<String> {
            group_folders(text).iter().map(|folder| folder.display().to_string()).collect()
        };
        assert_eq!(
            folders("0::/user.slice/kiln\n"),
            ["/sys/fs/cgroup/user.slice/kiln", "/sys/fs/cgroup/user.slice", "/sys/fs/cgroup"]
        );
        assert_eq!(
            folders("5:cpu,cpuacct:/a\n9:memory:/cage\n"),
            ["/sys/fs/cgroup/memory/cage", "/sys/fs/cgroup/memory"]
        );
        assert_eq!(folders("nonsense"), Vec::<String>::new());
    }

    #[test]
    fn a_limit_leaves_what_others_do_not_hold() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("a file");
        assert_eq!(left_in(folder.path(), 0), None);
        write("memory.max", "max\n");
        assert_eq!(left_in(folder.path(), 0), None);
        write("memory.max", "1000\n");
        write("memory.current", "700\n");
        write("memory.stat", "anon 250\nfile 450\nshmem 50\nfile_mapped 200\n");
        assert_eq!(left_in(folder.path(), 100), Some(800));
        write("memory.high", "900\n");
        assert_eq!(left_in(folder.path(), 100), Some(700));
    }
}
